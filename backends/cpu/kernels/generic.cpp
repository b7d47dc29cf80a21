// The portable kernels: plain loops, one output at a time. Every machine has them; the other tables are tested against them.
#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  float f;
  if (magnitude >= 0x7c00u << 13) {  // infinity, NaN
    const uint32_t bits = magnitude + ((255u - 31u) << 23);
    __builtin_memcpy(&f, &bits, 4);
  } else {  // the multiplication moves the exponent's bias and makes subnormals right
    __builtin_memcpy(&f, &magnitude, 4);
    f *= 0x1p112f;
  }
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  bits |= sign;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

inline uint16_t float_to_half(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x3ffu));
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (bits < 0x38800000u) {  // subnormal in f16: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    float m;
    __builtin_memcpy(&m, &bits, 4);
    m += 0.5f;
    __builtin_memcpy(&bits, &m, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((bits - (112u << 23)) >> 13));
}

#include "backends/cpu/kernels/plain.inc"

struct F32 {
  static float at(const uint8_t* p, int64_t i) { return load_as<float>(p + i * 4); }
};
struct F16 {
  static float at(const uint8_t* p, int64_t i) { return half_at(p + i * 2); }
};
struct BF16 {
  static float at(const uint8_t* p, int64_t i) { return bf16_to_float(load_as<uint16_t>(p + i * 2)); }
};
struct Q8Cell {
  static float at(const uint8_t* p, int64_t i) {
    const uint8_t* block = Q8_0::block(p, i / 32);
    return half_at(block) * static_cast<float>(static_cast<int8_t>(block[2 + i % 32]));
  }
};

// Eight partial sums, so that the loop vectorises without reordering a sum.
template <class W>
float dot(int64_t k, const uint8_t* w, const uint8_t* x) {
  float part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= k; i += 8)
    for (int64_t j = 0; j < 8; ++j) part[j] += W::at(w, i + j) * F32::at(x, i + j);
  float sum = ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
  for (; i < k; ++i) sum += W::at(w, i) * F32::at(x, i);
  return sum;
}

template <class W>
void matmul_float(const MatmulArgs& m) {
  for (int64_t i = 0; i < m.n_rows; ++i)
    for (int64_t c = 0; c < m.n_cols; ++c) m.dst[c * m.dst_stride + row_index(m, i)] = dot<W>(m.k, weight_row(m, i), act_row(m, c));
}

// The 32 codes of a group: value = scale * code + offset, but for q6_k: (scale * sub_scale) * code.
void codes(Q8_0, const uint8_t* row, int64_t b, int8_t* c) { __builtin_memcpy(c, Q8_0::block(row, b) + 2, 32); }
template <class Q>
void codes(Q, const uint8_t* row, int64_t b, int8_t* c) {
  const uint8_t* p = Q::nibbles(row, b);
  for (int j = 0; j < 16; ++j) c[j] = static_cast<int8_t>(p[j] & 15);
  for (int j = 0; j < 16; ++j) c[j + 16] = static_cast<int8_t>(p[j] >> 4);
}
void codes(Q4_K, const uint8_t* row, int64_t b, int8_t* c) {
  const uint8_t* p = Q4_K::block(row, b) + 16 + ((b & 7) >> 1) * 32;
  const int shift = (b & 1) * 4;
  for (int j = 0; j < 32; ++j) c[j] = static_cast<int8_t>((p[j] >> shift) & 15);
}
void codes(Q6_K, const uint8_t* row, int64_t b, int8_t* c) {
  const uint8_t *p = Q6_K::block(row, b), *l = Q6_K::low(p, b), *h = Q6_K::high(p, b);
  const int ls = Q6_K::low_shift(b), hs = Q6_K::high_shift(b);
  for (int j = 0; j < 32; ++j) c[j] = static_cast<int8_t>((((l[j] >> ls) & 15) | (((h[j] >> hs) & 3) << 4)) - 32);
}

