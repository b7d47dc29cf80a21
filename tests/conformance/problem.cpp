// Case lines to problems: which tensors and ops each kind of case has, and the data in them.

#include "tests/conformance/problem.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "core/base/head_plane.h"
#include "tests/conformance/random.h"
#include "tests/conformance/reference.h"

namespace fth::conformance {

uint64_t tensor_bytes(const fth_tensor& t) {
  const DTypeTraits& d = kDTypes[t.dtype];
  uint64_t bytes = static_cast<uint64_t>(t.dims[t.rank - 1]) / d.block * d.block_bytes;
  for (uint32_t i = 0; i + 1 < t.rank; ++i) bytes *= static_cast<uint64_t>(t.dims[i]);
  return bytes;
}
uint64_t slot_bytes(const fth_tensor& t) {
  return t.role == FTH_ROLE_SLOTS ? tensor_bytes(t) / static_cast<uint64_t>(t.dims[0]) : tensor_bytes(t);
}

Problem::Segment Problem::segment() const {
  Segment s;
  for (const Tensor& t : tensors) s.tensors.push_back(t.desc);
  s.segment.struct_size = sizeof s.segment;
  s.segment.n_tensors = static_cast<uint32_t>(s.tensors.size());
  s.segment.n_ops = static_cast<uint32_t>(ops.size());
  s.segment.n_scalars = FTH_SCALAR_COUNT;
  s.segment.name = name.c_str();
  s.segment.tensors = s.tensors.data();
  s.segment.ops = ops.data();
  return s;
}

namespace {

// Between row-major and neuron-major (fth_ops.def, EXPERTS), code by code.
void move_neurons(Tensor& t, bool to_neuron_major) {
  const DType type = static_cast<DType>(t.desc.dtype);
  const int64_t e = t.desc.dims[1], f = t.desc.dims[2], block = kDTypes[t.desc.dtype].block_bytes;
  if ((type != DType::q4_0 && type != DType::q8_0) || e % 32 != 0)
    throw std::invalid_argument("by_neuron=2: q4_0 or q8_0, e a multiple of 32");
  const std::vector<std::byte> src = t.data;
  const auto move_nibble = [](std::byte from, bool from_high, std::byte& to, bool to_high) {
    const std::byte code = (from_high ? from >> 4 : from) & std::byte{15};
    to = to_high ? (to & std::byte{0x0f}) | code << 4 : (to & std::byte{0xf0}) | code;
  };
  for (int64_t slot = 0; slot < t.desc.dims[0]; ++slot)
    for (int64_t r = 0; r < e; ++r)
      for (int64_t j = 0; j < f; ++j) {
        const int64_t base = slot * e * f / 32 * block, in_row = base + (r * (f / 32) + j / 32) * block;
        const int64_t group = base + j / 32 * e * block, codes = group + 2 * e;
        const auto move = [&](int64_t row_at, int64_t neuron_at, int64_t n) {
          for (int64_t i = 0; i < n; ++i)
            t.data[static_cast<size_t>((to_neuron_major ? neuron_at : row_at) + i)] =
                src[static_cast<size_t>((to_neuron_major ? row_at : neuron_at) + i)];
        };
        move(in_row, group + 2 * r, 2);
        if (type == DType::q8_0) {
          move(in_row + 2 + j % 32, codes + j % 32 * e + r, 1);
          continue;
        }
        const size_t row_at = static_cast<size_t>(in_row + 2 + j % 16),
                     neuron_at = static_cast<size_t>(codes + j % 32 * (e / 2) + r / 32 * 16 + r % 16);
        const bool row_high = j % 32 >= 16, neuron_high = r % 32 >= 16;
        if (to_neuron_major)
          move_nibble(src[row_at], row_high, t.data[neuron_at], neuron_high);
        else
          move_nibble(src[neuron_at], neuron_high, t.data[row_at], row_high);
      }
}

// Between row-major and interleaved (core/model/interleaved.h), some bits at a time.
void move_rows(Tensor& t, bool to_interleaved) {
  const DType type = static_cast<DType>(t.desc.dtype);
  const int64_t k = t.desc.dims[t.desc.rank - 1], n = t.desc.dims[t.desc.rank - 2];
  const bool q6 = type == DType::q6_k, q8 = type == DType::q8_0;
  if ((!q6 && !q8 && type != DType::q4_0 && type != DType::q4_1) || n % 16 != 0)
    throw std::invalid_argument("interleaved: q8_0, q4_0, q4_1 or q6_k, rows a multiple of 16");
  const std::vector<std::byte> src = t.data;
  std::fill(t.data.begin(), t.data.end(), std::byte{0});
  const int64_t bytes = kDTypes[t.desc.dtype].block_bytes, blocks = k / kDTypes[t.desc.dtype].block,
                all = static_cast<int64_t>(src.size()) / bytes;
  for (int64_t b = 0; b < all; ++b) {
    const int64_t r = b / blocks, lane = r % 16, row = b * bytes, panel = ((r - lane) * blocks + b % blocks * 16) * bytes;
    const auto move = [&](int64_t row_at, int row_bit, int64_t panel_at, int panel_bit, unsigned mask) {
      const auto i = static_cast<size_t>(row + row_at), j = static_cast<size_t>(panel + panel_at);
      const unsigned bits = std::to_integer<unsigned>(src[to_interleaved ? i : j]) >> (to_interleaved ? row_bit : panel_bit) & mask;
      t.data[to_interleaved ? j : i] |= static_cast<std::byte>(bits << (to_interleaved ? panel_bit : row_bit));
    };
    for (int64_t i = 0; i < 2; ++i) move((q6 ? 208 : 0) + i, 0, 2 * lane + i, 0, 255);
    const int64_t head = bytes - 16;  // of q4_0 and q4_1: bytes before the codes
    for (int64_t j = 0; j < 32 && q8; ++j) move(2 + j, 0, 32 + j / 4 * 64 + lane * 4 + j % 4, 0, 255);
    for (int64_t i = 2; i < head && !q6 && !q8; ++i) move(i, 0, 32 + 2 * lane + i - 2, 0, 255);
    for (int64_t j = 0; j < 16 && !q6 && !q8; ++j) move(head + j, 0, 16 * head + j / 4 * 64 + lane * 4 + j % 4, 0, 255);
    for (int64_t s = 0; s < 16 && q6; ++s) move(192 + s, 0, 32 + s * 16 + lane, 0, 255);
    for (int64_t c = 0; c < 256 && q6; ++c) {
      const int64_t h = c / 128, g = c % 128 / 32, l = c % 32, half = l / 16, i = l % 16 / 4, at = lane * 4 + l % 4;
      move(64 * h + 32 * (g % 2) + l, g < 2 ? 0 : 4, 288 + c / 32 * 256 + i * 64 + at, static_cast<int>(4 * half), 15);
      move(128 + 32 * h + l, static_cast<int>(2 * g), 2336 + c / 32 * 128 + half * 64 + at, static_cast<int>(2 * i), 3);
    }
  }
}

class Builder {
 public:
  explicit Builder(const Case& c) : c_(c), random_(c.text) {
    p_.name = c.kind;
    m_ = c.integer("m", 1);
    p_.bucket = c.integer("bucket", m_);
    if (m_ < 1 || p_.bucket < m_ || p_.bucket > 4096) throw std::invalid_argument("m must be 1 .. bucket, bucket at most 4096");
    p_.scalars = {m_, c.integer("pos", 0), 0};
  }

