// How many tokens a prefill step takes, and so the plan. With all experts at hand larger steps never lose; when they are streamed, a larger step reads each expert once for more
// tokens, and its activations take the place of slots.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/engine_impl.h"
#include "core/experts/replay.h"
#include "core/plan/stream_model.h"

namespace fth {
namespace {

constexpr int64_t kLeastUbatch = 8;

}  // namespace

Result<> Engine::Impl::decide() {
  if (options.ubatch != 0) return decide_with(options.ubatch);
  const Config& c = model->config;
  std::vector<UbatchChoice> choices;
  std::vector<Plan> plans;
  Result<> outcome;
  for (size_t b = std::size(kBuckets); b-- > 0 && kBuckets[b] >= kLeastUbatch;) {
    UbatchChoice choice;
    choice.ubatch = kBuckets[b];
    outcome = decide_with(choice.ubatch);
    if (!outcome && outcome.error().code != Code::resource_exhausted) return outcome;
    if (outcome && !streamed()) {
      if (!choices.empty()) plan.notes.push_back("prefill in steps of " + std::to_string(options.ubatch) + " tokens: all experts fit then");
      return outcome;
    }
    if (b > 0 && options.n_ctx <= kBuckets[b - 1]) continue;  // the next smaller bucket makes the same steps
    choice.fits = outcome.has_value();
    if (choice.fits) {
      choice.slots = plan.expert_slots;
      const int64_t all = c.n_layer * c.n_expert;
      FTH_ASSIGN_OR_RETURN(const uint64_t bytes, ExpertStore::slot_bytes(expert_source(*model)));
      StorageSpeed storage = options.stream.storage;
      if (storage.bytes_per_second <= 0) storage.bytes_per_second = kUnknownStorage;
      const double hits = assumed_hit_rate(static_cast<double>(plan.expert_slots) / static_cast<double>(all));
      const auto misses = independent_misses(c.n_layer, c.top_k, hits);
      choice.decode_s =
          static_cast<double>(kJobDecode) * predict_decode(stream_costs(plan, c.n_layer, c.top_k, bytes), misses, storage).seconds();
      choice.prompt_s = predict_prompt_seconds(
          {std::min(kJobPrompt, options.n_ctx), options.ubatch, plan.step_seconds, c.n_layer, plan.expert_slots, bytes},
          assumed_popularity(c.n_expert, c.top_k), storage);
    }
    choices.push_back(choice);
  }
  const size_t best = choose_ubatch(choices);
  if (best == choices.size()) return outcome;  // of the smallest: its message has the smallest budget
  FTH_RETURN_IF_ERROR(decide_with(choices[best].ubatch));
  if (best > 0)
    plan.notes.push_back("prefill in steps of " + std::to_string(options.ubatch) + " tokens: " +
                         (choices[0].fits ? "larger steps would leave fewer expert slots (" + std::to_string(plan.expert_slots) + ", not " +
                                                std::to_string(choices[0].slots) + ")"
                                          : std::string("larger ones do not fit")) +
                         "; --ubatch overrules it");
  return {};
}

Result<Plan> Engine::plan_within(uint64_t ram_budget) {
  Impl& m = *impl_;
  const uint64_t ram = m.options.ram_budget;
  const int64_t ubatch = m.options.ubatch;
  const SegmentShapes shapes = m.shapes;
  const std::vector<size_t> placed = m.placed;
  Plan own = std::move(m.plan);
  m.plan = {};
  m.options.ram_budget = ram_budget;
  m.options.ubatch = m.ubatch_wanted;
  const Result<> outcome = m.decide();
  Plan other = std::exchange(m.plan, std::move(own));
  m.options.ram_budget = ram;
  m.options.ubatch = ubatch;
  m.shapes = shapes;
  m.placed = placed;
  if (!outcome) return tl::unexpected<Error>(outcome.error());
  return other;
}

}  // namespace fth