template <class Q>
int32_t group_dot(const uint8_t*, int64_t, const int8_t* c, const int8_t* q) {
  int32_t sum = 0;
  for (int j = 0; j < 32; ++j) sum += c[j] * q[j];
  return sum;
}
template <>
int32_t group_dot<Q6_K>(const uint8_t* row, int64_t b, const int8_t* c, const int8_t* q) {
  int32_t sum[2] = {};
  for (int half = 0; half < 2; ++half)
    for (int j = half * 16; j < half * 16 + 16; ++j) sum[half] += c[j] * q[j];
  const uint8_t* p = Q6_K::block(row, b);
  return sum[0] * Q6_K::sub_scale(p, b, 0) + sum[1] * Q6_K::sub_scale(p, b, 1);
}

// Codes are unpacked once for all columns; the sum of a column still runs over its groups in order, through dst.
template <class Q>
void matmul_quant(const MatmulArgs& m) {
  for (int64_t i = 0; i < m.n_rows; ++i) {
    const uint8_t* row = weight_row(m, i);
    float* dst = m.dst + row_index(m, i);
    for (int64_t c = 0; c < m.n_cols; ++c) dst[c * m.dst_stride] = 0.0f;
    for (int64_t b = 0; b < m.k / 32; ++b) {
      int8_t code[32];
      codes(Q{}, row, b, code);
      const float scale = Q::scale(row, b), offset = Q::offset(row, b);
      for (int64_t c = 0; c < m.n_cols; ++c) {
        const Act act(act_row(m, c), m.k);
        float& sum = dst[c * m.dst_stride];
        sum += scale * (act.scale(b) * static_cast<float>(group_dot<Q>(row, b, code, act.q + b * 32)));
        if constexpr (!Q::kSigned) sum += offset * act.sum(b);
      }
    }
  }
}

// The code of output r, as codes() has it, in one neuron's bytes of a group.
inline int32_t neuron_code(Q8_0, const uint8_t* p, int64_t r) { return static_cast<int8_t>(p[r]); }
inline int32_t neuron_code(Q4_0, const uint8_t* p, int64_t r) {
  const int byte = p[r / 32 * 16 + r % 16];
  return r % 32 < 16 ? byte & 15 : byte >> 4;
}

template <class Q>
void matmul_by_neuron(const NeuronMatmulArgs& m) {
  for (int64_t c = 0; c < m.n_cols; ++c) {
    const Act act(act_row(m, c), m.k);
    float* sum = m.dst + c * m.dst_stride;
    for (int64_t r = 0; r < m.n_rows; ++r) sum[r] = 0.0f;
    for (int64_t g = 0; g < m.k / 32; ++g) {
      const NeuronGroup group = neuron_group<Q>(m, g);
      Live live;
      list_live(act.q + g * 32, group.step, live);
      for (int64_t r0 = 0; r0 < m.n_rows; r0 += 32) {
        int32_t dot[32] = {};
        for (int64_t j = 0; j < live.n; ++j)
          for (int64_t r = 0; r < 32; ++r) dot[r] += neuron_code(Q{}, group.codes + live.at[j], r0 + r) * live.q[j];
        for (int64_t r = 0; r < 32; ++r) {
          const float scale = half_at(group.scales + 2 * (r0 + r));
          sum[r0 + r] += scale * (act.scale(g) * static_cast<float>(dot[r]));
          if constexpr (!Q::kSigned) sum[r0 + r] += -8.0f * scale * act.sum(g);
        }
      }
    }
  }
}

