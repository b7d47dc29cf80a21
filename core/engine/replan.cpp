// The plan made again while the model runs: a device is gone, and the CPU cannot take its work over within the RAM that was planned with.
#include <utility>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"

namespace fth {

// As open() decides, with steps as large as they were where that is possible: sessions are in the middle of theirs.
Result<> Engine::Impl::decide_again() {
  Result<> decided = decide_with(options.ubatch);
  const auto no_room = [&] { return !decided && decided.error().code == Code::resource_exhausted; };
  if (no_room()) {
    options.ubatch = ubatch_wanted;
    decided = decide();
  }
  if (no_room() && screen.plane.bytes > 0) {
    screen.why_not = "the budget has no room for its plane any more";
    screen.plane = {};
    screen.memory = {};
    screen.ready = false;
    options.ubatch = ubatch_wanted;
    decided = decide();
  }
  return decided;
}

void Engine::Impl::let_go() {
  if (store)  // what is read again is as the file has it
    for (Layer& l : model->layers)
      for (Weight* w : {&l.q, &l.k, &l.v, &l.attn_output, &l.gate, &l.up, &l.down}) w->interleaved = w->interleaved_in_file;
  if (store) model->output.interleaved = false;
  background.forget();
  compiled.clear();
  stand_ins.clear();
  other_slots.clear();
  slots = {};
  store.reset();
  weights.clear();
  workspaces.clear();
  workspace_blocks.clear();
  embedding = {};
  embedding_rows = {};
  files.clear();
  dense_place.clear();
  dense = {};
}

Result<> Engine::Impl::plan_without(size_t lost, const Error& why) {
  const std::string name = device(lost).name();
  const Plan before = plan;
  const uint64_t asked = options.ram_budget;
  options.ram_budget = before.ram_limit;  // what is free now says nothing: most of what is taken is ours
  if (options.device == name) options.device = device(0).name();
  std::erase_if(options.rules, [&](const PlacementRule& rule) { return rule.device == name; });
  Result<> decided = decide_again();
  if (decided && streamed() && !(as_in_file.empty() && as_rows.empty())) {  // resident until now, and as the file does not have them
    undo_reorder("experts are streamed from the file as it is, since " + name + " failed");
    decided = decide_again();
  }
  options.ram_budget = asked;
  if (!decided) {
    plan = before;
    ended = Error(decided.error()).context(name + " failed (" + why.message + "), and without it");
    return tl::unexpected<Error>(*ended);
  }

  let_go();
  model->file.release_pages();
  ++generation;
  ++n_plans;
  std::string said = name + " failed: " + why.message + "; the plan was made again without it: " + format_bytes(plan.ram_bytes) +
                     " of RAM of the " + format_bytes(before.ram_limit) + " that were planned with";
  if (streamed() && before.expert_slots != plan.expert_slots)
    said += before.expert_slots > 0
                ? ", " + std::to_string(plan.expert_slots) + " expert slots instead of " + std::to_string(before.expert_slots)
                : ", experts are streamed, with " + std::to_string(plan.expert_slots) + " slots";
  plan.notes.push_back(said);
  if (options.registry.log != nullptr) options.registry.log(options.registry.log_self, FTH_LOG_WARNING, said.c_str());
  Result<> loaded = load_weights();
  if (loaded) loaded = compile_decode();
  if (!loaded && !ended) ended = loaded.error();
  return loaded;
}

}  // namespace fth
