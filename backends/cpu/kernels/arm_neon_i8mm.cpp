// The kernels for ARMv8.6 with products of matrices of bytes (I8MM): SMMLA multiplies 2 rows by 2 columns, 8 codes deep, twice what a dot product does.
// Decode is as with dot products: bringing two rows and two columns together costs what the products save (docs/kernels.md).
#include <arm_neon.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

constexpr int64_t kRows = 8, kCols = 4, kTileCols = 4, kPanelMinCols = 3, kDecodeRows = 4, kNeuronPanelMinCols = 3;

#include "backends/cpu/kernels/arm_neon.inc"

// Eight rows.
struct I {
  int32x4_t half[2];
};
struct V {
  F half[2];
};
inline V v_load(const float* p) { return {{f_load(p), f_load(p + 4)}}; }
inline void v_store(float* p, V v) {
  f_store(p, v.half[0]);
  f_store(p + 4, v.half[1]);
}
inline V v_set(float v) { return {{f_set(v), f_set(v)}}; }
inline V v_mul(V a, V b) { return {{f_mul(a.half[0], b.half[0]), f_mul(a.half[1], b.half[1])}}; }
inline V v_fma(V a, V b, V c) { return {{f_fma(a.half[0], b.half[0], c.half[0]), f_fma(a.half[1], b.half[1], c.half[1])}}; }
inline V i_to_float(I v) { return {{vcvtq_f32_s32(v.half[0]), vcvtq_f32_s32(v.half[1])}}; }

inline int8x16_t low_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
inline int8x16_t high_halves(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

// Panels: vector 4 * i + p of `out` holds bytes 8i .. 8i + 7 of row 2p, then of row 2p + 1.
template <class Q>
inline void store_codes(Q q, const uint8_t* const* rows, int64_t b, uint8_t* out) {
  auto* const o = reinterpret_cast<int8_t*>(out);
  for (int p = 0; p < 4; ++p) {
    const Codes x = group_codes(q, rows[2 * p], b), y = group_codes(q, rows[2 * p + 1], b);
    for (int half = 0; half < 2; ++half) {
      vst1q_s8(o + half * 128 + p * 16, low_halves(x.half[half], y.half[half]));
      vst1q_s8(o + half * 128 + 64 + p * 16, high_halves(x.half[half], y.half[half]));
    }
  }
}

// Part `half` of a group, 16 codes, of two columns by the eight rows: out[p] is rows 2p and 2p + 1, each with column 0 and column 1, added to what it was.
inline void multiply_half(const uint8_t* w, const int8_t* a0, const int8_t* a1, int half, int32x4_t* out) {
  const auto* const codes = reinterpret_cast<const int8_t*>(w) + half * 128;
  const int8x16_t x0 = vld1q_s8(a0 + half * 16), x1 = vld1q_s8(a1 + half * 16);
  const int8x16_t low = low_halves(x0, x1), high = high_halves(x0, x1);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) out[p] = vmmlaq_s32(out[p], vld1q_s8(codes + p * 16), low);
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) out[p] = vmmlaq_s32(out[p], vld1q_s8(codes + 64 + p * 16), high);
}
template <int C>
inline void to_columns(const int32x4_t* pairs, I* dot) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    dot[0].half[h] = vuzp1q_s32(pairs[2 * h], pairs[2 * h + 1]);
    if constexpr (C > 1) dot[1].half[h] = vuzp2q_s32(pairs[2 * h], pairs[2 * h + 1]);
  }
}