// The codes of one row of a panel, as codes() has them.
template <class Q>
void interleaved_codes(Q q, const uint8_t* panel, int64_t b, int64_t lane, int8_t* code) {
  const uint8_t* p = interleaved_nibbles(q, panel, b) + lane * 4;
  for (int64_t j = 0; j < 16; ++j) {
    const uint8_t byte = p[j / 4 * 64 + j % 4];
    code[j] = static_cast<int8_t>(byte & 15);
    code[j + 16] = static_cast<int8_t>(byte >> 4);
  }
}
void interleaved_codes(Q8_0 q, const uint8_t* panel, int64_t b, int64_t lane, int8_t* code) {
  const uint8_t* p = interleaved_codes(q, panel, b) + lane * 4;
  for (int64_t j = 0; j < 32; ++j) code[j] = static_cast<int8_t>(p[j / 4 * 64 + j % 4]);
}
void interleaved_codes(Q6_K, const uint8_t* panel, int64_t b, int64_t lane, int8_t* code) {
  interleaved_codes<Q6_K>(Q6_K{}, panel, b, lane, code);
  const uint8_t* p = interleaved_pairs(panel, b) + lane * 4;
  for (int64_t j = 0; j < 32; ++j) code[j] = static_cast<int8_t>((code[j] | (p[j / 16 * 64 + j % 4] >> j % 16 / 4 * 2 & 3) << 4) - 32);
}
template <class Q>
int32_t interleaved_dot(Q, const uint8_t*, int64_t, int64_t, const int8_t* code, const int8_t* q) {
  return group_dot<Q>(nullptr, 0, code, q);
}
int32_t interleaved_dot(Q6_K, const uint8_t* panel, int64_t b, int64_t lane, const int8_t* code, const int8_t* q) {
  int32_t sum[2] = {};
  for (int j = 0; j < 32; ++j) sum[j / 16] += code[j] * q[j];
  const uint8_t* scales = interleaved_sub_scales(panel, b) + lane;
  return sum[0] * static_cast<int8_t>(scales[0]) + sum[1] * static_cast<int8_t>(scales[16]);
}

// Rows of a panel one by one.
template <class Q>
void matmul_interleaved(const MatmulArgs& m) {
  for (int64_t r = 0; r < m.n_rows; ++r) {
    const int64_t lane = r % kInterleavedRows;
    const uint8_t* const panel = static_cast<const uint8_t*>(m.weights) + static_cast<uint64_t>(r - lane) * m.row_bytes;
    for (int64_t c = 0; c < m.n_cols; ++c) m.dst[c * m.dst_stride + r] = 0.0f;
    for (int64_t b = 0; b < m.k / 32; ++b) {
      int8_t code[32];
      interleaved_codes(Q{}, panel, b, lane, code);
      const uint8_t* const block = interleaved_block(Q{}, panel, b);
      const float scale = half_at(block + 2 * lane);
      [[maybe_unused]] const float offset = Q::kMinimum ? half_at(block + 2 * (kInterleavedRows + lane)) : -8.0f * scale;
      for (int64_t c = 0; c < m.n_cols; ++c) {
        const Act act(act_row(m, c), m.k);
        float& sum = m.dst[c * m.dst_stride + r];
        sum += scale * (act.scale(b) * static_cast<float>(interleaved_dot(Q{}, panel, b, lane, code, act.q + b * 32)));
        if constexpr (!Q::kSigned) sum += offset * act.sum(b);
      }
    }
  }
}

template <class W>
void dequantize_float(int64_t k, const void* row, float* y) {
  for (int64_t i = 0; i < k; ++i) y[i] = W::at(static_cast<const uint8_t*>(row), i);
}
template <class W>
void axpy_float(int64_t k, float a, const void* row, float* y) {
  for (int64_t i = 0; i < k; ++i) y[i] += a * W::at(static_cast<const uint8_t*>(row), i);
}

template <class Q>
void axpy(int64_t k, float a, const void* row, float* y) {
  for (int64_t b = 0; b < k / 32; ++b) {
    float v[32];
    Q::values(static_cast<const uint8_t*>(row), b, v);
    for (int j = 0; j < 32; ++j) y[b * 32 + j] += a * v[j];
  }
}

constexpr int64_t kAttentionBlock = 64;

const uint8_t* cell_of(const AttentionArgs& a, const std::byte* const* pages, int64_t position) {
  const int64_t cell = position % a.n_cells;
  return reinterpret_cast<const uint8_t*>(pages[cell / a.page_cells]) + static_cast<uint64_t>(cell % a.page_cells) * a.cell_bytes +
         a.head_offset;
}

