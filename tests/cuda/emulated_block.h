#pragma once
// Blocks of threads on the host: block.h's contract as loops. Every phase is a loop over the threads, in ascending or descending order: where the order
// within a phase changes a result, the kernel has a race that a GPU would lose at times.

#include <array>
#include <cstring>
#include <vector>

#include "backends/cuda/kernels/all.h"

namespace fth::cuda {

template <class Kernel>
class EmulatedBlock {
 public:
  using Shared = typename Kernel::Shared;
  static constexpr uint32_t kThreads = Kernel::kThreads;
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024 && sizeof(Shared) <= 48 * 1024);

  template <class T>
  class PerThread {
   public:
    PerThread() : values_(kThreads) { std::memset(values_.data(), 0xff, kThreads * sizeof(T)); }  // NaN, as nothing was written
    T& operator[](uint32_t t) { return values_[t]; }

   private:
    std::vector<T> values_;
  };

  EmulatedBlock(Shared& shared, uint32_t x, uint32_t y, bool descending) : shared_(shared), x_(x), y_(y), descending_(descending) {
    std::memset(static_cast<void*>(&shared), 0xff, sizeof shared);
  }
  uint32_t x() const { return x_; }
  uint32_t y() const { return y_; }

  template <class F>
  void phase(F&& f) {
    step([&](uint32_t t) { f(t, shared_); });
  }
  template <class F>
  void step(F&& f) {
    for (uint32_t i = 0; i < kThreads; ++i) f(descending_ ? kThreads - 1 - i : i);
  }
  template <uint32_t kCount>
  void warp_sum(PerThread<Floats<kCount>>& p) {
    across_warps(p, [](float a, float b) { return a + b; });
  }
  template <uint32_t kCount>
  void warp_max(PerThread<Floats<kCount>>& p) {
    across_warps(p, [](float a, float b) { return std::fmax(a, b); });
  }

 private:
  // The butterfly of a GPU's shuffles: in each round a thread takes in its partner's value.
  template <uint32_t kCount, class F>
  void across_warps(PerThread<Floats<kCount>>& p, F&& both) {
    for (uint32_t warp = 0; warp < kThreads; warp += kWarp) {
      for (uint32_t i = 0; i < kCount; ++i) {
        std::array<float, kWarp> lane{}, next{};
        for (uint32_t t = 0; t < kWarp; ++t) lane[t] = p[warp + t].v[i];
        for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2) {
          for (uint32_t t = 0; t < kWarp; ++t) next[t] = both(lane[t], lane[t ^ distance]);
          lane = next;
        }
        for (uint32_t t = 0; t < kWarp; ++t) p[warp + t].v[i] = lane[t];
      }
    }
  }

  Shared& shared_;
  uint32_t x_, y_;
  bool descending_;
};

}  // namespace fth::cuda