  Problem finish() {
    account();
    return std::move(p_);
  }

  void embed() {
    const int64_t v = c_.integer("v", 100), e = c_.integer("e", 64);
    const uint16_t ids = tensor("ids", FTH_ROLE_INPUT, DType::i32, {p_.bucket}, 1);
    int32_t* id = data<int32_t>(ids);
    for (int64_t t = 0; t < m_; ++t) id[t] = static_cast<int32_t>(random_.below(static_cast<uint64_t>(v)));
    id[0] = static_cast<int32_t>(v - 1);
    op({FTH_OP_EMBED, {ids, weight("table", {v, e})}, {out("y", {p_.bucket, e}, 1)}, {}});
  }
  void rms_norm() {
    const int64_t e = c_.integer("e", 64);
    op({FTH_OP_RMS_NORM, {rows("x", e), norm_weight(e)}, {out("y", {p_.bucket, e}, 1)}, {c_.number("eps", 1e-6)}});
  }
  void matmul() {
    const int64_t k = c_.integer("k", 64), n = c_.integer("n", 64);
    std::vector<uint16_t> in{rows("x", k), weight("w", {n, k})};
    if (c_.integer("bias", 0)) in.push_back(vector("bias", n, 0.0, 1.0));
    const int64_t order = c_.integer("interleaved", 0);
    if (order == 1) move_rows(p_.tensors[in[1]], true);
    op({FTH_OP_MATMUL, in, {out("y", {p_.bucket, n}, 1)}, {static_cast<double>(c_.integer("fine", 0)), static_cast<double>(order)}});
  }
  // Several products of one x, of several weight types: what a backend may fuse.
  void matmuls() {
    const int64_t k = c_.integer("k", 256);
    const uint16_t x = rows("x", k);
    int64_t n = c_.integer("n", 40);
    for (const std::string& type : c_.list("ws")) {
      const std::optional<DType> t = dtype_from_name(type);
      if (!t) throw std::invalid_argument("ws: no dtype " + type);
      op({FTH_OP_MATMUL, {x, weight("w", {n, k}, *t)}, {out("y", {p_.bucket, n}, 1)}, {}});
      n = n / 2 + 3;
    }
  }
  void rope() {
    const int64_t h = c_.integer("h", 2), d = c_.integer("d", 32);
    const uint16_t x = rows("x", h * d);
    rope_op(x, out("y", {p_.bucket, h * d}, 1), h, d);
  }
  void attention() {
    const Heads heads = read_heads();
    const uint16_t q = rows("q", heads.h * heads.d), k = rows("k", heads.g * heads.d), v = rows("v", heads.g * heads.d);
    attention_op(heads, q, k, v, out("y", {p_.bucket, heads.h * heads.d}, 1));
  }
  void add() {
    const int64_t e = c_.integer("e", 64);
    op({FTH_OP_ADD, {rows("a", e), rows("b", e)}, {out("y", {p_.bucket, e}, 1)}, {}});
  }
  void glu() {
    const int64_t f = c_.integer("f", 64);
    op({FTH_OP_GLU, {rows("gate", f), rows("up", f)}, {out("y", {p_.bucket, f}, 1)}, {act()}});
  }
  void experts() {
    const int64_t e = c_.integer("e", 64);
    const uint16_t x = rows("x", e);
    experts_op(x, e, c_.integer("k", 2), FTH_ROLE_OUTPUT);
  }
  void combine() {
    const int64_t e = c_.integer("e", 64), k = c_.integer("k", 2);
    const uint16_t x = rows("x", e), y = rows("y", e, k);
    combine_op(x, y, e, k);
  }
  // A layer up to its experts: norm, q, k, v, rope, attention, output product, residual.
  void attention_block() {
    const Heads heads = read_heads();
    const int64_t e = c_.integer("e", 256), q_width = heads.h * heads.d, kv_width = heads.g * heads.d;
    const uint16_t x = rows("x", e), xn = temp("xn", {p_.bucket, e}, 1);
    op({FTH_OP_RMS_NORM, {x, norm_weight(e)}, {xn}, {1e-6}});
    const auto project = [&](const char* what, int64_t width, bool rotate, int64_t h) {
      const uint16_t y = temp(what, {p_.bucket, width}, 1);
      op({FTH_OP_MATMUL, {xn, weight(what, {width, e})}, {y}, {}});
      if (!rotate) return y;
      const uint16_t r = temp(what, {p_.bucket, width}, 1);
      rope_op(y, r, h, heads.d);
      return r;
    };
    const bool rotate = c_.integer("rope", 1) != 0;
    const uint16_t q = project("q", q_width, rotate, heads.h), k = project("k", kv_width, rotate, heads.g);
    const uint16_t v = project("v", kv_width, false, heads.g), a = temp("a", {p_.bucket, q_width}, 1);
    attention_op(heads, q, k, v, a);
    const uint16_t o = temp("o", {p_.bucket, e}, 1), y = out("y", {p_.bucket, e}, 1);
    op({FTH_OP_MATMUL, {a, weight("o", {e, q_width})}, {o}, {}});
    op({FTH_OP_ADD, {x, o}, {y}, {}});
    op({FTH_OP_RMS_NORM, {y, norm_weight(e)}, {out("h", {p_.bucket, e}, 1)}, {1e-6}});
  }
  void dense_block() {
    const int64_t e = c_.integer("e", 256), f = c_.integer("f", 512);
    const uint16_t x = rows("x", e), h = temp("h", {p_.bucket, e}, 1);
    op({FTH_OP_RMS_NORM, {x, norm_weight(e)}, {h}, {1e-6}});
    const uint16_t gate = temp("gate", {p_.bucket, f}, 1), up = temp("up", {p_.bucket, f}, 1), hidden = temp("hidden", {p_.bucket, f}, 1);
    op({FTH_OP_MATMUL, {h, weight("gate", {f, e})}, {gate}, {}});
    op({FTH_OP_MATMUL, {h, weight("up", {f, e})}, {up}, {}});
    op({FTH_OP_GLU, {gate, up}, {hidden}, {act()}});
    const uint16_t down = temp("down", {p_.bucket, e}, 1);
    op({FTH_OP_MATMUL, {hidden, weight("down", {e, f}, c_.dtype("wd", type()))}, {down}, {}});
    op({FTH_OP_ADD, {x, down}, {out("y", {p_.bucket, e}, 1)}, {}});
  }
  void moe_block() {
    const int64_t e = c_.integer("e", 256), k = c_.integer("k", 2);
    const uint16_t x = rows("x", e), h = temp("h", {p_.bucket, e}, 1);
    op({FTH_OP_RMS_NORM, {x, norm_weight(e)}, {h}, {1e-6}});
    combine_op(x, experts_op(h, e, k, FTH_ROLE_TEMP), e, k);
  }
  void head() {
    const int64_t e = c_.integer("e", 256), v = c_.integer("v", 1000);
    const uint16_t h = temp("h", {p_.bucket, e}, 1);
    op({FTH_OP_RMS_NORM, {rows("x", e), norm_weight(e)}, {h}, {1e-6}});
    op({FTH_OP_MATMUL, {h, weight("output", {v, e})}, {out("logits", {p_.bucket, v}, 1)}, {}});
  }
  // By default nothing may be skipped: then the answer is MATMUL's.
  void head_screened() {
    const int64_t e = c_.integer("e", 256), v = c_.integer("v", 1000);
    const uint16_t x = rows("x", e), w = weight("w", {v, e}), mean = vector("mean", e, 0.0, 0.05);
    const uint16_t plane = tensor("plane", FTH_ROLE_WEIGHT, DType::i32, {v, static_cast<int64_t>(plane_row_bytes(e) / 4)}, 0);
    const uint64_t row = tensor_bytes(p_.tensors[w].desc) / static_cast<uint64_t>(v);
    for (int64_t r = 0; r < v; ++r) {
      const std::vector<double> exact = dequantize(p_.tensors[w].desc.dtype, e, p_.tensors[w].data.data() + static_cast<uint64_t>(r) * row);
      std::vector<float> left(static_cast<size_t>(e));
      for (size_t i = 0; i < left.size(); ++i) left[i] = static_cast<float>(exact[i]) - data<float>(mean)[i];
      plane_rotate(left.data(), e);
      plane_encode(left.data(), e, p_.tensors[plane].data.data() + static_cast<uint64_t>(r) * plane_row_bytes(e));
    }
    op({FTH_OP_HEAD_SCREENED,
        {x, w, plane, mean},
        {out("y", {p_.bucket, v}, 1)},
        {static_cast<double>(c_.integer("top", 1)), c_.number("z", 1e6), static_cast<double>(c_.integer("fine", 0))}});
  }

