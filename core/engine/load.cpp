// What follows a plan, at open() or when it is made again: weights where they belong, workspaces, and the executables that a token needs.
#include "core/engine/engine_impl.h"

namespace fth {

Result<> Engine::Impl::make_resident() {
  FTH_RETURN_IF_ERROR(load_weights());
  FTH_RETURN_IF_ERROR(compile_decode());
  return screen.plane.bytes > 0 ? make_plane() : Result<>();
}

Result<> Engine::Impl::load_weights() {
  if (streamed()) {
    FTH_RETURN_IF_ERROR(make_streamed());
  } else if (options.on_load) {
    FTH_RETURN_IF_ERROR(model->file.prefault(
        [](void* self, uint64_t done, uint64_t total) { (*static_cast<decltype(options.on_load)*>(self))(done, total); },
        &options.on_load));
  } else {
    FTH_RETURN_IF_ERROR(model->file.prefault(nullptr, nullptr));
  }
  return reorder();
}

// Other buckets are compiled at their first use. Where the CPU stands in compiling begins.
Result<> Engine::Impl::compile_decode() {
  const auto compile_all = [&]() -> Result<> {
    FTH_RETURN_IF_ERROR(make_workspaces());
    for (const Placement& p : plan.placements) {
      FTH_RETURN_IF_ERROR(get(p.kind, p.layer, 1, Variant::plain));
      if (!streamed() || p.kind != SegmentKind::experts) continue;
      FTH_RETURN_IF_ERROR(get(p.kind, p.layer, 1, Variant::gates));
      FTH_RETURN_IF_ERROR(get(p.kind, p.layer, 1, Variant::after_gates));
    }
    return {};
  };
  FTH_RETURN_IF_ERROR(surviving(compile_all));
  background.start();
  keep_compile_seconds();
  return {};
}

Result<> Engine::Impl::make_workspaces() {
  workspace_blocks.resize(registry->devices().size());
  workspaces.resize(registry->devices().size());
  for (const Arena& arena : plan.arenas) {
    if (arena.name.rfind("workspace", 0) != 0) continue;
    for (size_t d = 0; d < workspaces.size(); ++d) {
      const std::string label = "workspace" + (d == 0 ? std::string() : " (" + device(d).name() + ")");
      if (arena.name != label || workspaces[d]) continue;
      if (registry->devices()[d].check.wrong) continue;  // it has failed since the plan was made
      if (device(d).reads_host_memory()) {
        FTH_ASSIGN_OR_RETURN(workspace_blocks[d], HostBlock::allocate(arena.bytes, "workspace"));
        FTH_ASSIGN_OR_RETURN(workspaces[d], blame(d, device(d).import_host(workspace_blocks[d].data(), workspace_blocks[d].bytes())));
      } else {
        FTH_ASSIGN_OR_RETURN(workspaces[d], blame(d, device(d).alloc(arena.bytes)));
      }
    }
  }
  if (stand_in_workspace > workspaces[0].bytes()) {
    FTH_ASSIGN_OR_RETURN(workspace_blocks[0], HostBlock::allocate(stand_in_workspace, "workspace"));
    FTH_ASSIGN_OR_RETURN(workspaces[0], device(0).import_host(workspace_blocks[0].data(), workspace_blocks[0].bytes()));
  }
  return {};
}

}  // namespace fth
