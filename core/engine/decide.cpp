// What the planner chooses by itself: the tokens of a prefill step, and where the KV cache is. With all experts at hand larger steps never lose; when they are streamed, a
// larger step reads each expert once for more tokens, and its activations take the place of slots. So does a KV cache, which on storage is read again for every token.
#include <algorithm>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"
#include "core/experts/replay.h"
#include "core/plan/stream_model.h"

namespace fth {
namespace {

constexpr int64_t kLeastUbatch = 8;
constexpr double kWorthStorage = 0.95;  // a KV cache on storage has to bring at least this

StorageSpeed storage_of(const StreamOptions& o) {
  StorageSpeed storage = o.storage;
  if (storage.bytes_per_second <= 0) storage.bytes_per_second = kUnknownStorage;
  return storage;
}

}  // namespace

double Engine::Impl::expected_decode_seconds() const {
  const Config& c = model->config;
  const StorageSpeed storage = storage_of(options.stream);
  double seconds = plan.seconds_per_token;
  if (streamed()) {
    const auto bytes = ExpertStore::slot_bytes(expert_source(*model));
    const double hits = assumed_hit_rate(static_cast<double>(plan.expert_slots) / static_cast<double>(c.n_layer * c.n_expert));
    const auto misses = independent_misses(c.n_layer, c.top_k, hits);
    seconds = predict_decode(stream_costs(plan, c.n_layer, c.top_k, bytes.value_or(0)), misses, storage).seconds();
  }
  // Over a context that fills up: pages beyond the resident ones, on average.
  if (kv_pages.n_layers > 0) {
    const double beyond = static_cast<double>(kv_pages.staged());
    const double pages = static_cast<double>(kv_pages.n_layers) * beyond * beyond / (2 * static_cast<double>(kv_pages.n_pages));
    seconds += pages * static_cast<double>(kv_pages.page_bytes()) / storage.bytes_per_second;
  }
  return seconds;
}

void Engine::Impl::measure_choices() {
  if (!options.measure) return;
  const auto named = [&](const std::string& name) {
    return options.device == name ||
           std::any_of(options.rules.begin(), options.rules.end(), [&](const auto& r) { return r.device == name; });
  };
  const std::span<DeviceEntry> devices = registry->devices();
  std::vector<size_t> candidates = {0};
  for (size_t d = 1; d < devices.size() && !options.cpu_only; ++d)
    if (!devices[d].check.wrong && (devices[d].refusal.empty() || named(devices[d].device.name()))) candidates.push_back(d);
  // The costs of decoding and of a whole prefill step are what plans are compared by.
  using Wanted = std::map<std::string, Segment>;
  Wanted choices, others;
  const bool choose = candidates.size() > 1;
  const auto want = [&](SegmentKind kind, int64_t layer) {
    const bool paged = kind == SegmentKind::attention && kv_in_pages(model->layers[static_cast<size_t>(layer)], shapes);
    const bool placed_freely = (kind == SegmentKind::attention && !paged) || kind == SegmentKind::head;
    for (const int64_t bucket : {int64_t{1}, shapes.max_bucket}) {
      if (bucket > 1 && kind == SegmentKind::head) break;
      const std::string& shape = estimates_of(kind, layer, bucket).shape;
      Wanted& to = choose && placed_freely ? choices : others;
      if (to.count(shape) == 0) to.emplace(shape, build_planned(kind, layer, bucket));
    }
  };
  want(SegmentKind::embed, -1);
  for (int64_t layer = 0; layer < model->config.n_layer; ++layer) {
    want(SegmentKind::attention, layer);
    if (!model->config.is_sparse()) continue;
    for (const SegmentKind kind : {SegmentKind::router, SegmentKind::experts, SegmentKind::combine}) want(kind, layer);
  }
  want(SegmentKind::head, -1);
  const auto ask = [&](size_t d, const Wanted& wanted, IfUnmeasured how) {
    std::vector<fth_segment> segments;
    std::vector<const std::string*> names;
    for (const auto& [shape, segment] : wanted) {
      if (measured_runs.count({d, shape}) != 0 || !device(d).estimate(segment.view())) continue;
      segments.push_back(segment.view());
      names.push_back(&shape);
    }
    if (segments.empty()) return;
    std::vector<SegmentRun> runs = options.measure(*registry, d, segments, how);
    runs.resize(segments.size());
    for (size_t i = 0; i < segments.size(); ++i) measured_runs[{d, *names[i]}] = runs[i];
  };
  for (const size_t d : candidates) {
    ask(d, choices, IfUnmeasured::measure);
    ask(d, others, IfUnmeasured::leave);
  }
}

Result<> Engine::Impl::decide_with(int64_t ubatch) {
  const KvOptions& kv = options.kv;
  auto in_memory = plan_for(ubatch, 0, 0);
  if (kv.placement == KvPlacement::memory || (!in_memory && in_memory.error().code != Code::resource_exhausted)) return in_memory;
  const int64_t in_pages =
      std::count_if(model->layers.begin(), model->layers.end(), [&](const Layer& l) { return l.window == 0 || l.window >= options.n_ctx; });
  // Two layers' pages are in RAM at any time: with fewer than three there is nothing to gain. Nor where two tokens' experts have room anyway.
  const Config& c = model->config;
  const bool roomy = in_memory && (!streamed() || plan.expert_slots >= std::min(2 * c.n_layer * c.top_k, c.n_layer * c.n_expert));
  if (kv.placement == KvPlacement::automatic && (in_pages < 3 || roomy)) return in_memory;
  if (kv.page_tokens < 32 || kv.page_tokens % 32 != 0)
    return fail(Code::invalid_argument, "KV pages of " + std::to_string(kv.page_tokens) + " tokens: a multiple of 32 is possible");
  if (in_pages == 0) return fail(Code::invalid_argument, "the KV cache cannot be on storage: every layer of the model has a window");

  const double memory_seconds = in_memory ? kWorthStorage * expected_decode_seconds() : std::numeric_limits<double>::infinity();
  const int64_t least = KvPagesShape::least_resident(shapes.max_bucket, kv.page_tokens);
  auto on_storage = plan_for(ubatch, kv.page_tokens, least);
  const bool forced = kv.placement == KvPlacement::storage;
  if (!on_storage) return in_memory && !forced ? plan_for(ubatch, 0, 0) : on_storage;  // its error has the smaller budget that would work
  // Pages in RAM against slots: some divisions, the fastest of them.
  int64_t best = least;
  double best_seconds = expected_decode_seconds();
  for (const int64_t eighths : {1, 2, 4, 6}) {
    const int64_t resident = kv_pages.n_pages * eighths / 8;
    if (forced || resident <= least || !plan_for(ubatch, kv.page_tokens, resident)) continue;
    if (const double seconds = expected_decode_seconds(); seconds < best_seconds) best = resident, best_seconds = seconds;
  }
  if (!forced && memory_seconds <= best_seconds) return plan_for(ubatch, 0, 0);
  FTH_RETURN_IF_ERROR(plan_for(ubatch, kv.page_tokens, best));
  plan.notes.push_back("the KV cache of " + std::to_string(in_pages) + " layers without a window is on storage but for the newest " +
                       std::to_string(kv_pages.resident * kv_pages.page_cells) + " tokens: a full context reads " +
                       format_bytes(static_cast<uint64_t>(kv_pages.n_layers * kv_pages.staged()) * kv_pages.page_bytes()) +
                       " per token from " + kv.directory.string() +
                       "; --kv-type q8_0 halves it, a larger --ram or a smaller --ctx avoids it");
  return {};
}

Result<> Engine::Impl::decide() {
  if (options.ubatch != 0) return decide_with(options.ubatch);
  const Config& c = model->config;
  std::vector<UbatchChoice> choices;
  Result<> outcome;
  for (size_t b = std::size(kBuckets); b-- > 0 && kBuckets[b] >= kLeastUbatch;) {
    UbatchChoice choice;
    choice.ubatch = kBuckets[b];
    outcome = decide_with(choice.ubatch);
    if (!outcome && outcome.error().code != Code::resource_exhausted) return outcome;
    const bool all_fit = outcome && !streamed();
    const bool resident_before = !choices.empty() && choices[0].fits && choices[0].slots == 0;
    if (all_fit && (choices.empty() ? !smaller_steps_may_pay() : !resident_before)) {
      if (!choices.empty()) plan.notes.push_back("prefill in steps of " + std::to_string(options.ubatch) + " tokens: all experts fit then");
      return outcome;
    }
    if (b > 0 && options.n_ctx <= kBuckets[b - 1]) continue;  // the next smaller bucket makes the same steps
    choice.fits = outcome.has_value() && (!resident_before || plan.overlap);
    if (choice.fits) {
      choice.slots = plan.expert_slots;
      // With all experts at hand larger steps lose only where two could be under way at once, and a usual prompt is one.
      FTH_ASSIGN_OR_RETURN(const uint64_t bytes, ExpertStore::slot_bytes(expert_source(*model)));
      const StorageSpeed storage = storage_of(options.stream);
      choice.decode_s = static_cast<double>(kJobDecode) * expected_decode_seconds();
      choice.prompt_s = predict_prompt_seconds({std::min(kJobPrompt, options.n_ctx), options.ubatch, plan.step_seconds, c.n_layer,
                                                plan.expert_slots, bytes, plan.overlap_seconds},
                                               assumed_popularity(c.n_expert, c.top_k), storage);
    }
    choices.push_back(choice);
  }
  const size_t best = choose_ubatch(choices);
  if (best == choices.size()) return outcome;  // of the smallest: its message has the smallest budget
  FTH_RETURN_IF_ERROR(decide_with(choices[best].ubatch));
  if (best > 0)
    plan.notes.push_back("prefill in steps of " + std::to_string(options.ubatch) + " tokens: " +
                         (plan.overlap && !streamed() ? std::string("two of them at once, one's attention beside the other's experts")
                          : choices[0].fits ? "larger steps would leave fewer expert slots (" + std::to_string(plan.expert_slots) +
                                                  ", not " + std::to_string(choices[0].slots) + ")"
                                            : std::string("larger ones do not fit")) +
                         "; --ubatch overrules it");
  return {};
}

Result<Plan> Engine::plan_within(uint64_t ram_budget) {
  Impl& m = *impl_;
  const uint64_t ram = m.options.ram_budget;
  const int64_t ubatch = m.options.ubatch;
  const SegmentShapes shapes = m.shapes;
  const KvPagesShape kv_pages = m.kv_pages;
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
  m.kv_pages = kv_pages;
  m.placed = placed;
  if (!outcome) return tl::unexpected<Error>(outcome.error());
  return other;
}

}  // namespace fth
