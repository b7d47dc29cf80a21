// Forced into the AVX-512 units of kernels_emulated_test: their intrinsics as library functions over AVX2 (SIMDe), so that machines without AVX-512 test
// what those units compute. Not for speed.
#pragma once
#include <immintrin.h>
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.7.4 lacks, or gives the arguments of the masked form.
#undef _mm512_madd_epi16
static inline __m512i fth_madd_epi16(__m512i a, __m512i b) {
  const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
  simde__m512i_private r;
  for (int i = 0; i < 2; ++i) r.m256i[i] = _mm256_madd_epi16(x.m256i[i], y.m256i[i]);
  return simde__m512i_from_private(r);
}
#define _mm512_madd_epi16 fth_madd_epi16
static inline __m512 fth_cvtph_ps(__m256i a) {
  simde__m512_private r;
  r.m256[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
  r.m256[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
  return simde__m512_from_private(r);
}
#define _mm512_cvtph_ps fth_cvtph_ps
static inline __m256i fth_cvtps_ph(__m512 a) {
  const simde__m512_private x = simde__m512_to_private(a);
  return _mm256_setr_m128i(_mm256_cvtps_ph(x.m256[0], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                           _mm256_cvtps_ph(x.m256[1], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(a, rounding) fth_cvtps_ph(a)
static inline __m512i fth_cvtepu16_epi32(__m256i a) {
  simde__m512i_private r;
  r.m256i[0] = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(a));
  r.m256i[1] = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1));
  return simde__m512i_from_private(r);
}
#define _mm512_cvtepu16_epi32 fth_cvtepu16_epi32
static inline __m512i fth_cvtepi8_epi32(__m128i a) {
  simde__m512i_private r;
  r.m256i[0] = _mm256_cvtepi8_epi32(a);
  r.m256i[1] = _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8));
  return simde__m512i_from_private(r);
}
#define _mm512_cvtepi8_epi32 fth_cvtepi8_epi32
static inline __m512 fth_cvtepi32_ps(__m512i a) {
  const simde__m512i_private x = simde__m512i_to_private(a);
  simde__m512_private r;
  for (int i = 0; i < 2; ++i) r.m256[i] = _mm256_cvtepi32_ps(x.m256i[i]);
  return simde__m512_from_private(r);
}
#define _mm512_cvtepi32_ps fth_cvtepi32_ps
static inline __m512i fth_cvtps_epi32(__m512 a) {
  const simde__m512_private x = simde__m512_to_private(a);
  simde__m512i_private r;
  for (int i = 0; i < 2; ++i) r.m256i[i] = _mm256_cvtps_epi32(x.m256[i]);
  return simde__m512i_from_private(r);
}
#define _mm512_cvtps_epi32 fth_cvtps_epi32
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(a, half) (simde__m512_to_private(a).m256[half])
#define asm(...)  // constraints of registers that are not there
#if defined(FTH_EMULATE_VNNI)
#define __AVX512VNNI__ 1
#endif
