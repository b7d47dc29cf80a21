// The kernels for ARMv8.2 with dot products: 4 floats or 4 rows to a vector. Signed bytes times signed bytes is one instruction, so that all codes
// are signed bytes here: nibbles as they are, with their offset going out through s as in the other units.
#include <arm_neon.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

constexpr int64_t kRows = 4, kCols = 4, kTileCols = 4, kPanelMinCols = 3, kDecodeRows = 4, kNeuronPanelMinCols = 3;

inline float half_to_float(uint16_t h) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0); }
inline uint16_t float_to_half(float f) { return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(f))), 0); }

#include "backends/cpu/kernels/plain.inc"

using F = float32x4_t;
constexpr int64_t kF = 4;
inline F f_load(const void* p) { return vld1q_f32(static_cast<const float*>(p)); }
inline F f_load_f16(const uint8_t* p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
inline F f_load_bf16(const uint8_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16)); }
inline F f_load_codes(const int8_t* p) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(load_as<uint32_t>(p)))))); }
inline void f_store(float* p, F v) { vst1q_f32(p, v); }
inline void f_store_f16(uint16_t* p, F v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline F f_set(float v) { return vdupq_n_f32(v); }
inline F f_add(F a, F b) { return vaddq_f32(a, b); }
inline F f_sub(F a, F b) { return vsubq_f32(a, b); }
inline F f_mul(F a, F b) { return vmulq_f32(a, b); }
inline F f_div(F a, F b) { return vdivq_f32(a, b); }
inline F f_fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F f_fnma(F a, F b, F c) { return vfmsq_f32(c, a, b); }
inline F f_max(F a, F b) { return vmaxq_f32(a, b); }
inline F f_min(F a, F b) { return vminq_f32(a, b); }
inline F f_round(F a) { return vrndnq_f32(a); }
inline F f_pow2(F n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)); }
inline float f_sum(F a) {
  const float32x2_t v = vadd_f32(vget_low_f32(a), vget_high_f32(a));
  return vget_lane_f32(v, 0) + vget_lane_f32(v, 1);
}
inline float f_top(F a) { return vmaxvq_f32(a); }

using I = int32x4_t;
using V = float32x4_t;
inline V v_load(const float* p) { return f_load(p); }
inline void v_store(float* p, V v) { f_store(p, v); }
inline V v_set(float v) { return f_set(v); }
inline V v_mul(V a, V b) { return f_mul(a, b); }
inline V v_fma(V a, V b, V c) { return f_fma(a, b, c); }
inline V i_to_float(I v) { return vcvtq_f32_s32(v); }

template <class Q>
constexpr bool kHasOffset = !Q::kSigned;
template <class Q>
constexpr bool kHasSubScales = false;
template <>
constexpr bool kHasSubScales<Q6_K> = true;
template <class Q>
inline float code_offset(Q, const uint8_t* row, int64_t b) {
  return Q::offset(row, b);
}

