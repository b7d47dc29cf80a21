#pragma once
// What a run is expected to cost when its experts come from storage: pure functions of what a token computes, what a replay says it misses (core/experts/replay.h)
// and how fast storage is. docs/memory.md says how far off they were.

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/plan/plan.h"

namespace fth {

struct StorageSpeed {
  double bytes_per_second = 0;
  double wait_seconds = 0;  // before the first bytes come, each time that reads start on an idle queue
};

inline constexpr double kUnknownStorage = 1e9;  // bytes per second, where nothing was measured

// One token's computing, from the plan.
struct StreamCosts {
  struct Layer {
    double attention_s = 0, experts_s = 0;  // experts_s: of all top_k; 0 for a layer without experts
  };
  std::vector<Layer> layers;
  double other_s = 0;  // routers, embedding, combining, head, copies: nothing is read meanwhile
  int64_t top_k = 0;
  uint64_t expert_bytes = 0;  // read for one expert
};
StreamCosts stream_costs(const Plan& plan, int64_t n_layer, int64_t top_k, uint64_t expert_bytes);

enum class Bound { compute, storage };
constexpr std::string_view kBoundNames[] = {"compute", "storage"};
constexpr std::string_view name(Bound b) { return kBoundNames[static_cast<size_t>(b)]; }

// Per token.
struct StreamPrediction {
  double hit_rate = 1;
  double bytes = 0;      // from storage
  double compute_s = 0;  // if nothing were read
  double io_s = 0;       // if nothing were computed
  double stall_s = 0;    // computing waits for storage
  Bound bound = Bound::compute;
  double seconds() const { return compute_s + stall_s; }
  double tokens_per_second() const { return seconds() > 0 ? 1 / seconds() : 0; }
  double bound_seconds() const { return compute_s > io_s ? compute_s : io_s; }  // with perfect overlap
};

// miss_shares[layer][m]: share of tokens that miss m of the layer's experts; an empty row misses none. A layer's reads start behind its router and run beside attention and
// the experts that are there; the last to land has its own computing after it. So a layer takes its computing, or its reads and one expert, whichever is longer.
// Without a speed of storage (0) nothing is ever read in time: the prediction is infinite unless nothing is missed.
StreamPrediction predict_decode(const StreamCosts& costs, std::span<const std::vector<double>> miss_shares, const StorageSpeed& storage);

// Misses when every expert is resident with the same chance, independently: binomial.
std::vector<std::vector<double>> independent_misses(int64_t n_layer, int64_t top_k, double hit_rate);

// Experts of a layer that n tokens use together, when a token uses the e-th with the chance popularity[e].
double distinct_experts(std::span<const double> popularity, int64_t n_tokens);

// A prompt in steps of `ubatch` tokens.
struct PromptCosts {
  int64_t tokens = 0, ubatch = 0;
  double step_s = 0;    // computing one step, all layers
  int64_t n_layer = 0;  // that have experts
  int64_t slots = 0;    // 0: all experts are resident
  uint64_t expert_bytes = 0;
  double overlap_s = 0;  // computing each of two steps at once; 0: one after the other
};
// From a cold store: the first step reads every expert that it uses, the later ones those that found no slot; reading runs beside computing.
double predict_prompt_seconds(const PromptCosts& costs, std::span<const double> popularity, const StorageSpeed& storage);

// One size of prefill steps that the planner looked at.
struct UbatchChoice {
  int64_t ubatch = 0;
  bool fits = false;
  int64_t slots = 0;                  // 0: all experts are resident
  double prompt_s = 0, decode_s = 0;  // of a job of kJobPrompt and kJobDecode tokens
};
inline constexpr int64_t kJobPrompt = 512, kJobDecode = 256;
// Larger steps read each expert once for more tokens, but their activations take the place of slots. The largest that fits, unless a smaller one does the job in less than
// kWorthSmaller of its time: estimates do not know that kernels like many rows. Index, or choices.size() when none fits. Choices go from the largest to the smallest.
inline constexpr double kWorthSmaller = 0.95;
size_t choose_ubatch(std::span<const UbatchChoice> choices);

}  // namespace fth