 private:
  struct Heads {
    int64_t h, g, d;
  };
  Heads read_heads() const { return {c_.integer("h", 2), c_.integer("g", 1), c_.integer("d", 32)}; }
  DType type() const { return c_.dtype("w", DType::f32); }
  double act() const { return c_.word("act", "relu") == "silu" ? 1 : 0; }

  template <class T>
  T* data(uint16_t t) {
    return reinterpret_cast<T*>(p_.tensors[t].data.data());
  }

  uint16_t tensor(const char* name, uint16_t role, DType type, std::vector<int64_t> dims, int64_t rows_per_token) {
    Tensor t;
    t.name = name;
    t.desc.dtype = static_cast<uint16_t>(type);
    t.desc.role = role;
    t.desc.rank = static_cast<uint32_t>(dims.size());
    std::copy(dims.begin(), dims.end(), t.desc.dims);
    t.rows_per_token = rows_per_token;
    for (const int64_t d : dims)
      if (d < 1 || d > (1 << 24)) throw std::invalid_argument(std::string(name) + ": a dim out of range");
    // Rows of tokens that are not there hold NaN, or id -1: reading one shows.
    if (role != FTH_ROLE_TEMP && role != FTH_ROLE_OUTPUT) t.data.assign(tensor_bytes(t.desc), std::byte{0xff});
    p_.tensors.push_back(std::move(t));
    return static_cast<uint16_t>(p_.tensors.size() - 1);
  }
  uint16_t out(const char* name, std::vector<int64_t> dims, int64_t per_token) {
    return tensor(name, FTH_ROLE_OUTPUT, DType::f32, std::move(dims), per_token);
  }
  uint16_t temp(const char* name, std::vector<int64_t> dims, int64_t per_token) {
    return tensor(name, FTH_ROLE_TEMP, DType::f32, std::move(dims), per_token);
  }
  // Activations: normal numbers of `mean` and `amp`.
  uint16_t rows(const char* name, int64_t width, int64_t per_token = 1) {
    const uint16_t t = tensor(name, FTH_ROLE_INPUT, DType::f32, {p_.bucket * per_token, width}, per_token);
    const double mean = c_.number("mean", 0), amp = c_.number("amp", 1);
    for (int64_t i = 0; i < m_ * per_token * width; ++i) data<float>(t)[i] = static_cast<float>(mean + amp * random_.normal());
    return t;
  }
  uint16_t vector(const char* name, int64_t width, double mean, double amp) {
    const uint16_t t = tensor(name, FTH_ROLE_WEIGHT, DType::f32, {width}, 0);
    for (int64_t i = 0; i < width; ++i) data<float>(t)[i] = static_cast<float>(mean + amp * random_.normal());
    return t;
  }
  uint16_t norm_weight(int64_t e) { return vector("norm", e, 1.0, 0.1); }
  uint16_t weight(const char* name, std::vector<int64_t> dims) { return weight(name, std::move(dims), type()); }
  uint16_t weight(const char* name, std::vector<int64_t> dims, DType t, uint16_t role = FTH_ROLE_WEIGHT) {
    if (dims.back() % kDTypes[static_cast<size_t>(t)].block != 0)
      throw std::invalid_argument(std::string(name) + ": rows are not whole blocks");
    const double deviation = 1 / std::sqrt(static_cast<double>(dims.back()));
    const uint16_t w = tensor(name, role, t, std::move(dims), 0);
    random_.fill_weight(t, deviation, p_.tensors[w].data);
    return w;
  }
  // One braced argument: its parts are evaluated from left to right, so that the draws of random numbers come in the same order everywhere.
  struct Op {
    uint16_t kind;
    std::vector<uint16_t> in, out;
    std::vector<double> attr;
  };
  void op(const Op& made) {
    fth_op o{};
    o.kind = made.kind;
    o.n_in = static_cast<uint16_t>(made.in.size());
    o.n_out = static_cast<uint16_t>(made.out.size());
    std::fill(std::begin(o.in), std::end(o.in), uint16_t{FTH_NO_TENSOR});
    std::fill(std::begin(o.out), std::end(o.out), uint16_t{FTH_NO_TENSOR});
    std::copy(made.in.begin(), made.in.end(), o.in);
    std::copy(made.out.begin(), made.out.end(), o.out);
    std::copy(made.attr.begin(), made.attr.end(), o.attr);
    p_.ops.push_back(o);
  }