// The 32 codes of a group in two halves.
struct Codes {
  int8x16_t half[2];
};
inline int8x16_t low_nibbles(uint8x16_t x) { return vreinterpretq_s8_u8(vandq_u8(x, vdupq_n_u8(15))); }
inline int8x16_t high_nibbles(uint8x16_t x) { return vreinterpretq_s8_u8(vshrq_n_u8(x, 4)); }
template <class Q>
inline Codes group_codes(Q, const uint8_t* row, int64_t b) {
  const uint8x16_t x = vld1q_u8(Q::nibbles(row, b));
  return {{low_nibbles(x), high_nibbles(x)}};
}
inline Codes group_codes(Q8_0, const uint8_t* row, int64_t b) {
  const uint8_t* p = Q8_0::block(row, b) + 2;
  return {{vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_u8(vld1q_u8(p + 16))}};
}
inline Codes group_codes(Q4_K, const uint8_t* row, int64_t b) {
  const uint8_t* p = Q4_K::block(row, b) + 16 + ((b & 7) >> 1) * 32;
  const uint8x16_t x = vld1q_u8(p), y = vld1q_u8(p + 16);
  return (b & 1) ? Codes{{high_nibbles(x), high_nibbles(y)}} : Codes{{low_nibbles(x), low_nibbles(y)}};
}
inline Codes group_codes(Q6_K, const uint8_t* row, int64_t b) {
  const uint8_t* p = Q6_K::block(row, b);
  const int8x16_t low_shift = vdupq_n_s8(static_cast<int8_t>(-Q6_K::low_shift(b)));  // a negative shift is to the right
  const int8x16_t high_shift = vdupq_n_s8(static_cast<int8_t>(-Q6_K::high_shift(b)));
  Codes c;
  for (int i = 0; i < 2; ++i) {
    const uint8x16_t low = vandq_u8(vshlq_u8(vld1q_u8(Q6_K::low(p, b) + i * 16), low_shift), vdupq_n_u8(15));
    const uint8x16_t high = vandq_u8(vshlq_u8(vld1q_u8(Q6_K::high(p, b) + i * 16), high_shift), vdupq_n_u8(3));
    c.half[i] = vsubq_s8(vreinterpretq_s8_u8(vorrq_u8(low, vshlq_n_u8(high, 4))), vdupq_n_s8(32));
  }
  return c;
}

template <class Q>
inline void store_signed(Q q, const uint8_t* row, int64_t b, int8_t* out) {
  const Codes codes = group_codes(q, row, b);
  vst1q_s8(out, codes.half[0]);
  vst1q_s8(out + 16, codes.half[1]);
}
inline void store_signed(Q4_0 q, const uint8_t* row, int64_t b, int8_t* out) {
  const Codes codes = group_codes(q, row, b);
  vst1q_s8(out, vsubq_s8(codes.half[0], vdupq_n_s8(8)));
  vst1q_s8(out + 16, vsubq_s8(codes.half[1], vdupq_n_s8(8)));
}

// Panels: vector i of `out` holds bytes 4i .. 4i + 3 of every row.
template <class Q>
inline void store_codes(Q q, const uint8_t* const* rows, int64_t b, uint8_t* out) {
  Codes codes[4];
  for (int r = 0; r < 4; ++r) codes[r] = group_codes(q, rows[r], b);
  for (int half = 0; half < 2; ++half) {
    uint32x4_t x[4];
    for (int r = 0; r < 4; ++r) x[r] = vreinterpretq_u32_s8(codes[r].half[half]);
    const uint64x2_t t0 = vreinterpretq_u64_u32(vtrn1q_u32(x[0], x[1])), t1 = vreinterpretq_u64_u32(vtrn2q_u32(x[0], x[1]));
    const uint64x2_t t2 = vreinterpretq_u64_u32(vtrn1q_u32(x[2], x[3])), t3 = vreinterpretq_u64_u32(vtrn2q_u32(x[2], x[3]));
    uint8_t* o = out + half * 64;
    vst1q_u8(o, vreinterpretq_u8_u64(vtrn1q_u64(t0, t2)));
    vst1q_u8(o + 16, vreinterpretq_u8_u64(vtrn1q_u64(t1, t3)));
    vst1q_u8(o + 32, vreinterpretq_u8_u64(vtrn2q_u64(t0, t2)));
    vst1q_u8(o + 48, vreinterpretq_u8_u64(vtrn2q_u64(t1, t3)));
  }
}

