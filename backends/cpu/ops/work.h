#pragma once
// Steps as numbered items of work, so that one parallel loop can hold several: items of a later step wait for those of an earlier one. Threads take items in
// ascending order (fth_host::parallel_for), so whatever an item waits for runs already, or is done: nothing deadlocks.

#include <atomic>
#include <cstdint>

#include "backends/cpu/segment.h"
#include "core/base/relax.h"

namespace fth::cpu {

// Pairs with the acquire-release subtractions: what was written before the last of them is seen. Spins about as long as an item takes, then sleeps, as the
// other thread may have lost its core.
inline void wait_for_zero(std::atomic_ref<int32_t> left) {
  for (int i = 0; i < 1024; ++i) {
    if (left.load(std::memory_order_acquire) == 0) return;
    relax();
  }
  for (int32_t seen = left.load(std::memory_order_acquire); seen != 0; seen = left.load(std::memory_order_acquire))
    left.wait(seen, std::memory_order_acquire);
}

// Attention of a submit: make() stores its keys and values in the cache.
class AttentionWork {
 public:
  static Result<AttentionWork> make(const AttentionStep& step, const Run& run);
  int64_t n_items() const { return tiles_ * s_.kv_heads * parts_; }
  void operator()(int64_t item) const;

 private:
  AttentionWork(const AttentionStep& step, const Run& run);
  std::byte* const* k_pages() const { return s_.paged ? run_.slots + s_.k_pages : &run_.values[s_.k_cache]; }
  std::byte* const* v_pages() const { return s_.paged ? run_.slots + s_.v_pages : &run_.values[s_.v_cache]; }

  const AttentionStep& s_;
  const Run& run_;
  uint64_t cell_bytes_;
  int64_t tokens_, tiles_, heads_, parts_;  // tokens of a tile, tiles; query heads of an item, items of a kv head
};

// The products of one x.
class MatmulWork {
 public:
  MatmulWork(const MatmulStep& step, const Run& run);
  int64_t n_items() const { return items_; }
  void operator()(int64_t item) const;

 private:
  const MatmulStep& s_;
  const Run& run_;
  int64_t all_rows_ = 0, items_ = 0;
};

// Asks for the first block of cells that a token's attention reads: its products are computed meanwhile.
void prefetch_cells(const AttentionStep& step, const Run& run);

// Runs the steps from steps[at] on that share a loop, one at least, and moves `at` behind them.
Result<> run_steps(const std::vector<Step>& steps, size_t* at, const Run& run);

}  // namespace fth::cpu