  void rope_op(uint16_t x, uint16_t y, int64_t h, int64_t d) {
    const int64_t rotated = c_.integer("r", d);
    std::vector<uint16_t> in{x};
    if (c_.integer("factors", 0)) {
      if (factors_ == FTH_NO_TENSOR) {
        factors_ = vector("factors", rotated / 2, 0, 0);
        for (int64_t j = 0; j < rotated / 2; ++j) data<float>(factors_)[j] = static_cast<float>(1.0 + 3.0 * random_.uniform());
      }
      in.push_back(factors_);
    }
    op({FTH_OP_ROPE,
        in,
        {y},
        {static_cast<double>(h), static_cast<double>(d), c_.number("base", 10000), static_cast<double>(rotated),
         c_.word("pairing", "neox") == "adjacent" ? 1.0 : 0.0, c_.number("scale", 1)}});
  }
  void attention_op(const Heads& heads, uint16_t q, uint16_t k, uint16_t v, uint16_t y) {
    const int64_t window = c_.integer("window", 0), pos = p_.scalars[FTH_SCALAR_POS];
    const int64_t cells = c_.integer("cells", window > 0 ? window + p_.bucket - 1 : pos + p_.bucket), width = heads.g * heads.d;
    const DType state = c_.dtype("state", DType::f16);
    // pages=P: the cells in P pages, of which those that the positions reach are bound.
    const int64_t pages = c_.integer("pages", 0);
    if (pages > 0 && cells % pages != 0) throw std::invalid_argument("cells must be a multiple of pages");
    if (pages > 0) p_.scalars[FTH_SCALAR_SLOTS] = (pos + m_ + cells / pages - 1) / (cells / pages);
    std::vector<uint16_t> caches;
    for (const char* name : {"k_cache", "v_cache"}) {
      const uint16_t t = pages > 0 ? tensor(name, FTH_ROLE_SLOTS, state, {pages, cells / pages, width}, 0)
                                   : tensor(name, FTH_ROLE_STATE, state, {cells, width}, 0);
      random_.fill_weight(state, 1.0, p_.tensors[t].data);
      // Cells that no position has reached hold NaN: reading one shows.
      const int64_t filled = std::min(pos, cells);
      const uint64_t cell = tensor_bytes(p_.tensors[t].desc) / static_cast<uint64_t>(cells);
      std::fill(p_.tensors[t].data.begin() + static_cast<int64_t>(static_cast<uint64_t>(filled) * cell), p_.tensors[t].data.end(),
                std::byte{0xff});
      caches.push_back(t);
    }
    op({FTH_OP_ATTENTION,
        {q, k, v, caches[0], caches[1]},
        {y},
        {static_cast<double>(heads.h), static_cast<double>(heads.g), static_cast<double>(heads.d), static_cast<double>(window),
         c_.number("score", 1 / std::sqrt(static_cast<double>(heads.d)))}});
  }
  // Every token takes top_k different slots of those in use; with fewer in use, its last ranks are in no slot. `idle` slots in use have no rows.
  uint16_t experts_op(uint16_t x, int64_t e, int64_t top_k, uint16_t role) {
    const int64_t f = c_.integer("f", 64), n_slots = c_.integer("slots", 4), used = c_.integer("used", n_slots),
                  idle = c_.integer("idle", 0);
    const int64_t down_order = c_.integer("by_neuron", 0);
    const bool by_neuron = down_order == 1;
    const DType down_type = c_.dtype("wd", type());
    const int64_t open = used - idle;
    if (used > n_slots || open < 0) throw std::invalid_argument("used is at most slots, idle at most used");
    const uint16_t begin = tensor("slot_begin", FTH_ROLE_INPUT, DType::i32, {n_slots + 1}, 0);
    const uint16_t list = tensor("rows", FTH_ROLE_INPUT, DType::i32, {p_.bucket * top_k}, top_k);
    const uint16_t gate = weight("gate", {n_slots, f, e}, type(), FTH_ROLE_SLOTS),
                   up = weight("up", {n_slots, f, e}, type(), FTH_ROLE_SLOTS);
    const uint16_t down =
        weight("down", by_neuron ? std::vector<int64_t>{n_slots, f, e} : std::vector<int64_t>{n_slots, e, f}, down_type, FTH_ROLE_SLOTS);
    if (down_order == 2) move_neurons(p_.tensors[down], true);
    const int64_t gate_order = c_.integer("interleaved", 0);
    if (gate_order == 1) move_rows(p_.tensors[gate], true);
    const double order_of_gate = static_cast<double>(gate_order);
    std::vector<std::vector<int32_t>> of_slot(static_cast<size_t>(n_slots));
    std::vector<int64_t> order(static_cast<size_t>(open));
    for (int64_t i = 0; i < open; ++i) order[static_cast<size_t>(i)] = i + (i >= open / 2 ? idle : 0);  // idle ones in the middle
    for (int64_t t = 0; t < m_; ++t) {
      for (size_t i = 0; i < order.size(); ++i) std::swap(order[i], order[i + random_.below(order.size() - i)]);
      for (int64_t rank = 0; rank < std::min(top_k, open); ++rank)
        of_slot[static_cast<size_t>(order[static_cast<size_t>(rank)])].push_back(static_cast<int32_t>(t * top_k + rank));
    }
    int32_t at = 0;
    for (int64_t s = 0; s < n_slots; ++s) {
      data<int32_t>(begin)[s] = at;
      for (const int32_t row : of_slot[static_cast<size_t>(s)]) data<int32_t>(list)[at++] = row;
    }
    data<int32_t>(begin)[n_slots] = at;
    p_.scalars[FTH_SCALAR_SLOTS] = used;
    const uint16_t y = tensor("y", role, DType::f32, {p_.bucket * top_k, e}, top_k);
    uint16_t gates = gate;
    if (c_.integer("gates", 0)) {  // in two ops
      gates = temp("g", {p_.bucket * top_k, f}, top_k);
      op({FTH_OP_EXPERT_GATES, {x, begin, list, gate}, {gates}, {static_cast<double>(top_k), order_of_gate}});
    }
    op({FTH_OP_EXPERTS,
        {x, begin, list, gates, up, down},
        {y},
        {act(), static_cast<double>(top_k), static_cast<double>(down_order), gates == gate ? order_of_gate : 0}});
    return y;
  }
  void combine_op(uint16_t x, uint16_t y, int64_t e, int64_t k) {
    const uint16_t w = tensor("weights", FTH_ROLE_INPUT, DType::f32, {p_.bucket, k}, 1);
    for (int64_t i = 0; i < m_ * k; ++i) data<float>(w)[i] = static_cast<float>(random_.uniform());
    op({FTH_OP_COMBINE, {x, y, w}, {out("out", {p_.bucket, e}, 1)}, {}});
  }

