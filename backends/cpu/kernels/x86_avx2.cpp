// The kernels for AVX2 with FMA and F16C: 8 floats or 8 rows to a vector.
#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

constexpr int64_t kRows = 8, kCols = 4, kTileCols = 3, kPanelMinCols = 3, kNeuronPanelMinCols = 3;

#include "backends/cpu/kernels/x86_256.inc"
#include "backends/cpu/kernels/x86_neuron.inc"

using F = __m256;
constexpr int64_t kF = 8;
inline F f_load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
inline F f_load_f16(const uint8_t* p) { return _mm256_cvtph_ps(load128(p)); }
inline F f_load_bf16(const uint8_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16)); }
inline F f_load_codes(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void f_store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void f_store_f16(uint16_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F f_set(float v) { return _mm256_set1_ps(v); }
inline F f_add(F a, F b) { return _mm256_add_ps(a, b); }
inline F f_sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F f_mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F f_div(F a, F b) { return _mm256_div_ps(a, b); }
inline F f_fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F f_fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }
inline F f_max(F a, F b) { return _mm256_max_ps(a, b); }
inline F f_min(F a, F b) { return _mm256_min_ps(a, b); }
inline F f_round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F f_pow2(F n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)); }
inline float f_sum(F a) {
  __m128 v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
}
inline float f_top(F a) {
  __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  v = _mm_max_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
}

using I = __m256i;
using V = __m256;
inline V v_load(const float* p) { return f_load(p); }
inline void v_store(float* p, V v) { f_store(p, v); }
inline V v_set(float v) { return f_set(v); }
inline V v_mul(V a, V b) { return f_mul(a, b); }
inline V v_fma(V a, V b, V c) { return f_fma(a, b, c); }
inline V i_to_float(I v) { return _mm256_cvtepi32_ps(v); }
// Forbids the compiler to reorder a chain of additions into a tree, whose leaves do not fit the registers (measured: half the speed).
inline I keep(I v) {
  asm("" : "+x"(v));
  return v;
}
inline I four_of(const int8_t* a) { return _mm256_set1_epi32(load_as<int32_t>(a)); }

// Nibbles only: eight steps of 2 * 15 * 127 fit int16.
template <int C>
inline void dot_unsigned(const uint8_t* w, const int8_t* const* a, I* dot) {
  for (int i = 0; i < 8; ++i) {
    const I codes = load256(w + i * 32);
    for (int c = 0; c < C; ++c) {
      const I p = _mm256_maddubs_epi16(codes, four_of(a[c] + i * 4));
      dot[c] = keep(i == 0 ? p : _mm256_add_epi16(dot[c], p));
    }
  }
  for (int c = 0; c < C; ++c) dot[c] = _mm256_madd_epi16(dot[c], _mm256_set1_epi16(1));
}

template <int C>
inline void dot_signed(const uint8_t* w, const int8_t* const* a, I* dot) {
  for (int i = 0; i < 8; ++i) {
    const I codes = load256(w + i * 32);
    for (int c = 0; c < C; ++c) {
      const I p = q8_dot(codes, four_of(a[c] + i * 4));
      dot[c] = keep(i == 0 ? p : _mm256_add_epi32(dot[c], p));
    }
  }
}

// Codes in [-32, 31]: four steps of 2 * 32 * 127 fit int16, then the half-group's scale multiplies them.
template <int C>
inline void dot_sub_scaled(const uint8_t* w, const int16_t* scales, const int8_t* const* a, I* dot) {
  for (int half = 0; half < 2; ++half) {
    I part[C];
    for (int i = 0; i < 4; ++i) {
      const I codes = load256(w + (half * 4 + i) * 32), magnitudes = _mm256_abs_epi8(codes);
      for (int c = 0; c < C; ++c) {
        const I p = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(four_of(a[c] + (half * 4 + i) * 4), codes));
        part[c] = keep(i == 0 ? p : _mm256_add_epi16(part[c], p));
      }
    }
    const I scale = load256(scales + half * 16);
    for (int c = 0; c < C; ++c) {
      const I p = _mm256_madd_epi16(part[c], scale);
      dot[c] = half == 0 ? p : _mm256_add_epi32(dot[c], p);
    }
  }
}

#include "backends/cpu/kernels/float.inc"
#include "backends/cpu/kernels/plane.inc"
#include "backends/cpu/kernels/quant.inc"
#include "backends/cpu/kernels/table.inc"

}  // namespace

const KernelTable kAvx2 = make_table("avx2");

}  // namespace fth::cpu
