#pragma once
// How often and how lately each expert was used, and what a policy makes of it: the worth of keeping it. No I/O: the store and bench/expert_io's simulation
// use the same one.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth {

// docs/memory.md has what each did on which trace.
enum class Policy {
  lru,    // the one that was not used for the longest time goes
  lfu,    // the one that was used least goes; uses count half after kLfuHalfLife tokens
  reuse,  // the one that is expected back the latest goes: chance of use from recent and from older tokens, and how far ahead its layer is
};
inline constexpr std::string_view kPolicyNames[] = {"lru", "lfu", "reuse"};
// "auto" is kDefaultPolicy. invalid_argument names the known ones.
inline constexpr Policy kDefaultPolicy = Policy::reuse;
Result<Policy> policy_from_name(std::string_view name);

class Usage {
 public:
  // keys are layer * n_expert + expert; n_sparse: layers that have experts at all.
  Usage(Policy policy, int64_t n_layer, int64_t n_expert, int64_t n_sparse);

  void begin(int64_t layer);  // a request for a layer: moves the clock; a layer before the last one begins a token
  void used(size_t key);      // in that request
  bool within_cycle(size_t key) const {
    return clock(key) != 0 && now_ - clock(key) <= n_sparse_;
  }  // used within the last cycle over the layers
  // Larger is kept longer. Comparable among keys until the next begin() or used().
  double worth(size_t key) const;

  double weight(size_t key) const;             // chance of use per token, 0 to 1, as of now
  void set_weight(size_t key, double weight);  // from a saved warm set
  bool seen(size_t key) const { return uses_[key].token != 0; }
  size_t keys() const { return uses_.size(); }

 private:
  struct Use {
    uint64_t clock = 0;  // request of the last use; 0: never
    uint32_t token = 0;  // up to which fast and slow are decayed
    float fast = 0, slow = 0;
  };
  uint64_t clock(size_t key) const { return uses_[key].clock; }
  double decayed(double value, uint32_t token, const std::vector<float>& table) const;

  Policy policy_;
  int64_t n_layer_, n_expert_, layer_ = -1;
  uint64_t n_sparse_, now_ = 0;
  uint32_t token_ = 1;
  std::vector<Use> uses_;
  std::vector<float> fast_, slow_;  // what a weight shrinks to after i tokens
};

}  // namespace fth
