#pragma once
// Blocks of threads on a GPU: block.h's contract over CUDA. For nvcc alone.

#include "backends/cuda/kernels/block.h"

namespace fth::cuda {

template <class Kernel>
class DeviceBlock {
 public:
  using Shared = typename Kernel::Shared;
  template <class T>
  struct PerThread {
    T value;
    __device__ __forceinline__ T& operator[](uint32_t) { return value; }
  };

  __device__ __forceinline__ explicit DeviceBlock(Shared& shared) : shared_(shared) {}
  __device__ __forceinline__ uint32_t x() const { return blockIdx.x; }
  __device__ __forceinline__ uint32_t y() const { return blockIdx.y; }

  template <class F>
  __device__ __forceinline__ void phase(F&& f) {
    f(static_cast<uint32_t>(threadIdx.x), shared_);
    __syncthreads();
  }
  template <class F>
  __device__ __forceinline__ void step(F&& f) {
    f(static_cast<uint32_t>(threadIdx.x));
  }
  template <uint32_t kCount>
  __device__ __forceinline__ void warp_sum(PerThread<Floats<kCount>>& p) {
    FTH_UNROLL
    for (uint32_t i = 0; i < kCount; ++i) {
      FTH_UNROLL
      for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2)
        p.value.v[i] += __shfl_xor_sync(0xffffffffu, p.value.v[i], static_cast<int>(distance));
    }
  }
  template <uint32_t kCount>
  __device__ __forceinline__ void warp_max(PerThread<Floats<kCount>>& p) {
    FTH_UNROLL
    for (uint32_t i = 0; i < kCount; ++i) {
      FTH_UNROLL
      for (uint32_t distance = kWarp / 2; distance > 0; distance /= 2)
        p.value.v[i] = fmaxf(p.value.v[i], __shfl_xor_sync(0xffffffffu, p.value.v[i], static_cast<int>(distance)));
    }
  }

 private:
  Shared& shared_;
};

}  // namespace fth::cuda
