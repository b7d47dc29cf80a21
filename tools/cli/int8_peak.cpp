// One function per instruction set, chosen at run time. The empty asm statements hide that the factors never change: otherwise the compiler would take the products out
// of the loop. Ten sums at a time cover the latency of the longest chain.

#include "tools/cli/int8_peak.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#include <cstddef>

namespace fth::cli {

namespace {

constexpr size_t kSums = 10;

#if defined(__x86_64__)

[[gnu::target("avx2")]] int32_t run_avx2(int64_t rounds) {
  __m256i sums[kSums], left[kSums];
  for (size_t i = 0; i < kSums; ++i) sums[i] = _mm256_setzero_si256(), left[i] = _mm256_set1_epi8(static_cast<char>(i + 1));
  __m256i right = _mm256_set1_epi8(3);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile("" : "+x"(right));
    for (size_t i = 0; i < kSums; ++i) sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(left[i], right), ones));
  }
  for (size_t i = 1; i < kSums; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  return static_cast<int32_t>(sums[0][0]);
}

[[gnu::target("avx2,avxvnni")]] int32_t run_avx_vnni(int64_t rounds) {
  __m256i sums[kSums];
  for (__m256i& s : sums) s = _mm256_setzero_si256();
  __m256i left = _mm256_set1_epi8(2), right = _mm256_set1_epi8(3);
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile("" : "+x"(left), "+x"(right));
    for (__m256i& s : sums) s = _mm256_dpbusd_avx_epi32(s, left, right);
  }
  for (size_t i = 1; i < kSums; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  return static_cast<int32_t>(sums[0][0]);
}

[[gnu::target("avx512f,avx512vnni")]] int32_t run_avx512_vnni(int64_t rounds) {
  __m512i sums[kSums];
  for (__m512i& s : sums) s = _mm512_setzero_si512();
  __m512i left = _mm512_set1_epi8(2), right = _mm512_set1_epi8(3);
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile("" : "+v"(left), "+v"(right));
    for (__m512i& s : sums) s = _mm512_dpbusd_epi32(s, left, right);
  }
  for (size_t i = 1; i < kSums; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  return static_cast<int32_t>(sums[0][0]);
}

bool has_avx_vnni() {  // CPUID leaf 7, subleaf 1, EAX bit 4; the compiler's own check does not know the name everywhere
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
}

#elif defined(__aarch64__)

// Written out: the intrinsics exist only in files that are compiled for them.
#if defined(__clang__)
#define FTH_TARGET(extension) [[gnu::target(extension)]]
#else
#define FTH_TARGET(extension) [[gnu::target("arch=armv8.2-a+" extension)]]
#endif
#define FTH_PEAK_LOOP(name, instruction, extension)                                                                    \
  FTH_TARGET(extension) int32_t name(int64_t rounds) {                                                                 \
    int32x4_t sums[kSums];                                                                                             \
    for (int32x4_t & s : sums) s = vdupq_n_s32(0);                                                                     \
    const int8x16_t left = vdupq_n_s8(2), right = vdupq_n_s8(3);                                                       \
    for (int64_t r = 0; r < rounds; ++r)                                                                               \
      for (int32x4_t & s : sums) asm volatile(instruction " %0.4s, %1.16b, %2.16b" : "+w"(s) : "w"(left), "w"(right)); \
    for (size_t i = 1; i < kSums; ++i) sums[0] = vaddq_s32(sums[0], sums[i]);                                          \
    return vgetq_lane_s32(sums[0], 0);                                                                                 \
  }
FTH_PEAK_LOOP(run_sdot, "sdot", "dotprod")
FTH_PEAK_LOOP(run_smmla, "smmla", "i8mm")
#undef FTH_PEAK_LOOP
#undef FTH_TARGET

#endif

int32_t run_portable(int64_t rounds) {
  constexpr size_t kWidth = 64;
  int8_t left[kWidth], right[kWidth];
  uint32_t sums[kWidth] = {};
  for (size_t i = 0; i < kWidth; ++i) left[i] = static_cast<int8_t>(i), right[i] = static_cast<int8_t>(3 * i);
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile("" : : "r"(left), "r"(right) : "memory");
    for (size_t i = 0; i < kWidth; ++i) sums[i] += static_cast<uint32_t>(left[i] * right[i]);
  }
  for (size_t i = 1; i < kWidth; ++i) sums[0] += sums[i];
  return static_cast<int32_t>(sums[0]);
}

constexpr Int8Loop kPortable{"what the compiler makes of a loop", 2 * 64, run_portable};

}  // namespace

const Int8Loop& int8_loop() {
#if defined(__x86_64__)
  static constexpr Int8Loop kAvx512{"avx512-vnni: vpdpbusd", kSums * 2 * 64, run_avx512_vnni};
  static constexpr Int8Loop kAvxVnni{"avx-vnni: vpdpbusd", kSums * 2 * 32, run_avx_vnni};
  static constexpr Int8Loop kAvx2{"avx2: vpmaddubsw, vpmaddwd, vpaddd", kSums * 2 * 32, run_avx2};
  if (__builtin_cpu_supports("avx512vnni") != 0) return kAvx512;
  if (__builtin_cpu_supports("avx2") != 0) return has_avx_vnni() ? kAvxVnni : kAvx2;
#elif defined(__aarch64__)
  static constexpr Int8Loop kSdot{"neon: sdot", kSums * 2 * 16, run_sdot};
  static constexpr Int8Loop kSmmla{"neon: smmla", kSums * 2 * 32, run_smmla};
  constexpr unsigned long kAsimdDp = 1ul << 20, kI8mm = 1ul << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  if ((getauxval(AT_HWCAP2) & kI8mm) != 0) return kSmmla;
  if ((getauxval(AT_HWCAP) & kAsimdDp) != 0) return kSdot;
#endif
  return kPortable;
}

}  // namespace fth::cli
