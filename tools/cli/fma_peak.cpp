// Chains of multiply-adds, enough of them at once to fill the units: 16 registers cover 2 units of 4 to 8 cycles.

#include "tools/cli/fma_peak.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fth::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kChains = 16, kRounds = 20000;

// Runs kRounds rounds, returns their FLOP; `sink` makes the work count.
using Kernel = double (*)(float* sink);

#if defined(__x86_64__)
[[gnu::target("avx512f")]] double fma_512(float* sink) {
  __m512 sum[kChains];
  for (int c = 0; c < kChains; ++c) sum[c] = _mm512_set1_ps(static_cast<float>(c));
  const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
  for (int i = 0; i < kRounds; ++i)
    for (auto& s : sum) s = _mm512_fmadd_ps(s, a, b);
  for (int c = 1; c < kChains; ++c) sum[0] = _mm512_add_ps(sum[0], sum[c]);
  *sink += _mm512_cvtss_f32(sum[0]);
  return 2.0 * 16 * kChains * kRounds;
}

[[gnu::target("avx2,fma")]] double fma_256(float* sink) {
  constexpr int kHere = 12;  // of 16 registers, two hold the factors
  __m256 sum[kHere];
  for (int c = 0; c < kHere; ++c) sum[c] = _mm256_set1_ps(static_cast<float>(c));
  const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
  for (int i = 0; i < kRounds; ++i)
    for (auto& s : sum) s = _mm256_fmadd_ps(s, a, b);
  for (int c = 1; c < kHere; ++c) sum[0] = _mm256_add_ps(sum[0], sum[c]);
  *sink += _mm256_cvtss_f32(sum[0]);
  return 2.0 * 8 * kHere * kRounds;
}
#endif

// As wide as the compiler's target has it.
double plain(float* sink) {
  constexpr int kHere = 64;
  float sum[kHere];
  for (int c = 0; c < kHere; ++c) sum[c] = static_cast<float>(c);
  for (int i = 0; i < kRounds; ++i)
    for (float& s : sum) {
#if defined(__aarch64__)
      s = __builtin_fmaf(s, 0.999f, 0.001f);
#else
      s = s * 0.999f + 0.001f;
#endif
    }
  for (const float s : sum) *sink += s;
  return 2.0 * kHere * kRounds;
}

Kernel best_kernel() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return fma_512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return fma_256;
#endif
  return plain;
}

}  // namespace

double peak_flops(uint32_t n_threads) {
  const Kernel kernel = best_kernel();
  const uint32_t n = std::max(1u, n_threads);
  std::vector<double> rate(n, 0);
  std::vector<float> sinks(n * size_t{16}, 0);  // a cache line each
  // Each thread's best short pass: a pass that another program interrupted says nothing about the CPU.
  const auto work = [&](uint32_t t) {
    const auto end = Clock::now() + std::chrono::milliseconds(60);
    for (auto now = Clock::now(); now < end;) {
      const double flops = kernel(&sinks[t * size_t{16}]);
      const auto after = Clock::now();
      rate[t] = std::max(rate[t], flops / std::chrono::duration<double>(after - now).count());
      now = after;
    }
  };
  std::vector<std::thread> threads;
  try {
    for (uint32_t t = 1; t < n; ++t) threads.emplace_back(work, t);
  } catch (const std::system_error&) {
    // Fewer threads: their share is missing from the sum, as it will be from the work.
  }
  work(0);
  for (std::thread& thread : threads) thread.join();
  double sum = 0;
  for (const double r : rate) sum += r;
  return sum;
}

}  // namespace fth::cli
