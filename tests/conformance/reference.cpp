// See reference.h. Only the layouts of the block types and the meaning of the ops are here.

#include "tests/conformance/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>

namespace fth::conformance {
namespace {

template <class T>
T load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
int byte_at(const std::byte* p, int64_t i) { return std::to_integer<int>(p[i]); }
double half_at(const std::byte* p) { return f16_value(load<uint16_t>(p)); }

// One block to its values.
using Block = void (*)(const std::byte* p, double* y);

void block_q8_0(const std::byte* p, double* y) {
  for (int i = 0; i < 32; ++i) y[i] = half_at(p) * load<int8_t>(p + 2 + i);
}
void block_q4_0(const std::byte* p, double* y) {
  for (int i = 0; i < 32; ++i) {
    const int b = byte_at(p, 2 + i % 16);
    y[i] = half_at(p) * ((i < 16 ? b & 15 : b >> 4) - 8);
  }
}
void block_q4_1(const std::byte* p, double* y) {
  for (int i = 0; i < 32; ++i) {
    const int b = byte_at(p, 4 + i % 16);
    y[i] = half_at(p) * (i < 16 ? b & 15 : b >> 4) + half_at(p + 2);
  }
}
// 8 groups of 32 with a 6-bit scale and a 6-bit minimum each. Bytes 4..15 hold them: of the first four groups whole, of the last four the low
// nibbles in bytes 12..15 and the two high bits on top of the first four's.
void block_q4_k(const std::byte* p, double* y) {
  const double d = half_at(p), dmin = half_at(p + 2);
  for (int i = 0; i < 256; ++i) {
    const int group = i / 32;
    int scale = 0, minimum = 0;
    if (group < 4) {
      scale = byte_at(p, 4 + group) & 63;
      minimum = byte_at(p, 8 + group) & 63;
    } else {
      scale = (byte_at(p, 8 + group) & 15) + 16 * (byte_at(p, group) >> 6);
      minimum = (byte_at(p, 8 + group) >> 4) + 16 * (byte_at(p, 4 + group) >> 6);
    }
    const int b = byte_at(p, 16 + group / 2 * 32 + i % 32);
    y[i] = d * scale * (group % 2 == 0 ? b & 15 : b >> 4) - dmin * minimum;
  }
}
// 16 groups of 16 with an 8-bit scale each. Of each half of 128 values, value i has its low four bits in ql[i % 64] (low nibble for i < 64) and
// its two high bits in qh[i % 32], at bit 2 * (i / 32).
void block_q6_k(const std::byte* p, double* y) {
  const double d = half_at(p + 208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, j = i % 128;
    const int b = byte_at(p, half * 64 + j % 64);
    const int low = j < 64 ? b & 15 : b >> 4;
    const int high = (byte_at(p, 128 + half * 32 + j % 32) >> (2 * (j / 32))) & 3;
    y[i] = d * load<int8_t>(p + 192 + i / 16) * (low + 16 * high - 32);
  }
}

}  // namespace

double f16_value(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = (bits & 0x8000) ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

uint16_t f16_bits(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00);
  const double a = std::fabs(value);
  if (a >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00);
  // In units of the last place of its binade, at least 2^-24; nearbyint rounds ties to even. A carry moves into the exponent by itself.
  const int exponent = std::max(a > 0 ? std::ilogb(a) : -14, -14);
  const double units = std::nearbyint(std::ldexp(a, 10 - exponent));
  return static_cast<uint16_t>(sign | (units < 1024 ? static_cast<int>(units) : (exponent + 14) * 1024 + static_cast<int>(units)));
}

std::vector<double> dequantize(uint16_t dtype, int64_t k, const std::byte* row) {
  std::vector<double> y(static_cast<size_t>(k));
  const auto blocks = [&](int64_t values, int64_t bytes, Block block) {
    for (int64_t b = 0; b < k / values; ++b) block(row + b * bytes, y.data() + b * values);
  };
  switch (dtype) {
    case FTH_DTYPE_F32: blocks(1, 4, [](const std::byte* p, double* v) { *v = static_cast<double>(load<float>(p)); }); break;
    case FTH_DTYPE_I32: blocks(1, 4, [](const std::byte* p, double* v) { *v = load<int32_t>(p); }); break;
    case FTH_DTYPE_F16: blocks(1, 2, [](const std::byte* p, double* v) { *v = half_at(p); }); break;
    case FTH_DTYPE_BF16:
      blocks(1, 2, [](const std::byte* p, double* v) {
        const uint32_t bits = static_cast<uint32_t>(load<uint16_t>(p)) << 16;
        float f;
        std::memcpy(&f, &bits, sizeof f);
        *v = static_cast<double>(f);
      });
      break;
    case FTH_DTYPE_Q8_0: blocks(32, 34, block_q8_0); break;
    case FTH_DTYPE_Q4_0: blocks(32, 18, block_q4_0); break;
    case FTH_DTYPE_Q4_1: blocks(32, 20, block_q4_1); break;
    case FTH_DTYPE_Q6_K: blocks(256, 210, block_q6_k); break;
    case FTH_DTYPE_Q4_K: blocks(256, 144, block_q4_k); break;
    default: throw std::invalid_argument("reference: unknown dtype");
  }
  return y;
}

namespace {

// A tensor's values as a matrix: rows of its last dim.
struct Matrix {
  std::vector<double>* values;
  int64_t width;
  double& at(int64_t row, int64_t column) const { return (*values)[static_cast<size_t>(row * width + column)]; }
};

double activation(double kind, double g) { return kind == 0 ? std::max(g, 0.0) : g / (1 + std::exp(-g)); }

struct Interpreter {
  const Problem& p;
  std::vector<std::vector<double>> values;
  int64_t n = p.scalars[FTH_SCALAR_TOKENS], pos = p.scalars[FTH_SCALAR_POS];

