// Forced into the AVX-VNNI unit of kernels_emulated_test: its one instruction, exact, in AVX2. Not for speed.
#pragma once
#include <immintrin.h>
static inline __m256i fth_dpbusd(__m256i sum, __m256i w, __m256i a) {
  // Even and odd bytes apart, as 16-bit numbers: unsigned codes, signed activations.
  const __m256i low = _mm256_set1_epi16(0xff);
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(w, low), _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(a, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
#define _mm256_dpbusd_avx_epi32 fth_dpbusd
#define __AVXVNNI__ 1