template <int C>
inline void dot_signed(const uint8_t* w, const int8_t* const* a, I* dot) {
  for (int c = 0; c < C; ++c) dot[c] = vdupq_n_s32(0);
  for (int half = 0; half < 2; ++half) {
    int8x16_t x[C];
    for (int c = 0; c < C; ++c) x[c] = vld1q_s8(a[c] + half * 16);
    for (int c = 0; c < C; ++c) {
      const int8_t* codes = reinterpret_cast<const int8_t*>(w) + half * 64;
      dot[c] = vdotq_laneq_s32(dot[c], vld1q_s8(codes), x[c], 0);
      dot[c] = vdotq_laneq_s32(dot[c], vld1q_s8(codes + 16), x[c], 1);
      dot[c] = vdotq_laneq_s32(dot[c], vld1q_s8(codes + 32), x[c], 2);
      dot[c] = vdotq_laneq_s32(dot[c], vld1q_s8(codes + 48), x[c], 3);
    }
  }
}
template <int C>
inline void dot_unsigned(const uint8_t* w, const int8_t* const* a, I* dot) {
  dot_signed<C>(w, a, dot);
}
template <int C>
inline void dot_sub_scaled(const uint8_t* w, const int16_t* scales, const int8_t* const* a, I* dot) {
  for (int c = 0; c < C; ++c) {
    dot[c] = vdupq_n_s32(0);
    for (int half = 0; half < 2; ++half) {
      const int8x16_t x = vld1q_s8(a[c] + half * 16);
      const int8_t* codes = reinterpret_cast<const int8_t*>(w) + half * 64;
      I part = vdotq_laneq_s32(vdupq_n_s32(0), vld1q_s8(codes), x, 0);
      part = vdotq_laneq_s32(part, vld1q_s8(codes + 16), x, 1);
      part = vdotq_laneq_s32(part, vld1q_s8(codes + 32), x, 2);
      part = vdotq_laneq_s32(part, vld1q_s8(codes + 48), x, 3);
      // Each scale stands twice in its 32 bits: the upper one, sign and all.
      dot[c] = vmlaq_s32(dot[c], part, vshrq_n_s32(vreinterpretq_s32_s16(vld1q_s16(scales + half * 8)), 16));
    }
  }
}

// One column or two: four rows at a time, straight from the weights.
using D = float32x4_t;
inline void d_store(float* p, D v) { vst1q_f32(p, v); }
inline I sum_rows(const I* v) { return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3])); }

template <int C, class Q>
inline void decode(Q q, const uint8_t* const* rows, const Ahead& ahead, const Act* act, int64_t n_groups, D* sum) {
  for (int c = 0; c < C; ++c) sum[c] = vdupq_n_f32(0.0f);
  for (int64_t b = 0; b < n_groups; ++b) {
    I v[C][4], second[C][4];
    float scale[4], offset[4];
    int32_t sub0[4] = {}, sub1[4] = {};
    for (int r = 0; r < 4; ++r) {
      __builtin_prefetch(Q::block(ahead.rows[r], b));
      const Codes codes = group_codes(q, rows[r], b);
      scale[r] = Q::scale(rows[r], b);
      if constexpr (kHasSubScales<Q>) {
        sub0[r] = Q::sub_scale(Q::block(rows[r], b), b, 0);
        sub1[r] = Q::sub_scale(Q::block(rows[r], b), b, 1);
      } else {
        offset[r] = Q::offset(rows[r], b);
      }
      for (int c = 0; c < C; ++c) {
        const int8x16_t a0 = vld1q_s8(act[c].q + b * 32), a1 = vld1q_s8(act[c].q + b * 32 + 16);
        v[c][r] = vdotq_s32(vdupq_n_s32(0), codes.half[0], a0);
        if constexpr (kHasSubScales<Q>) {
          second[c][r] = vdotq_s32(vdupq_n_s32(0), codes.half[1], a1);
        } else {
          v[c][r] = vdotq_s32(v[c][r], codes.half[1], a1);
        }
      }
    }
    for (int c = 0; c < C; ++c) {
      I dot = sum_rows(v[c]);
      if constexpr (kHasSubScales<Q>) dot = vmlaq_s32(vmulq_s32(dot, vld1q_s32(sub0)), sum_rows(second[c]), vld1q_s32(sub1));
      sum[c] = vfmaq_f32(sum[c], vld1q_f32(scale), vmulq_f32(vdupq_n_f32(act[c].scale(b)), vcvtq_f32_s32(dot)));
      if constexpr (kHasOffset<Q>) sum[c] = vfmaq_f32(sum[c], vld1q_f32(offset), vdupq_n_f32(act[c].sum(b)));
    }
  }
}