  const fth_tensor& desc(uint16_t t) const { return p.tensors[t].desc; }
  int64_t last_dim(uint16_t t) const { return desc(t).dims[desc(t).rank - 1]; }
  Matrix matrix(uint16_t t) { return {&values[t], last_dim(t)}; }
  bool has(const fth_op& op, uint32_t i) const { return i < op.n_in && op.in[i] != FTH_NO_TENSOR; }
  int64_t integer(const std::vector<double>& v, int64_t i) const { return static_cast<int64_t>(v[static_cast<size_t>(i)]); }

  // Quantised tensors are not kept unpacked: row `row` of the rows of tensor t.
  std::vector<double> weight_row(uint16_t t, int64_t row) const {
    const uint64_t rows = tensor_bytes(desc(t)) / row_size(t);
    if (static_cast<uint64_t>(row) >= rows) throw std::out_of_range("reference: row");
    return dequantize(desc(t).dtype, last_dim(t), p.tensors[t].data.data() + static_cast<uint64_t>(row) * row_size(t));
  }
  // Of output e and neuron f in a neuron-major matrix: for each 32 neurons the scales of all outputs, then the codes neuron by neuron.
  double neuron_major_weight(uint16_t t, int64_t slot, int64_t e, int64_t f) const {
    const int64_t outputs = desc(t).dims[1], block = kDTypes[desc(t).dtype].block_bytes;
    const std::byte* group = p.tensors[t].data.data() + (slot * (last_dim(t) / 32) + f / 32) * outputs * block;
    const std::byte* codes = group + outputs * 2;
    if (desc(t).dtype == FTH_DTYPE_Q8_0) return half_at(group + e * 2) * load<int8_t>(codes + f % 32 * outputs + e);
    const int b = byte_at(codes, f % 32 * (outputs / 2) + e / 32 * 16 + e % 16);
    return half_at(group + e * 2) * ((e % 32 < 16 ? b & 15 : b >> 4) - 8);
  }
  uint64_t row_size(uint16_t t) const {
    const DTypeTraits& d = kDTypes[desc(t).dtype];
    return static_cast<uint64_t>(last_dim(t)) / d.block * d.block_bytes;
  }