  // What one run must read and multiply.
  void account() {
    const double m = static_cast<double>(m_);
    for (const fth_op& o : p_.ops) {
      const fth_tensor& a = p_.tensors[o.in[0]].desc;
      const fth_tensor& w = p_.tensors[o.in[o.n_in > 1 ? 1 : 0]].desc;
      const double width = static_cast<double>(a.dims[a.rank - 1]);
      if (o.kind == FTH_OP_HEAD_SCREENED) {  // and the rows that are multiplied, which hang on the data
        p_.weight_bytes += static_cast<double>(tensor_bytes(p_.tensors[o.in[2]].desc));
        p_.flops += 2 * m * width * static_cast<double>(w.dims[0]);
      } else if (o.kind == FTH_OP_MATMUL) {
        p_.weight_bytes += static_cast<double>(tensor_bytes(w));
        p_.flops += 2 * m * width * static_cast<double>(w.dims[0]);
      } else if (o.kind == FTH_OP_EMBED) {
        p_.weight_bytes += m * static_cast<double>(tensor_bytes(w)) / static_cast<double>(w.dims[0]);
      } else if (o.kind == FTH_OP_ATTENTION) {
        const fth_tensor& cache = p_.tensors[o.in[3]].desc;
        double seen = 0, most = 0;
        for (int64_t t = 0; t < m_; ++t) {
          const int64_t positions = p_.scalars[FTH_SCALAR_POS] + t + 1, window = static_cast<int64_t>(o.attr[3]);
          const double cells = static_cast<double>(window > 0 ? std::min(window, positions) : positions);
          seen += cells;
          most = std::max(most, cells);
        }
        const int64_t cells = cache.dims[0] * (cache.rank == 3 ? cache.dims[1] : 1);
        p_.weight_bytes += 2 * most * static_cast<double>(tensor_bytes(cache)) / static_cast<double>(cells);
        p_.flops += 4 * seen * width;
      } else if (o.kind == FTH_OP_EXPERTS) {
        const int32_t* begin = data<int32_t>(o.in[1]);
        double expert = 0;
        for (int i = 4; i < 6; ++i) expert += static_cast<double>(slot_bytes(p_.tensors[o.in[i]].desc));
        expert += static_cast<double>(slot_bytes(p_.tensors[o.in[4]].desc));  // gate, as large as up
        for (int64_t s = 0; s < p_.scalars[FTH_SCALAR_SLOTS]; ++s) {
          const double n = begin[s + 1] - begin[s];
          p_.weight_bytes += n > 0 ? expert : 0;
          p_.flops += 6 * n * width * static_cast<double>(p_.tensors[o.in[4]].desc.dims[1]);
        }
      } else if (o.kind != FTH_OP_EXPERT_GATES) {  // counted with its EXPERTS
        p_.weight_bytes += m * width * 8;          // reads and writes of the activations themselves
        p_.flops += m * width * 2;
      }
    }
  }