// Neuron-major: eight outputs to a vector of int16 sums. q4_0's wrap, but less 8 for each code they are at most 32 * 8 * 127, so that the
// subtraction brings back the exact number. q8_0's products are added to int32.
template <class Q>
constexpr float kCodeBias = kHasOffset<Q> ? -8.0f : 0.0f;

template <class Q>
inline void add_group(const uint8_t* scales, int32x4_t dot, float d, float s, float* sum) {
  const float32x4_t scale = f_load_f16(scales);
  float32x4_t v = vfmaq_f32(vld1q_f32(sum), scale, vmulq_f32(vdupq_n_f32(d), vcvtq_f32_s32(dot)));
  if constexpr (kHasOffset<Q>) v = vfmaq_f32(v, vmulq_f32(scale, vdupq_n_f32(kCodeBias<Q>)), vdupq_n_f32(s));
  vst1q_f32(sum, v);
}

template <int64_t B>
inline void add_neurons(Q4_0, const uint8_t* codes, const uint8_t* scales, const Live& live, float d, float s, float* sum) {
  int16x8_t part[B][4];
  for (auto& block : part)
    for (int16x8_t& p : block) p = vdupq_n_s16(0);
  for (int64_t j = 0; j < live.n; ++j) {
    const int8x16_t q = vdupq_n_s8(live.q[j]);
    for (int b = 0; b < static_cast<int>(B); ++b) {
      const uint8x16_t x = vld1q_u8(codes + live.at[j] + 16 * b);
      const int8x16_t low = low_nibbles(x), high = high_nibbles(x);
      part[b][0] = vmlal_s8(part[b][0], vget_low_s8(low), vget_low_s8(q));
      part[b][1] = vmlal_high_s8(part[b][1], low, q);
      part[b][2] = vmlal_s8(part[b][2], vget_low_s8(high), vget_low_s8(q));
      part[b][3] = vmlal_high_s8(part[b][3], high, q);
    }
  }
  const int32x4_t bias = vdupq_n_s32(8 * live.sum);
  const int16x8_t bias16 = vdupq_n_s16(static_cast<int16_t>(8 * live.sum));
  for (int i = 0; i < static_cast<int>(4 * B); ++i) {
    const int16x8_t less8 = vsubq_s16(part[i / 4][i % 4], bias16);
    add_group<Q4_0>(scales + 16 * i, vaddw_s16(bias, vget_low_s16(less8)), d, s, sum + 8 * i);
    add_group<Q4_0>(scales + 16 * i + 8, vaddw_high_s16(bias, less8), d, s, sum + 8 * i + 4);
  }
}

template <int64_t B>
inline void add_neurons(Q8_0, const uint8_t* codes, const uint8_t* scales, const Live& live, float d, float s, float* sum) {
  int32x4_t part[8 * B];
  for (int32x4_t& p : part) p = vdupq_n_s32(0);
  for (int64_t j = 0; j < live.n; ++j) {
    const int8x8_t q = vdup_n_s8(live.q[j]);
    for (int i = 0; i < static_cast<int>(4 * B); ++i) {
      const int16x8_t product = vmull_s8(vld1_s8(reinterpret_cast<const int8_t*>(codes + live.at[j] + 8 * i)), q);
      part[2 * i] = vaddw_s16(part[2 * i], vget_low_s16(product));
      part[2 * i + 1] = vaddw_high_s16(part[2 * i + 1], product);
    }
  }
  for (int i = 0; i < static_cast<int>(8 * B); ++i) add_group<Q8_0>(scales + 8 * i, part[i], d, s, sum + 4 * i);
}

