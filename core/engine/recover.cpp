// A device that fails while it is in use: its work moves to the host's CPU, and sessions compute their context again there.
#include <algorithm>
#include <utility>

#include "core/engine/engine_impl.h"

namespace fth {

Result<> Engine::Impl::lose_device(size_t lost, const Error& why) {
  failed_device.reset();
  const std::string name = device(lost).name();
  const bool own_memory = !device(lost).reads_host_memory();
  const auto moves = [&](const Placement& p) { return p.device == lost; };
  // Before anything is touched: what the CPU cannot run stays an error.
  uint64_t workspace = 0, state = 0, dense_bytes = 0;
  for (const Placement& p : plan.placements) {
    if (!moves(p)) continue;
    for (const int64_t bucket : kBuckets) {
      if (bucket > (p.kind == SegmentKind::head ? kHeadRows : shapes.max_bucket)) break;
      const Estimates& of = estimates_of(p.kind, p.layer, bucket);
      const Result<fth_estimate>& on_cpu = of.by_device[0];
      if (!on_cpu) return tl::unexpected<Error>(Error(why).context(on_cpu.error().message + "; no other device runs it"));
      workspace = std::max(workspace, on_cpu->workspace_bytes);
      if (bucket == 1) dense_bytes += of.weight_bytes;
    }
    if (p.kind == SegmentKind::attention)
      state += static_cast<uint64_t>(2 * kv_cells(model->layers[static_cast<size_t>(p.layer)], shapes)) *
               row_bytes(shapes.kv_dtype, model->config.n_head_kv * model->config.head_dim);
  }
  if (workspaces.size() <= lost) workspaces.resize(registry->devices().size()), workspace_blocks.resize(registry->devices().size());

  const std::string reason = "failed while it was in use: " + why.message;
  registry->devices()[lost].refusal = reason;
  registry->devices()[lost].check.wrong = true;
  const bool had_experts = std::find(experts_on.begin(), experts_on.end(), lost) != experts_on.end();
  std::replace(experts_on.begin(), experts_on.end(), lost, size_t{0});
  for (ExpertBucket& bucket : expert_choice.buckets)
    if (expert_choice.candidates[bucket.chosen] == lost) bucket.chosen = 0;
  move_over(true);  // nobody compiles for it any more

  // What it had in RAM is given back, what it had in memory of its own comes there.
  const auto its_arena = [&](const Arena& a) { return a.device == name || a.name.ends_with("(" + name + ")"); };
  uint64_t ram = plan.ram_bytes;
  for (const Arena& a : plan.arenas)
    if (a.device == "ram" && its_arena(a)) ram -= a.bytes;
  uint64_t has = std::max(workspaces[0].bytes(), stand_in_workspace);
  for (const Arena& a : plan.arenas)
    if (a.name == "workspace") has = std::max(has, a.bytes);
  ram += state + dense_bytes + (workspace - std::min(workspace, has));
  if (plan.ram_limit != 0 && ram > plan.ram_limit && ram > plan.ram_bytes) return plan_without(lost, why);

  if (workspace > workspaces[0].bytes()) {
    FTH_ASSIGN_OR_RETURN(HostBlock block, HostBlock::allocate(workspace, "workspace"));
    FTH_ASSIGN_OR_RETURN(workspaces[0], device(0).import_host(block.data(), block.bytes()));
    workspace_blocks[0] = std::move(block);
  }
  int64_t moved = 0;
  for (Placement& p : plan.placements) {
    if (!moves(p)) continue;
    const double seconds = estimates_of(p.kind, p.layer, 1).by_device[0]->seconds;
    plan.seconds_per_token += seconds - p.seconds;
    p.device = p.runner_up = 0;
    p.seconds = p.runner_up_seconds = seconds;
    placed[static_cast<size_t>(p.kind) * static_cast<size_t>(model->config.n_layer + 1) + static_cast<size_t>(p.layer + 1)] = 0;
    ++moved;
  }
  other_slots.erase(lost);
  for (auto& c : compiled)
    if (c && c->device == lost) c.reset();
  weights.erase(weights.lower_bound({lost, nullptr}), weights.lower_bound({lost + 1, nullptr}));
  workspaces[lost] = {};
  ++generation;

  plan.devices[lost].refusal = reason;
  plan.devices[lost].wrong = true;
  plan.refusals.push_back({name, reason});
  for (Arena& a : plan.arenas)
    if (its_arena(a)) a.bytes = 0;
  plan.arenas.push_back({"kv cache, moved from " + name, "ram", state});
  if (own_memory || dense_bytes > 0) plan.arenas.push_back({"dense weights, moved from " + name, "ram", dense_bytes});
  plan.ram_bytes = ram;
  const std::string said = name + " failed: " + why.message + "; its " + std::to_string(moved) + " segments" +
                           (had_experts ? " and the experts of some steps" : "") + " run on " + device(0).name() + " from here on";
  plan.notes.push_back(said);
  if (options.registry.log != nullptr) options.registry.log(options.registry.log_self, FTH_LOG_WARNING, said.c_str());
  return {};
}

Result<> Engine::Impl::surviving(const std::function<Result<>()>& work) {
  for (;;) {
    if (ended) return tl::unexpected<Error>(*ended);
    failed_device.reset();
    Result<> done = work();
    if (done || !failed_device) return done;
    FTH_RETURN_IF_ERROR(lose_device(*failed_device, done.error()));  // each time one device fewer
  }
}

// The context again from its tokens: caches of the device that is gone went with it, and those that are here are written with the same values.
Result<> Session::Impl::restore() {
  FTH_RETURN_IF_ERROR(n_plans == engine->n_plans ? make_memory() : lay_down());
  generation = engine->generation;
  if (pages) pages->truncate(0);
  // Nobody is told twice of a token.
  const Inspect inspecting = std::exchange(inspect, {});
  const OnRouting routing_to = std::exchange(on_routing, {});
  Result<> outcome;
  const auto n = static_cast<int64_t>(tokens.size());
  for (int64_t pos = 0; pos < n && outcome; pos += engine->options.ubatch) {
    const auto part = std::span(tokens).subspan(static_cast<size_t>(pos), static_cast<size_t>(std::min(engine->options.ubatch, n - pos)));
    if (auto done = step(*this, part, pos, Want::nothing, {}); !done) outcome = tl::unexpected<Error>(std::move(done).error());
  }
  inspect = inspecting;
  on_routing = routing_to;
  if (!outcome) generation = kNoGeneration;  // half a context is none
  return outcome;
}

Result<uint64_t> Session::Impl::run_step(std::span<const int32_t> ids, Want want, const OnRows& on_rows) {
  const auto pos = static_cast<int64_t>(tokens.size());
  uint64_t bytes = 0;
  int64_t told = pos;  // rows before this position have been handed over
  OnRows once;
  if (on_rows)
    once = [&](int64_t first, int64_t n_rows, const float* values) -> Result<> {
      if (first < told) return {};
      told = first + n_rows;
      return on_rows(first, n_rows, values);
    };
  const auto attempt = [&]() -> Result<> {
    if (generation != engine->generation) FTH_RETURN_IF_ERROR(restore());
    bytes = 0;
    // A plan that was made anew may have smaller steps than the one that `ids` were cut for.
    for (size_t done = 0; done < ids.size();) {
      const auto most = static_cast<size_t>(engine->options.ubatch) * (overlaps() ? 2 : 1);
      const auto part = ids.subspan(done, std::min(ids.size() - done, most));
      const bool last = done + part.size() == ids.size();
      const Want wanted = want == Want::last_logits && !last ? Want::nothing : want;
      FTH_ASSIGN_OR_RETURN(const uint64_t more, step(*this, part, pos + static_cast<int64_t>(done), wanted, once));
      bytes += more;
      done += part.size();
    }
    return {};
  };
  FTH_RETURN_IF_ERROR(engine->surviving(attempt));
  return bytes;
}

}  // namespace fth
