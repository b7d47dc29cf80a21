#pragma once
// What kernels are written in: code of one block of threads, in phases. A GPU runs a phase on all threads at once with a barrier behind it
// (device_block.h); a host compiler runs it as a loop over the threads (tests/cuda). So the arithmetic is the same text in both.
//
//   struct Kernel {
//     static constexpr uint32_t kThreads;   // of a block, whole warps
//     struct Shared;                        // of a block
//     template <class Block> static void run(Block& b, const Params& p);
//   };
//   b.x(), b.y()                            // the block's place in the grid
//   Block::PerThread<T> v;                  // a variable of each thread: v[t]; t is a thread's own index, never another's
//   b.phase([&](uint32_t t, Shared& s) {})  // then every thread waits for all. What a phase writes to s only later phases read.
//   b.step([&](uint32_t t) {})              // without the wait: variables and global memory alone
//   b.warp_sum(v), b.warp_max(v)            // of PerThread<Floats<n>>, element by element: every thread of a warp gets the same bits
//
// run() branches and loops alike in all threads of a block; only inside of phases and steps may threads differ.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/base/dtype.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define FTH_GPU __device__ __forceinline__
#define FTH_UNROLL _Pragma("unroll")
#else
#include <bit>

#include "core/base/half.h"
#define FTH_GPU inline
#define FTH_UNROLL
#endif

namespace fth::cuda {

inline constexpr uint32_t kWarp = 32;
inline constexpr uint32_t kMostTensors = 6, kMostNumbers = 8;

// The parameters of every kernel; each names its tensors and numbers.
struct Params {
  std::byte* tensor[kMostTensors];
  uint32_t number[kMostNumbers];
  float real;
  uint32_t pos, n_tokens;  // of the submit

  FTH_GPU const float* floats(uint32_t i) const { return reinterpret_cast<const float*>(tensor[i]); }
  FTH_GPU float* out(uint32_t i) const { return reinterpret_cast<float*>(tensor[i]); }
};

template <uint32_t kCount>
struct Floats {
  float v[kCount];
};
struct alignas(16) Float4 {
  float v[4];
};
struct alignas(16) Words4 {
  uint32_t v[4];
};
struct NoShared {};

// One rounding where the processor has it at no cost; nvcc contracts nothing by itself (-fmad=false).
FTH_GPU float multiply_add(float a, float b, float c) {
#if defined(__CUDACC__) || defined(FP_FAST_FMAF)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

FTH_GPU uint32_t bits_of(float f) {
#if defined(__CUDACC__)
  return __float_as_uint(f);
#else
  return std::bit_cast<uint32_t>(f);
#endif
}
FTH_GPU float float_of(uint32_t bits) {
#if defined(__CUDACC__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}
FTH_GPU float half_to_float(uint16_t h) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(h));
#else
  return f16_to_f32(h);
#endif
}
FTH_GPU uint16_t float_to_half(float f) {
#if defined(__CUDACC__)
  return __half_as_ushort(__float2half_rn(f));
#else
  return f32_to_f16(f);
#endif
}
FTH_GPU float bfloat_to_float(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

// The 32 bits from bit `shift` (0 .. 31) of high:low on.
FTH_GPU uint32_t shifted_pair(uint32_t low, uint32_t high, uint32_t shift) {
#if defined(__CUDACC__)
  return __funnelshift_r(low, high, shift);
#else
  return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32) | low) >> shift);
#endif
}

// Byte b of `word` as 2^23 + byte, whose difference to another such number is exact: integers become floats at the price of an add.
inline constexpr float kMagic = 8388608.0f;
FTH_GPU float magic_of_byte(uint32_t word, uint32_t b) {
#if defined(__CUDACC__)
  return float_of(__byte_perm(word, 0x4b000000u, 0x7540u | b));
#else
  return float_of(0x4b000000u | ((word >> (8 * b)) & 255u));
#endif
}

FTH_GPU void raise_to(uint32_t* word, uint32_t value) {
#if defined(__CUDACC__)
  atomicMax(word, value);
#else
  *word = *word < value ? value : *word;
#endif
}

// Aligned loads; on the host through memcpy, which no aliasing rule minds.
template <class T>
FTH_GPU T load(const std::byte* p) {
#if defined(__CUDACC__)
  return *reinterpret_cast<const T*>(p);
#else
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
#endif
}

FTH_GPU uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }
FTH_GPU uint32_t larger(uint32_t a, uint32_t b) { return a < b ? b : a; }

}  // namespace fth::cuda