// 16 bytes of four neurons become 64, four adjacent for each place: four places in each vector.
inline uint8x16x4_t four_neurons(const uint8_t* codes, int64_t step) {
  const uint8x16_t x0 = vld1q_u8(codes), x1 = vld1q_u8(codes + step), x2 = vld1q_u8(codes + 2 * step), x3 = vld1q_u8(codes + 3 * step);
  const uint16x8_t low0 = vreinterpretq_u16_u8(vzip1q_u8(x0, x1)), high0 = vreinterpretq_u16_u8(vzip2q_u8(x0, x1));
  const uint16x8_t low1 = vreinterpretq_u16_u8(vzip1q_u8(x2, x3)), high1 = vreinterpretq_u16_u8(vzip2q_u8(x2, x3));
  return {{vreinterpretq_u8_u16(vzip1q_u16(low0, low1)), vreinterpretq_u8_u16(vzip2q_u16(low0, low1)),
           vreinterpretq_u8_u16(vzip1q_u16(high0, high1)), vreinterpretq_u8_u16(vzip2q_u16(high0, high1))}};
}
inline void store_neuron_codes(Q4_0, const NeuronGroup& group, int64_t r0, uint8_t* out, int64_t panel_bytes) {
  for (int64_t n = 0; n < 8; ++n, out += 16) {
    const uint8x16x4_t x = four_neurons(group.codes + 4 * n * group.step + r0 / 2, group.step);
    for (int64_t i = 0; i < 4; ++i) {
      vst1q_u8(out + i * panel_bytes, vandq_u8(x.val[i], vdupq_n_u8(15)));
      vst1q_u8(out + (i + 4) * panel_bytes, vshrq_n_u8(x.val[i], 4));
    }
  }
}
inline void store_neuron_codes(Q8_0, const NeuronGroup& group, int64_t r0, uint8_t* out, int64_t panel_bytes) {
  for (int64_t n = 0; n < 8; ++n, out += 16)
    for (int64_t half = 0; half < 2; ++half) {
      const uint8x16x4_t x = four_neurons(group.codes + 4 * n * group.step + r0 + 16 * half, group.step);
      for (int64_t i = 0; i < 4; ++i) vst1q_u8(out + (4 * half + i) * panel_bytes, x.val[i]);
    }
}

// Interleaved: a vector holds four codes of each of four rows, and one lane of the activations goes to all of them.
// Offsets of four rows of a group from `lane` on.
inline F interleaved_offset(Q4_0, const uint8_t*, int64_t, F scale) { return vmulq_f32(scale, vdupq_n_f32(-8.0f)); }
inline F interleaved_offset(Q4_1, const uint8_t* group, int64_t lane, F) { return f_load_f16(group + 2 * (kInterleavedRows + lane)); }