template <class W>
void attend(const AttentionArgs& a, int64_t first, int64_t last, const float* q, float* y) {
  float top = -__builtin_inff(), total = 0.0f;
  for (int64_t d = 0; d < a.head_dim; ++d) y[d] = 0.0f;
  for (int64_t p0 = first, n = 0; p0 <= last; p0 += n) {
    n = kAttentionBlock - p0 % kAttentionBlock;
    n = last + 1 - p0 < n ? last + 1 - p0 : n;
    float score[kAttentionBlock];
    float block_top = top;
    for (int64_t i = 0; i < n; ++i) {
      score[i] = a.scale * dot<W>(a.head_dim, cell_of(a, a.k, p0 + i), reinterpret_cast<const uint8_t*>(q));
      block_top = score[i] > block_top ? score[i] : block_top;
    }
    const float shrink = p0 == first ? 0.0f : __builtin_expf(top - block_top);
    top = block_top;
    total *= shrink;
    for (int64_t d = 0; d < a.head_dim; ++d) y[d] *= shrink;
    for (int64_t i = 0; i < n; ++i) {
      const uint8_t* v = cell_of(a, a.v, p0 + i);
      const float w = __builtin_expf(score[i] - top);
      total += w;
      for (int64_t d = 0; d < a.head_dim; ++d) y[d] += w * W::at(v, d);
    }
  }
  for (int64_t d = 0; d < a.head_dim; ++d) y[d] /= total;
}

template <class W>
void attention(const AttentionArgs& a) {
  for (int64_t t = 0; t < a.n_tokens; ++t) {
    const int64_t last = a.pos + t, first = a.window > 0 && last >= a.window ? last - a.window + 1 : 0;
    for (int64_t j = 0; j < a.n_q; ++j) attend<W>(a, first, last, a.q + t * a.stride + j * a.head_dim, a.y + t * a.stride + j * a.head_dim);
  }
}

void silu_mul(int64_t n, const float* gate, const float* up, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] / (1.0f + __builtin_expf(-gate[i])) * up[i];
}

void f32_to_f16(int64_t n, const float* x, uint16_t* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = float_to_half(x[i]);
}

#include "backends/cpu/kernels/plane.inc"

}  // namespace

const KernelTable kGeneric = {
    "generic",
    quantize_q8,
    quantize_fine,
    {matmul_float<F32>, matmul_float<F16>, matmul_float<BF16>, matmul_quant<Q8_0>, matmul_quant<Q4_0>, matmul_quant<Q4_1>,
     matmul_quant<Q6_K>, matmul_quant<Q4_K>},
    {nullptr, nullptr, nullptr, matmul_by_neuron<Q8_0>, matmul_by_neuron<Q4_0>, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, matmul_interleaved<Q8_0>, matmul_interleaved<Q4_0>, matmul_interleaved<Q4_1>, matmul_interleaved<Q6_K>,
     nullptr},
    {dequantize_float<F32>, dequantize_float<F16>, dequantize_float<BF16>, dequantize<Q8_0>, dequantize<Q4_0>, dequantize<Q4_1>,
     dequantize<Q6_K>, dequantize<Q4_K>},
    {axpy_float<F32>, axpy_float<F16>, axpy_float<BF16>, axpy<Q8_0>, axpy<Q4_0>, axpy<Q4_1>, axpy<Q6_K>, axpy<Q4_K>},
    attention<F32>,
    attention<F16>,
    attention<Q8Cell>,
    rms_norm,
    rope_neox,
    rope_adjacent,
    relu_mul,
    silu_mul,
    add,
    mark_alive,
    live_mul,
    f32_to_f16,
    f32_to_q8_0,
    plane_sums,
    {},
    nullptr,
    {},
    nullptr,
    nullptr,
};

}  // namespace fth::cpu
