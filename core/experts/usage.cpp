// Two exponential averages per expert, decayed when they are looked at.
#include "core/experts/usage.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <string>

namespace fth {
namespace {

constexpr double kFastHalfLife = 4, kSlowHalfLife = 128, kLfuHalfLife = 64;  // tokens; by replay, docs/memory.md
constexpr double kFastShare = 0.5;
constexpr double kFloor = 1e-4;  // chance of use of an expert that was never seen

std::vector<float> decay_table(double half_life) {
  std::vector<float> table(static_cast<size_t>(half_life * 20));  // beyond, a weight is below a millionth
  for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<float>(std::exp2(-static_cast<double>(i) / half_life));
  return table;
}

double step(const std::vector<float>& table) { return 1.0 - static_cast<double>(table[1]); }

}  // namespace

Result<Policy> policy_from_name(std::string_view name) {
  if (name == "auto") return kDefaultPolicy;
  for (size_t i = 0; i < std::size(kPolicyNames); ++i)
    if (kPolicyNames[i] == name) return static_cast<Policy>(i);
  return fail(Code::invalid_argument, "expert policy \"" + std::string(name) + "\": auto, lru, lfu and reuse are known");
}

Usage::Usage(Policy policy, int64_t n_layer, int64_t n_expert, int64_t n_sparse)
    : policy_(policy),
      n_layer_(n_layer),
      n_expert_(n_expert),
      n_sparse_(static_cast<uint64_t>(n_sparse)),
      uses_(static_cast<size_t>(n_layer * n_expert)),
      fast_(decay_table(kFastHalfLife)),
      slow_(decay_table(policy == Policy::lfu ? kLfuHalfLife : kSlowHalfLife)) {}

void Usage::begin(int64_t layer) {
  ++now_;
  // A layer that comes again at once is a prompt in pieces, not a token, unless the model has no other.
  if (layer < layer_ || (layer == layer_ && n_sparse_ == 1)) ++token_;
  layer_ = layer;
}

double Usage::decayed(double value, uint32_t token, const std::vector<float>& table) const {
  const uint32_t passed = token_ - token;
  return passed < table.size() ? value * static_cast<double>(table[passed]) : 0.0;
}

void Usage::used(size_t key) {
  Use& u = uses_[key];
  u.fast = static_cast<float>(decayed(u.fast, u.token, fast_) + step(fast_));
  u.slow = static_cast<float>(decayed(u.slow, u.token, slow_) + step(slow_));
  u.token = token_;
  u.clock = now_;
}

double Usage::worth(size_t key) const {
  const Use& u = uses_[key];
  switch (policy_) {
    case Policy::lru: return static_cast<double>(u.clock);
    case Policy::lfu: return decayed(u.slow, u.token, slow_) + static_cast<double>(u.clock) * 1e-18;  // ties: the older goes
    case Policy::reuse: break;
  }
  int64_t ahead = static_cast<int64_t>(key) / n_expert_ - layer_;
  if (ahead <= 0) ahead += n_layer_;
  return -(static_cast<double>(n_layer_) * (1.0 / weight(key) - 1.0) + static_cast<double>(ahead));
}

double Usage::weight(size_t key) const {
  const Use& u = uses_[key];
  const double slow = decayed(u.slow, u.token, slow_);
  if (policy_ == Policy::lfu) return slow;
  return std::clamp(kFastShare * decayed(u.fast, u.token, fast_) + (1 - kFastShare) * slow, kFloor, 1.0);
}

void Usage::set_weight(size_t key, double weight) {
  Use& u = uses_[key];
  u.fast = u.slow = static_cast<float>(std::clamp(weight, 0.0, 1.0));
  u.token = token_;
}

}  // namespace fth