template <int C, class Q>
inline void decode_nibbles(Q q, const uint8_t* group, const uint8_t* last, const Act* act, int64_t n_groups, float* dst,
                           int64_t dst_stride) {
  F sum[C][4];
  for (auto& of_column : sum)
    for (F& v : of_column) v = vdupq_n_f32(0.0f);
  for (int64_t b = 0; b < n_groups; ++b, group += kInterleavedRows * Q::kBytes) {
    const uint8_t* const codes = interleaved_nibbles(q, group, 0);
    prefetch_ahead<5>(group, last);
    I dot[C][4];
    int8x16_t a0[C], a1[C];
    for (int c = 0; c < C; ++c) {
      a0[c] = vld1q_s8(act[c].q + b * 32);
      a1[c] = vld1q_s8(act[c].q + b * 32 + 16);
      for (I& v : dot[c]) v = vdupq_n_s32(0);
    }
    for (int p = 0; p < 4; ++p) {
      uint8x16_t x[4];
      for (int i = 0; i < 4; ++i) x[i] = vld1q_u8(codes + 64 * i + 16 * p);
      for (int c = 0; c < C; ++c) {
        I& v = dot[c][p];
        v = vdotq_laneq_s32(v, low_nibbles(x[0]), a0[c], 0);
        v = vdotq_laneq_s32(v, high_nibbles(x[0]), a1[c], 0);
        v = vdotq_laneq_s32(v, low_nibbles(x[1]), a0[c], 1);
        v = vdotq_laneq_s32(v, high_nibbles(x[1]), a1[c], 1);
        v = vdotq_laneq_s32(v, low_nibbles(x[2]), a0[c], 2);
        v = vdotq_laneq_s32(v, high_nibbles(x[2]), a1[c], 2);
        v = vdotq_laneq_s32(v, low_nibbles(x[3]), a0[c], 3);
        v = vdotq_laneq_s32(v, high_nibbles(x[3]), a1[c], 3);
      }
    }
    for (int p = 0; p < 4; ++p) {
      const F scale = f_load_f16(group + 8 * p), offset = interleaved_offset(q, group, 4 * p, scale);
      for (int c = 0; c < C; ++c) {
        sum[c][p] = vfmaq_f32(sum[c][p], scale, vmulq_f32(vdupq_n_f32(act[c].scale(b)), vcvtq_f32_s32(dot[c][p])));
        sum[c][p] = vfmaq_f32(sum[c][p], offset, vdupq_n_f32(act[c].sum(b)));
      }
    }
  }
  for (int c = 0; c < C; ++c)
    for (int p = 0; p < 4; ++p) f_store(dst + c * dst_stride + 4 * p, sum[c][p]);
}

template <int C>
inline void decode_interleaved(Q4_0 q, const uint8_t* panel, const uint8_t* last, const Act* act, int64_t n_groups, float* dst,
                               int64_t dst_stride) {
  decode_nibbles<C>(q, panel, last, act, n_groups, dst, dst_stride);
}
template <int C>
inline void decode_interleaved(Q4_1 q, const uint8_t* panel, const uint8_t* last, const Act* act, int64_t n_groups, float* dst,
                               int64_t dst_stride) {
  decode_nibbles<C>(q, panel, last, act, n_groups, dst, dst_stride);
}

// q6_k's codes 4i .. 4i + 3 of one half of a group, less 32.
inline int8x16_t interleaved_codes(int8x16_t nibbles, uint8x16_t pairs, int i) {
  const uint8x16_t upper = vandq_u8(vshlq_u8(pairs, vdupq_n_s8(static_cast<int8_t>(4 - 2 * i))), vdupq_n_u8(0x30));
  return vsubq_s8(vorrq_s8(nibbles, vreinterpretq_s8_u8(upper)), vdupq_n_s8(32));
}
inline int32x4_t four_of(const uint8_t* scales) {  // int8 to int32
  return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(load_as<uint32_t>(scales)))));
}