  void embed(const fth_op& op) {
    for (int64_t t = 0; t < n; ++t) {
      const std::vector<double> row = weight_row(op.in[1], integer(values[op.in[0]], t));
      for (int64_t e = 0; e < last_dim(op.out[0]); ++e) matrix(op.out[0]).at(t, e) = row[static_cast<size_t>(e)];
    }
  }
  void rms_norm(const fth_op& op) {
    const Matrix x = matrix(op.in[0]), y = matrix(op.out[0]);
    for (int64_t t = 0; t < n; ++t) {
      double sum = 0;
      for (int64_t e = 0; e < x.width; ++e) sum += x.at(t, e) * x.at(t, e);
      const double scale = 1 / std::sqrt(sum / static_cast<double>(x.width) + op.attr[0]);
      for (int64_t e = 0; e < x.width; ++e) y.at(t, e) = x.at(t, e) * scale * values[op.in[1]][static_cast<size_t>(e)];
    }
  }
  void matmul(const fth_op& op) {
    const Matrix x = matrix(op.in[0]), y = matrix(op.out[0]);
    for (int64_t m = 0; m < y.width; ++m) {
      const std::vector<double> w = weight_row(op.in[1], m);
      for (int64_t t = 0; t < n; ++t) {
        double sum = 0;
        for (int64_t k = 0; k < x.width; ++k) sum += x.at(t, k) * w[static_cast<size_t>(k)];
        y.at(t, m) = sum + (has(op, 2) ? values[op.in[2]][static_cast<size_t>(m)] : 0.0);
      }
    }
  }
  // Every row: cases skip none (head_screened_test looks at what is skipped).
  void screened(const fth_op& op) {
    const Matrix x = matrix(op.in[0]), y = matrix(op.out[0]);
    for (int64_t m = 0; m < y.width; ++m) {
      const std::vector<double> w = weight_row(op.in[1], m);
      double sum = 0;
      for (int64_t k = 0; k < x.width; ++k) sum += x.at(0, k) * w[static_cast<size_t>(k)];
      y.at(0, m) = sum;
    }
  }
  void rope(const fth_op& op) {
    const int64_t heads = static_cast<int64_t>(op.attr[0]), head_dim = static_cast<int64_t>(op.attr[1]);
    const int64_t rotated = static_cast<int64_t>(op.attr[3]), half = rotated / 2;
    const Matrix x = matrix(op.in[0]), y = matrix(op.out[0]);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t d = 0; d < head_dim; ++d) y.at(t, h * head_dim + d) = x.at(t, h * head_dim + d);
        for (int64_t j = 0; j < half; ++j) {
          const double factor = has(op, 1) ? values[op.in[1]][static_cast<size_t>(j)] : 1.0;
          // In long double, so that the angle of a far position is right to more digits than any backend has.
          const long double angle =
              static_cast<long double>(pos + t) * static_cast<long double>(op.attr[5]) *
              powl(static_cast<long double>(op.attr[2]), -2.0L * static_cast<long double>(j) / static_cast<long double>(rotated)) /
              static_cast<long double>(factor);
          const double c = static_cast<double>(cosl(angle)), s = static_cast<double>(sinl(angle));
          const int64_t a = h * head_dim + (op.attr[4] == 0 ? j : 2 * j), b = h * head_dim + (op.attr[4] == 0 ? j + half : 2 * j + 1);
          y.at(t, a) = x.at(t, a) * c - x.at(t, b) * s;
          y.at(t, b) = x.at(t, a) * s + x.at(t, b) * c;
        }
      }
  }
  // What a cell of this type keeps of value e of row t.
  static double stored(uint16_t dtype, const Matrix& from, int64_t t, int64_t e) {
    const double x = from.at(t, e);
    if (dtype == FTH_DTYPE_F16) return f16_value(f16_bits(x));
    if (dtype != FTH_DTYPE_Q8_0) return static_cast<double>(static_cast<float>(x));
    double most = 0;
    for (int64_t i = e / 32 * 32; i < e / 32 * 32 + 32; ++i) most = std::max(most, std::fabs(from.at(t, i)));
    return most == 0 ? 0 : f16_value(f16_bits(most / 127)) * std::nearbyint(x / (most / 127));
  }
  void attention(const fth_op& op) {
    const int64_t heads = static_cast<int64_t>(op.attr[0]), kv_heads = static_cast<int64_t>(op.attr[1]),
                  d = static_cast<int64_t>(op.attr[2]);
    const int64_t window = static_cast<int64_t>(op.attr[3]);
    const Matrix q = matrix(op.in[0]), k_cache = matrix(op.in[3]), v_cache = matrix(op.in[4]), y = matrix(op.out[0]);
    const int64_t cells = static_cast<int64_t>(values[op.in[3]].size()) / k_cache.width;
    for (int64_t t = 0; t < n; ++t)
      for (const int i : {0, 1}) {
        const Matrix from = matrix(op.in[1 + i]), to = matrix(op.in[3 + i]);
        for (int64_t e = 0; e < to.width; ++e) to.at((pos + t) % cells, e) = stored(desc(op.in[3]).dtype, from, t, e);
      }
    for (int64_t t = 0; t < n; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t g = h / (heads / kv_heads), last = pos + t, first = window > 0 ? std::max<int64_t>(0, last - window + 1) : 0;
        std::vector<double> score;
        for (int64_t c = first; c <= last; ++c) {
          double dot = 0;
          for (int64_t e = 0; e < d; ++e) dot += q.at(t, h * d + e) * k_cache.at(c % cells, g * d + e);
          score.push_back(dot * op.attr[4]);
        }
        const double most = *std::max_element(score.begin(), score.end());
        double sum = 0;
        for (double& s : score) sum += s = std::exp(s - most);
        for (int64_t e = 0; e < d; ++e) {
          double value = 0;
          for (int64_t c = first; c <= last; ++c) value += score[static_cast<size_t>(c - first)] / sum * v_cache.at(c % cells, g * d + e);
          y.at(t, h * d + e) = value;
        }
      }
  }
  void add(const fth_op& op) {
    for (int64_t t = 0; t < n; ++t)
      for (int64_t e = 0; e < last_dim(op.out[0]); ++e) matrix(op.out[0]).at(t, e) = matrix(op.in[0]).at(t, e) + matrix(op.in[1]).at(t, e);
  }
  void glu(const fth_op& op) {
    for (int64_t t = 0; t < n; ++t)
      for (int64_t f = 0; f < last_dim(op.out[0]); ++f)
        matrix(op.out[0]).at(t, f) = activation(op.attr[0], matrix(op.in[0]).at(t, f)) * matrix(op.in[1]).at(t, f);
  }
  double product(uint16_t weights, int64_t row, const Matrix& x, int64_t t) const {
    const std::vector<double> w = weight_row(weights, row);
    double sum = 0;
    for (int64_t e = 0; e < x.width; ++e) sum += w[static_cast<size_t>(e)] * x.at(t, e);
    return sum;
  }
  void expert_gates(const fth_op& op) {
    const Matrix x = matrix(op.in[0]), y = matrix(op.out[0]);
    const int64_t top_k = static_cast<int64_t>(op.attr[0]);
    for (int64_t slot = 0; slot < p.scalars[FTH_SCALAR_SLOTS]; ++slot)
      for (int64_t i = integer(values[op.in[1]], slot); i < integer(values[op.in[1]], slot + 1); ++i) {
        const int64_t r = integer(values[op.in[2]], i);
        for (int64_t f = 0; f < y.width; ++f) y.at(r, f) = product(op.in[3], slot * y.width + f, x, r / top_k);
      }
  }
  void experts(const fth_op& op) {
    const Matrix x = matrix(op.in[0]), y = matrix(op.out[0]);
    const int64_t ff = desc(op.in[4]).dims[1], width = x.width, top_k = static_cast<int64_t>(op.attr[1]);
    const bool gates_given = desc(op.in[3]).role != FTH_ROLE_SLOTS;
    for (int64_t slot = 0; slot < p.scalars[FTH_SCALAR_SLOTS]; ++slot)
      for (int64_t i = integer(values[op.in[1]], slot); i < integer(values[op.in[1]], slot + 1); ++i) {
        const int64_t r = integer(values[op.in[2]], i);
        for (int64_t e = 0; e < width; ++e) y.at(r, e) = 0;
        std::vector<double> hidden;
        for (int64_t f = 0; f < ff; ++f) {
          const double g = gates_given ? matrix(op.in[3]).at(r, f) : product(op.in[3], slot * ff + f, x, r / top_k);
          const double u = product(op.in[4], slot * ff + f, x, r / top_k);
          hidden.push_back(activation(op.attr[0], g) * u);
        }
        for (int64_t f = 0; op.attr[2] == 1 && f < ff; ++f) {
          const std::vector<double> row = weight_row(op.in[5], slot * ff + f);
          for (int64_t e = 0; e < width; ++e) y.at(r, e) += hidden[static_cast<size_t>(f)] * row[static_cast<size_t>(e)];
        }
        for (int64_t e = 0; op.attr[2] == 2 && e < width; ++e)
          for (int64_t f = 0; f < ff; ++f) y.at(r, e) += hidden[static_cast<size_t>(f)] * neuron_major_weight(op.in[5], slot, e, f);
        for (int64_t e = 0; op.attr[2] == 0 && e < width; ++e) {
          const std::vector<double> row = weight_row(op.in[5], slot * width + e);
          for (int64_t f = 0; f < ff; ++f) y.at(r, e) += hidden[static_cast<size_t>(f)] * row[static_cast<size_t>(f)];
        }
      }
  }
  void combine(const fth_op& op) {
    const Matrix x = matrix(op.in[0]), y = matrix(op.in[1]), weights = matrix(op.in[2]), out = matrix(op.out[0]);
    for (int64_t t = 0; t < n; ++t)
      for (int64_t e = 0; e < x.width; ++e) {
        double sum = x.at(t, e);
        for (int64_t rank = 0; rank < weights.width; ++rank) sum += weights.at(t, rank) * y.at(t * weights.width + rank, e);
        out.at(t, e) = sum;
      }
  }
};

}  // namespace