  const Case& c_;
  Random random_;
  Problem p_;
  int64_t m_ = 1;
  uint16_t factors_ = FTH_NO_TENSOR;
};

struct Kind {
  const char* name;
  void (Builder::*build)();
};
constexpr Kind kKinds[] = {{"embed", &Builder::embed},
                           {"rms_norm", &Builder::rms_norm},
                           {"matmul", &Builder::matmul},
                           {"matmuls", &Builder::matmuls},
                           {"rope", &Builder::rope},
                           {"attention", &Builder::attention},
                           {"add", &Builder::add},
                           {"glu", &Builder::glu},
                           {"experts", &Builder::experts},
                           {"combine", &Builder::combine},
                           {"attention_block", &Builder::attention_block},
                           {"dense_block", &Builder::dense_block},
                           {"moe_block", &Builder::moe_block},
                           {"head", &Builder::head},
                           {"head_screened", &Builder::head_screened}};

}  // namespace

Result<Problem> build(const Case& c) {
  try {
    for (const Kind& kind : kKinds)
      if (c.kind == kind.name) {
        Builder b(c);
        (b.*kind.build)();
        c.word("tol", "");
        c.word("same", "");
        c.check_all_used();
        return b.finish();
      }
    return fail(Code::invalid_argument, c.text + ": no case kind " + c.kind);
  } catch (const std::exception& e) {
    return fail(Code::invalid_argument, c.text + ": " + e.what());
  }
}

namespace {

int32_t* ints(Problem& p, uint16_t t) { return reinterpret_cast<int32_t*>(p.tensors[t].data.data()); }

}  // namespace

Problem slice_token(const Problem& all, const Problem& state_of, int64_t t) {
  Problem one = all;
  for (size_t i = 0; i < one.tensors.size(); ++i) {
    Tensor& x = one.tensors[i];
    if (x.desc.role == FTH_ROLE_STATE) x.data = state_of.tensors[i].data;
    if (x.rows_per_token == 0) continue;
    x.desc.dims[0] = x.rows_per_token;
    if (x.data.empty()) continue;
    const uint64_t bytes = tensor_bytes(x.desc);
    const auto begin = all.tensors[i].data.begin() + static_cast<int64_t>(static_cast<uint64_t>(t) * bytes);
    x.data.assign(begin, begin + static_cast<int64_t>(bytes));
  }
  for (const fth_op& o : all.ops) {
    if (o.kind != FTH_OP_EXPERTS) continue;
    Problem whole = all;
    const int32_t* begin = ints(whole, o.in[1]);
    const int32_t* rows = ints(whole, o.in[2]);
    const int64_t n_slots = all.tensors[o.in[1]].desc.dims[0] - 1, top_k = static_cast<int64_t>(o.attr[1]);
    int32_t at = 0;
    for (int64_t s = 0; s < n_slots; ++s) {
      ints(one, o.in[1])[s] = at;
      for (int32_t i = begin[s]; i < begin[s + 1]; ++i)
        if (rows[i] / top_k == t) ints(one, o.in[2])[at++] = static_cast<int32_t>(rows[i] - t * top_k);
    }
    ints(one, o.in[1])[n_slots] = at;
  }
  one.bucket = one.scalars[FTH_SCALAR_TOKENS] = 1;
  one.scalars[FTH_SCALAR_POS] = all.scalars[FTH_SCALAR_POS] + t;
  return one;
}

Problem slice_slots(const Problem& all, int64_t begin, int64_t end) {
  Problem part = all;
  for (const fth_op& o : all.ops) {
    if (o.kind == FTH_OP_EXPERT_GATES) {
      std::vector<std::byte>& d = part.tensors[o.in[3]].data;
      const uint64_t bytes = slot_bytes(part.tensors[o.in[3]].desc);
      std::memmove(d.data(), d.data() + static_cast<uint64_t>(begin) * bytes, static_cast<uint64_t>(end - begin) * bytes);
    }
    if (o.kind != FTH_OP_EXPERTS) continue;
    for (int64_t s = begin; s <= end; ++s) ints(part, o.in[1])[s - begin] = ints(part, o.in[1])[s];
    for (int i = 3; i < 6; ++i) {
      if (part.tensors[o.in[i]].data.empty()) continue;  // gate values
      std::vector<std::byte>& d = part.tensors[o.in[i]].data;
      const uint64_t bytes = slot_bytes(part.tensors[o.in[i]].desc);
      std::memmove(d.data(), d.data() + static_cast<uint64_t>(begin) * bytes, static_cast<uint64_t>(end - begin) * bytes);
    }
  }
  part.scalars[FTH_SCALAR_SLOTS] = end - begin;
  return part;
}

Problem with_row_major_rows(const Problem& all) {
  Problem p = all;
  for (fth_op& o : p.ops) {
    const bool experts = o.kind == FTH_OP_EXPERTS;
    if (!experts && o.kind != FTH_OP_MATMUL && o.kind != FTH_OP_EXPERT_GATES) continue;
    double& order = o.attr[experts ? 3 : 1];
    if (order == 1) move_rows(p.tensors[o.in[o.kind == FTH_OP_MATMUL ? 1 : 3]], false);
    order = 0;
  }
  return p;
}

Problem with_row_major(const Problem& all) {
  Problem p = with_row_major_rows(all);
  for (fth_op& o : p.ops) {
    if (o.kind != FTH_OP_EXPERTS || o.attr[2] != 2) continue;
    move_neurons(p.tensors[o.in[5]], false);
    o.attr[2] = 0;
  }
  return p;
}

}  // namespace fth::conformance
