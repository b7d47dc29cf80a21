// The kernels for ARMv8.2 with dot products: panels of 4 rows, one to each lane.
#include <arm_neon.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

constexpr int64_t kRows = 4, kCols = 4, kTileCols = 4, kPanelMinCols = 3, kDecodeRows = 4, kNeuronPanelMinCols = 3;

#include "backends/cpu/kernels/arm_neon.inc"

using I = int32x4_t;
using V = float32x4_t;
inline V v_load(const float* p) { return f_load(p); }
inline void v_store(float* p, V v) { f_store(p, v); }
inline V v_set(float v) { return f_set(v); }
inline V v_mul(V a, V b) { return f_mul(a, b); }
inline V v_fma(V a, V b, V c) { return f_fma(a, b, c); }
inline V i_to_float(I v) { return vcvtq_f32_s32(v); }

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

#include "backends/cpu/kernels/arm_interleaved.inc"
#include "backends/cpu/kernels/float.inc"
#include "backends/cpu/kernels/float_attention.inc"
#include "backends/cpu/kernels/plane.inc"
#include "backends/cpu/kernels/quant.inc"

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

inline void store_interleaved(Q8_0 q, const uint8_t* panel, int64_t b, int64_t lane, uint8_t* codes, float* scale, float*, int16_t*) {
  f_store(scale, f_load_f16(interleaved_block(q, panel, b) + 2 * lane));
  for (int i = 0; i < 8; ++i) vst1q_u8(codes + 16 * i, vld1q_u8(interleaved_codes(q, panel, b) + 64 * i + 4 * lane));
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

#include "backends/cpu/kernels/row_panels.inc"
#include "backends/cpu/kernels/table.inc"

}  // namespace

const KernelTable kNeonDotprod = make_table("neon_dotprod");

}  // namespace fth::cpu