std::vector<std::vector<double>> run_reference(const Problem& given) {
  const Problem p = with_row_major_rows(given);
  Interpreter in{.p = p, .values = {}};
  std::set<uint16_t> caches;  // unpacked whatever their type and role: an op writes them
  for (const fth_op& op : p.ops)
    if (op.kind == FTH_OP_ATTENTION) caches.insert({op.in[3], op.in[4]});
  for (const Tensor& t : p.tensors) {
    const DTypeTraits& d = kDTypes[t.desc.dtype];
    std::vector<double> v;
    const bool cells = caches.count(static_cast<uint16_t>(in.values.size())) > 0;
    if (cells || (!t.data.empty() && d.block == 1 && t.desc.role != FTH_ROLE_SLOTS && t.desc.role != FTH_ROLE_OUTPUT)) {
      v = dequantize(t.desc.dtype, static_cast<int64_t>(t.data.size() / d.block_bytes) * d.block, t.data.data());
    } else if (t.desc.role == FTH_ROLE_TEMP || t.desc.role == FTH_ROLE_OUTPUT) {
      v.assign(tensor_bytes(t.desc) / sizeof(float), std::numeric_limits<double>::quiet_NaN());
    }
    in.values.push_back(std::move(v));
  }
  for (const fth_op& op : p.ops) switch (op.kind) {
      case FTH_OP_EMBED: in.embed(op); break;
      case FTH_OP_RMS_NORM: in.rms_norm(op); break;
      case FTH_OP_MATMUL: in.matmul(op); break;
      case FTH_OP_ROPE: in.rope(op); break;
      case FTH_OP_ATTENTION: in.attention(op); break;
      case FTH_OP_ADD: in.add(op); break;
      case FTH_OP_GLU: in.glu(op); break;
      case FTH_OP_EXPERTS: in.experts(op); break;
      case FTH_OP_EXPERT_GATES: in.expert_gates(op); break;
      case FTH_OP_COMBINE: in.combine(op); break;
      case FTH_OP_HEAD_SCREENED: in.screened(op); break;
      default: throw std::invalid_argument("reference: unknown op");
    }
  return std::move(in.values);
}

}  // namespace fth::conformance