// Two columns at a time; a single one stands for two.
template <int C>
inline void dot_signed(const uint8_t* w, const int8_t* const* a, I* dot) {
#pragma GCC unroll 2
  for (int c = 0; c < C; c += 2) {
    int32x4_t pairs[4];
    for (int32x4_t& p : pairs) p = vdupq_n_s32(0);
    multiply_half(w, a[c], a[C > 1 ? c + 1 : c], 0, pairs);
    multiply_half(w, a[c], a[C > 1 ? c + 1 : c], 1, pairs);
    to_columns<C>(pairs, dot + c);
  }
}
template <int C>
inline void dot_unsigned(const uint8_t* w, const int8_t* const* a, I* dot) {
  dot_signed<C>(w, a, dot);
}
// Four rows at a time: with eight, the sums do not fit the registers.
template <int C>
inline void dot_sub_scaled(const uint8_t* w, const int16_t* scales, const int8_t* const* a, I* dot) {
  const auto* const codes = reinterpret_cast<const int8_t*>(w);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    int32x4_t pairs[C][2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int8_t* const at = codes + half * 128 + h * 32;
#pragma GCC unroll 2
      for (int c = 0; c < C; c += 2) {
        const int8x16_t x0 = vld1q_s8(a[c] + half * 16), x1 = vld1q_s8(a[C > 1 ? c + 1 : c] + half * 16);
        const int8x16_t low = low_halves(x0, x1), high = high_halves(x0, x1);
#pragma GCC unroll 2
        for (int p = 0; p < 2; ++p) {
          const int32x4_t part = vmmlaq_s32(vmmlaq_s32(vdupq_n_s32(0), vld1q_s8(at + p * 16), low), vld1q_s8(at + 64 + p * 16), high);
          // Each scale stands twice, as each row does here.
          const int32x4_t scale = vmovl_s16(vld1_s16(scales + half * 16 + h * 8 + p * 4));
          pairs[c][p] = half == 0 ? vmulq_s32(part, scale) : vmlaq_s32(pairs[c][p], part, scale);
        }
      }
    }
#pragma GCC unroll 2
    for (int c = 0; c < C; c += 2) {
      dot[c].half[h] = vuzp1q_s32(pairs[c][0], pairs[c][1]);
      if constexpr (C > 1) dot[c + 1].half[h] = vuzp2q_s32(pairs[c][0], pairs[c][1]);
    }
  }
}

// 16 bytes of eight neurons become 128, eight adjacent for each place: two places in each of eight vectors.
inline void eight_neurons(const uint8_t* codes, int64_t step, uint8x16_t* out) {
  const uint8x16x4_t x = four_neurons(codes, step), y = four_neurons(codes + 4 * step, step);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(x.val[i]), vreinterpretq_u32_u8(y.val[i])));
    out[2 * i + 1] = vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(x.val[i]), vreinterpretq_u32_u8(y.val[i])));
  }
}
inline void store_neuron_codes(Q4_0, const NeuronGroup& group, int64_t r0, uint8_t* out, int64_t panel_bytes) {
  for (int64_t n = 0; n < 4; ++n, out += 64) {
    uint8x16_t x[8];
    eight_neurons(group.codes + 8 * n * group.step + r0 / 2, group.step, x);
    for (int64_t i = 0; i < 8; ++i) {
      vst1q_u8(out + i / 4 * panel_bytes + i % 4 * 16, vandq_u8(x[i], vdupq_n_u8(15)));
      vst1q_u8(out + (i / 4 + 2) * panel_bytes + i % 4 * 16, vshrq_n_u8(x[i], 4));
    }
  }
}
inline void store_neuron_codes(Q8_0, const NeuronGroup& group, int64_t r0, uint8_t* out, int64_t panel_bytes) {
  for (int64_t n = 0; n < 4; ++n, out += 64)
    for (int64_t half = 0; half < 2; ++half) {
      uint8x16_t x[8];
      eight_neurons(group.codes + 8 * n * group.step + r0 + 16 * half, group.step, x);
      for (int64_t i = 0; i < 8; ++i) vst1q_u8(out + (i / 4 + 2 * half) * panel_bytes + i % 4 * 16, x[i]);
    }
}

#include "backends/cpu/kernels/arm_interleaved.inc"
#include "backends/cpu/kernels/float.inc"
#include "backends/cpu/kernels/float_attention.inc"
#include "backends/cpu/kernels/plane.inc"
#include "backends/cpu/kernels/quant.inc"

// Rows lane .. lane + 7: of two vectors with four codes each of four rows, the first two rows and the last two with eight codes each.
inline void store_rows(int8_t* out, int quad, int8x16_t first, int8x16_t second) {
  const int32x4_t x = vreinterpretq_s32_s8(first), y = vreinterpretq_s32_s8(second);
  vst1q_s8(out + quad * 32, vreinterpretq_s8_s32(vzip1q_s32(x, y)));
  vst1q_s8(out + quad * 32 + 16, vreinterpretq_s8_s32(vzip2q_s32(x, y)));
}

