#pragma once
// What a number of slots and a policy make of a routing trace, without storage: the decisions of ExpertStore, taken by the same Usage in the same order, and nothing
// else of it (replay_test compares the two). For the planner's predictions and for bench/expert_io.

#include <cstdint>
#include <vector>

#include "core/base/result.h"
#include "core/experts/trace.h"
#include "core/experts/usage.h"

namespace fth {

struct Replay {
  int64_t tokens = 0;  // that were counted
  uint64_t requested = 0, misses = 0;
  // [layer][m]: share of the layer's requests that missed m experts; empty for a layer that has none.
  std::vector<std::vector<double>> miss_shares;
  double hit_rate() const { return requested > 0 ? 1 - static_cast<double>(misses) / static_cast<double>(requested) : 0; }
};

// One request per row. The first `warmup` tokens fill the slots and are not counted. invalid_argument for fewer than top_k slots, or a warmup that leaves no token.
Result<Replay> replay(const ExpertTrace& trace, Policy policy, int64_t n_slots, int64_t warmup);
// The policy that knows the future (Belady): what no policy can beat.
Result<Replay> replay_optimum(const ExpertTrace& trace, int64_t n_slots, int64_t warmup);

// What is taken for granted of a model that no trace is at hand of: experts used as the SmallThinker report says (SyntheticTrace's defaults). The share of uses that hit
// when slots hold `share` of all experts: a replay of such traces with the default policy, as a table, for choices that have no time for a replay.
double assumed_hit_rate(double share);
// Chance that a token uses each expert of a layer, most used first; sums to top_k.
std::vector<double> assumed_popularity(int64_t n_expert, int64_t top_k);

}  // namespace fth