template <int C>
inline void decode_interleaved(Q6_K, const uint8_t* panel, const uint8_t* last, const Act* act, int64_t n_groups, float* dst,
                               int64_t dst_stride) {
  F sum[C][4];
  for (auto& of_column : sum)
    for (F& v : of_column) v = vdupq_n_f32(0.0f);
  for (int64_t b = 0; b < n_groups; ++b) {
    const uint8_t* const block = interleaved_block(Q6_K{}, panel, b);
    const uint8_t* const low = interleaved_nibbles(Q6_K{}, panel, b);
    const uint8_t* const high = interleaved_pairs(panel, b);
    const uint8_t* const scales = interleaved_sub_scales(panel, b);
    prefetch_ahead<7>(block + (b & 7) * 420, last);
    for (int p = 0; p < 4; ++p) {
      I first[C], second[C];
      for (int c = 0; c < C; ++c) first[c] = second[c] = vdupq_n_s32(0);
      const uint8x16_t pairs[2] = {vld1q_u8(high + 16 * p), vld1q_u8(high + 64 + 16 * p)};
      for (int i = 0; i < 4; ++i) {
        const uint8x16_t x = vld1q_u8(low + 64 * i + 16 * p);
        const int8x16_t w0 = interleaved_codes(low_nibbles(x), pairs[0], i), w1 = interleaved_codes(high_nibbles(x), pairs[1], i);
        for (int c = 0; c < C; ++c) {
          const int8_t* const q = act[c].q + b * 32 + 4 * i;
          first[c] = vdotq_s32(first[c], w0, vreinterpretq_s8_s32(vdupq_n_s32(load_as<int32_t>(q))));
          second[c] = vdotq_s32(second[c], w1, vreinterpretq_s8_s32(vdupq_n_s32(load_as<int32_t>(q + 16))));
        }
      }
      const F d = f_load_f16(block + 8 * p);
      for (int c = 0; c < C; ++c) {
        const I dot = vmlaq_s32(vmulq_s32(first[c], four_of(scales + 4 * p)), second[c], four_of(scales + 16 + 4 * p));
        sum[c][p] = vfmaq_f32(sum[c][p], d, vmulq_f32(vdupq_n_f32(act[c].scale(b)), vcvtq_f32_s32(dot)));
      }
    }
  }
  for (int c = 0; c < C; ++c)
    for (int p = 0; p < 4; ++p) f_store(dst + c * dst_stride + 4 * p, sum[c][p]);
}

template <class Q>
inline void store_interleaved(Q q, const uint8_t* panel, int64_t b, int64_t lane, uint8_t* codes, float* scale, float* offset, int16_t*) {
  const uint8_t* const group = interleaved_block(q, panel, b);
  const F d = f_load_f16(group + 2 * lane);
  f_store(scale, d);
  f_store(offset, interleaved_offset(q, group, lane, d));
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t x = vld1q_u8(interleaved_nibbles(q, group, 0) + 64 * i + 4 * lane);
    vst1q_s8(reinterpret_cast<int8_t*>(codes) + 16 * i, low_nibbles(x));
    vst1q_s8(reinterpret_cast<int8_t*>(codes) + 64 + 16 * i, high_nibbles(x));
  }
}

inline void store_interleaved(Q6_K, const uint8_t* panel, int64_t b, int64_t lane, uint8_t* codes, float* scale, float*,
                              int16_t* sub_scale) {
  f_store(scale, f_load_f16(interleaved_block(Q6_K{}, panel, b) + 2 * lane));
  const uint8_t* const low = interleaved_nibbles(Q6_K{}, panel, b) + 4 * lane;
  const uint8_t* const high = interleaved_pairs(panel, b) + 4 * lane;
  int8_t* const out = reinterpret_cast<int8_t*>(codes);
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t x = vld1q_u8(low + 64 * i);
    vst1q_s8(out + 16 * i, interleaved_codes(low_nibbles(x), vld1q_u8(high), i));
    vst1q_s8(out + 64 + 16 * i, interleaved_codes(high_nibbles(x), vld1q_u8(high + 64), i));
  }
  for (int half = 0; half < 2; ++half)
    for (int r = 0; r < 4; ++r) {
      const auto s = static_cast<int16_t>(static_cast<int8_t>(interleaved_sub_scales(panel, b)[16 * half + lane + r]));
      sub_scale[half * 8 + 2 * r] = sub_scale[half * 8 + 2 * r + 1] = s;
    }
}

#include "backends/cpu/kernels/float.inc"
#include "backends/cpu/kernels/float_attention.inc"
#include "backends/cpu/kernels/plane.inc"
#include "backends/cpu/kernels/quant.inc"
#include "backends/cpu/kernels/row_panels.inc"
#include "backends/cpu/kernels/table.inc"

}  // namespace

const KernelTable kNeonDotprod = make_table("neon_dotprod");

}  // namespace fth::cpu