template <class Q>
inline void store_interleaved(Q q, const uint8_t* panel, int64_t b, int64_t lane, uint8_t* codes, float* scale, float* offset, int16_t*) {
  const uint8_t* const group = interleaved_block(q, panel, b);
  auto* const out = reinterpret_cast<int8_t*>(codes);
  for (int quad = 0; quad < 2; ++quad) {
    const int64_t row = lane + 4 * quad;
    const F d = f_load_f16(group + 2 * row);
    f_store(scale + 4 * quad, d);
    f_store(offset + 4 * quad, interleaved_offset(q, group, row, d));
    const uint8_t* const nibbles = interleaved_nibbles(q, group, 0) + 4 * row;
    for (int j = 0; j < 2; ++j) {
      const uint8x16_t x = vld1q_u8(nibbles + 128 * j), y = vld1q_u8(nibbles + 128 * j + 64);
      store_rows(out + 64 * j, quad, low_nibbles(x), low_nibbles(y));
      store_rows(out + 128 + 64 * j, quad, high_nibbles(x), high_nibbles(y));
    }
  }
}

inline void store_interleaved(Q8_0 q, const uint8_t* panel, int64_t b, int64_t lane, uint8_t* codes, float* scale, float*, int16_t*) {
  auto* const out = reinterpret_cast<int8_t*>(codes);
  for (int quad = 0; quad < 2; ++quad) {
    const int64_t row = lane + 4 * quad;
    f_store(scale + 4 * quad, f_load_f16(interleaved_block(q, panel, b) + 2 * row));
    const auto* const from = reinterpret_cast<const int8_t*>(interleaved_codes(q, panel, b)) + 4 * row;
    for (int j = 0; j < 4; ++j) store_rows(out + 64 * j, quad, vld1q_s8(from + 128 * j), vld1q_s8(from + 128 * j + 64));
  }
}

inline void store_interleaved(Q6_K, const uint8_t* panel, int64_t b, int64_t lane, uint8_t* codes, float* scale, float*,
                              int16_t* sub_scale) {
  auto* const out = reinterpret_cast<int8_t*>(codes);
  for (int quad = 0; quad < 2; ++quad) {
    const int64_t row = lane + 4 * quad;
    f_store(scale + 4 * quad, f_load_f16(interleaved_block(Q6_K{}, panel, b) + 2 * row));
    const uint8_t* const low = interleaved_nibbles(Q6_K{}, panel, b) + 4 * row;
    const uint8_t* const high = interleaved_pairs(panel, b) + 4 * row;
    const uint8x16_t pairs[2] = {vld1q_u8(high), vld1q_u8(high + 64)};
    for (int j = 0; j < 2; ++j) {
      const uint8x16_t x = vld1q_u8(low + 128 * j), y = vld1q_u8(low + 128 * j + 64);
      store_rows(out + 64 * j, quad, interleaved_codes(low_nibbles(x), pairs[0], 2 * j),
                 interleaved_codes(low_nibbles(y), pairs[0], 2 * j + 1));
      store_rows(out + 128 + 64 * j, quad, interleaved_codes(high_nibbles(x), pairs[1], 2 * j),
                 interleaved_codes(high_nibbles(y), pairs[1], 2 * j + 1));
    }
  }
  for (int half = 0; half < 2; ++half)
    for (int r = 0; r < 8; ++r) {
      const auto s = static_cast<int16_t>(static_cast<int8_t>(interleaved_sub_scales(panel, b)[16 * half + lane + r]));
      sub_scale[half * 16 + 2 * r] = sub_scale[half * 16 + 2 * r + 1] = s;
    }
}

#include "backends/cpu/kernels/row_panels.inc"
#include "backends/cpu/kernels/table.inc"

}  // namespace

const KernelTable kNeonI8mm = make_table("neon_i8mm");

}  // namespace fth::cpu
