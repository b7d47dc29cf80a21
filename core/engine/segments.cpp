// The op lists. Tensor order is creation order; weights and ports are recorded as they are created, so binding order follows by itself.
#include "core/engine/segments.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>

#include "core/base/check.h"

namespace fth {
namespace {

class Builder {
 public:
  Builder(std::string name, SegmentKind kind, int64_t layer, int64_t n_tokens) {
    s_.name = std::move(name);
    s_.kind = kind;
    s_.layer = layer;
    s_.n_tokens = n_tokens;
  }

  uint16_t bound(Port port, uint16_t role, DType dtype, std::initializer_list<int64_t> dims) {
    s_.ports.push_back(port);
    return tensor(role, dtype, dims);
  }
  uint16_t in(Port port, DType dtype, std::initializer_list<int64_t> dims) { return bound(port, FTH_ROLE_INPUT, dtype, dims); }
  uint16_t out(Port port, std::initializer_list<int64_t> dims) { return bound(port, FTH_ROLE_OUTPUT, DType::f32, dims); }
  uint16_t temp(std::initializer_list<int64_t> dims) { return tensor(FTH_ROLE_TEMP, DType::f32, dims); }
  uint16_t matrix(const Weight& w) {
    s_.weights.push_back(&w);
    return tensor(FTH_ROLE_WEIGHT, w.dtype, {w.rows, w.cols});
  }
  uint16_t vector(const Weight& w) {
    s_.weights.push_back(&w);
    return tensor(FTH_ROLE_WEIGHT, w.dtype, {w.cols});
  }

  void op(uint16_t kind, std::initializer_list<uint16_t> in, std::initializer_list<uint16_t> out, std::initializer_list<double> attr = {}) {
    fth_op o{};
    o.kind = kind;
    o.n_in = static_cast<uint16_t>(in.size());
    o.n_out = static_cast<uint16_t>(out.size());
    std::fill(std::begin(o.in), std::end(o.in), static_cast<uint16_t>(FTH_NO_TENSOR));
    std::fill(std::begin(o.out), std::end(o.out), static_cast<uint16_t>(FTH_NO_TENSOR));
    std::copy(in.begin(), in.end(), o.in);
    std::copy(out.begin(), out.end(), o.out);
    std::copy(attr.begin(), attr.end(), o.attr);
    s_.ops.push_back(o);
  }
  // y = x w^T (+ bias), into a temporary of w's rows.
  uint16_t matmul(uint16_t x, const Weight& w, const Weight* bias = nullptr) {
    const uint16_t y = temp({s_.n_tokens, w.rows});
    matmul_into(y, x, w, bias);
    return y;
  }
  void matmul_into(uint16_t y, uint16_t x, const Weight& w, const Weight* bias = nullptr) {
    const uint16_t m = matrix(w);
    const double fine = s_.fine ? 1.0 : 0.0;
    if (bias != nullptr && *bias)
      op(FTH_OP_MATMUL, {x, m, vector(*bias)}, {y}, {fine, order(w)});
    else
      op(FTH_OP_MATMUL, {x, m}, {y}, {fine, order(w)});
  }

  static double order(const Weight& w) { return w.interleaved ? 1.0 : 0.0; }
  Segment take() { return std::move(s_); }
  Segment& segment() { return s_; }

 private:
  uint16_t tensor(uint16_t role, DType dtype, std::initializer_list<int64_t> dims) {
    fth_tensor t{};
    t.dtype = static_cast<uint16_t>(dtype);
    t.role = role;
    t.rank = static_cast<uint32_t>(dims.size());
    std::copy(dims.begin(), dims.end(), t.dims);
    s_.tensors.push_back(t);
    FTH_CHECK(s_.tensors.size() < FTH_NO_TENSOR, "a segment has few tensors");
    return static_cast<uint16_t>(s_.tensors.size() - 1);
  }
  Segment s_;
};

std::string segment_name(SegmentKind kind, int64_t layer, int64_t n_tokens) {
  std::string s = layer < 0 ? std::string() : "layer." + std::to_string(layer) + ".";
  return s + std::string(name(kind)) + ".t" + std::to_string(n_tokens);
}

// Small dense models meet activations a thousand times larger than the others of their block, and near-ties between words that 8 bits decide the wrong way
// (docs/refuted.md). Sparse models keep 8: the bundled one loses at most a prompt per task to exact arithmetic (e2e_accuracy), and their speed is the point.
bool fine_activations(const Config& c) { return !c.is_sparse(); }

Builder make(SegmentKind kind, int64_t layer, int64_t n_tokens) {
  return Builder(segment_name(kind, layer, n_tokens), kind, layer, n_tokens);
}

}  // namespace

int64_t bucket_for(int64_t n_tokens) {
  for (const int64_t b : kBuckets)
    if (n_tokens <= b) return b;
  FTH_CHECK(false, "a step holds at most 512 tokens");
  return 0;
}

fth_segment Segment::view() const {
  fth_segment s{};
  s.struct_size = sizeof s;
  s.n_tensors = static_cast<uint32_t>(tensors.size());
  s.n_ops = static_cast<uint32_t>(ops.size());
  s.n_scalars = FTH_SCALAR_COUNT;
  s.name = name.c_str();
  s.tensors = tensors.data();
  s.ops = ops.data();
  return s;
}

uint64_t Segment::weight_bytes() const {
  uint64_t n = 0;
  for (const Weight* w : weights) n += w->bytes;
  return n;
}

uint64_t Segment::flops_per_row() const {
  int64_t n = 0;
  for (const fth_op& o : ops) {
    const auto dim = [&](size_t input, size_t d) { return tensors[o.in[input]].dims[d]; };
    if (o.kind == FTH_OP_MATMUL || o.kind == FTH_OP_HEAD_SCREENED) n += 2 * dim(1, 0) * dim(1, 1);
    if (o.kind == FTH_OP_EXPERTS) n += 3 * 2 * dim(3, 1) * dim(3, 2);
    if (o.kind == FTH_OP_COMBINE) n += 2 * dim(0, 1) * dim(2, 1);
  }
  return static_cast<uint64_t>(n);
}

uint64_t Segment::flops_per_cell() const {
  double n = 0;
  for (const fth_op& o : ops)
    if (o.kind == FTH_OP_ATTENTION) n += 2 * 2 * o.attr[0] * o.attr[2];  // scores, then the weighted sum
  return static_cast<uint64_t>(n);
}

int64_t kv_cells(const Layer& layer, const SegmentShapes& shapes) {
  // A whole bucket has to fit, also in a context shorter than it. A window as long as the context is none.
  const bool sees_all = layer.window == 0 || layer.window >= shapes.n_ctx;
  const int64_t cells = sees_all ? std::max(shapes.n_ctx, shapes.max_bucket) : layer.window + shapes.max_bucket - 1;
  return sees_all && shapes.page_cells > 0 ? (cells + shapes.page_cells - 1) / shapes.page_cells * shapes.page_cells : cells;
}

bool kv_in_pages(const Layer& layer, const SegmentShapes& shapes) {
  return shapes.page_cells > 0 && (layer.window == 0 || layer.window >= shapes.n_ctx);
}

Segment embed_segment(const Model& model, const Weight& rows, int64_t n_tokens) {
  Builder b = make(SegmentKind::embed, -1, n_tokens);
  const uint16_t ids = b.in(Port::ids, DType::i32, {n_tokens});
  const uint16_t table = b.matrix(rows);
  const uint16_t x = b.out(Port::x, {n_tokens, model.config.n_embd});
  b.op(FTH_OP_EMBED, {ids, table}, {x});
  return b.take();
}

Segment router_segment(const Model& model, int64_t layer, int64_t n_tokens) {
  const Config& c = model.config;
  Builder b = make(SegmentKind::router, layer, n_tokens);
  const uint16_t x = b.in(Port::x, DType::f32, {n_tokens, c.n_embd});
  const uint16_t z = b.out(Port::router_logits, {n_tokens, c.n_expert});
  b.matmul_into(z, x, model.layers[static_cast<size_t>(layer)].router);
  return b.take();
}

Segment attention_segment(const Model& model, int64_t layer, int64_t n_tokens, const SegmentShapes& shapes, Variant variant) {
  const Config& c = model.config;
  const Layer& l = model.layers[static_cast<size_t>(layer)];
  const int64_t n = n_tokens, q_width = c.n_head * c.head_dim, kv_width = c.n_head_kv * c.head_dim;
  const int64_t cells = kv_cells(l, shapes);
  const double window = l.window < shapes.n_ctx ? static_cast<double>(l.window) : 0;
  Builder b = make(SegmentKind::attention, layer, n);
  b.segment().fine = fine_activations(c);

  const uint16_t x = b.in(Port::x, DType::f32, {n, c.n_embd});
  const auto cache = [&](Port port) {
    if (!kv_in_pages(l, shapes)) return b.bound(port, FTH_ROLE_STATE, shapes.kv_dtype, {cells, kv_width});
    return b.bound(port, FTH_ROLE_SLOTS, shapes.kv_dtype, {cells / shapes.page_cells, shapes.page_cells, kv_width});
  };
  const uint16_t k_cache = cache(Port::k_cache), v_cache = cache(Port::v_cache);
  const uint16_t y = b.out(Port::y, {n, c.n_embd});

  const uint16_t normed = variant == Variant::norms ? b.out(Port::norm, {n, c.n_embd}) : b.temp({n, c.n_embd});
  b.op(FTH_OP_RMS_NORM, {x, b.vector(l.attn_norm)}, {normed}, {c.rms_eps});
  uint16_t q = b.matmul(normed, l.q, &l.q_bias);
  uint16_t k = b.matmul(normed, l.k, &l.k_bias);
  const uint16_t v = b.matmul(normed, l.v, &l.v_bias);
  if (l.rope) {
    const auto rotate = [&](uint16_t t, int64_t heads) {
      const uint16_t r = b.temp({n, heads * c.head_dim});
      const std::initializer_list<double> attr = {static_cast<double>(heads),       static_cast<double>(c.head_dim),     l.rope_base,
                                                  static_cast<double>(c.rope_dims), static_cast<double>(c.rope_pairing), c.rope_scale};
      if (model.rope_factors)
        b.op(FTH_OP_ROPE, {t, b.vector(model.rope_factors)}, {r}, attr);
      else
        b.op(FTH_OP_ROPE, {t}, {r}, attr);
      return r;
    };
    q = rotate(q, c.n_head);
    k = rotate(k, c.n_head_kv);
  }
  const uint16_t attended = b.temp({n, q_width});
  b.op(FTH_OP_ATTENTION, {q, k, v, k_cache, v_cache}, {attended},
       {static_cast<double>(c.n_head), static_cast<double>(c.n_head_kv), static_cast<double>(c.head_dim), window,
        1.0 / std::sqrt(static_cast<double>(c.head_dim))});
  const uint16_t projected = b.matmul(attended, l.attn_output);

  if (c.is_sparse()) {
    b.op(FTH_OP_ADD, {x, projected}, {y});
    const uint16_t h = b.out(Port::h, {n, c.n_embd});
    b.op(FTH_OP_RMS_NORM, {y, b.vector(l.ffn_norm)}, {h}, {c.rms_eps});
    return b.take();
  }
  const uint16_t after = b.temp({n, c.n_embd});
  b.op(FTH_OP_ADD, {x, projected}, {after});
  const uint16_t h = b.temp({n, c.n_embd});
  b.op(FTH_OP_RMS_NORM, {after, b.vector(l.ffn_norm)}, {h}, {c.rms_eps});
  const uint16_t gate = b.matmul(h, l.gate);
  const uint16_t up = b.matmul(h, l.up);
  const uint16_t hidden = b.temp({n, c.n_ff});
  b.op(FTH_OP_GLU, {gate, up}, {hidden}, {static_cast<double>(c.activation)});
  const uint16_t down = b.matmul(hidden, l.down);
  b.op(FTH_OP_ADD, {after, down}, {y});
  return b.take();
}

Segment experts_segment(const Model& model, int64_t layer, int64_t n_tokens, Variant variant) {
  const Config& c = model.config;
  const Layer& l = model.layers[static_cast<size_t>(layer)];
  Builder b = make(SegmentKind::experts, layer, n_tokens);
  // One token uses top_k slots; a batch may touch every expert.
  const int64_t slots = std::min(c.n_expert, n_tokens * c.top_k);
  b.segment().n_slots = slots;
  const uint16_t h = b.in(Port::h, DType::f32, {n_tokens, c.n_embd});
  const uint16_t slot_begin = b.in(Port::slot_begin, DType::i32, {slots + 1});
  const uint16_t rows = b.in(Port::rows, DType::i32, {n_tokens * c.top_k});
  const auto gates = [&] { return b.bound(Port::expert_gate, FTH_ROLE_SLOTS, l.gate.dtype, {slots, l.gate.rows, l.gate.cols}); };
  if (variant == Variant::gates) {
    b.segment().name += ".gates";
    b.op(FTH_OP_EXPERT_GATES, {h, slot_begin, rows, gates()}, {b.out(Port::gate_values, {n_tokens * c.top_k, l.gate.rows})},
         {static_cast<double>(c.top_k), Builder::order(l.gate)});
    return b.take();
  }
  const bool rest = variant == Variant::after_gates;
  if (rest) b.segment().name += ".rest";
  const uint16_t gate = rest ? b.in(Port::gate_values, DType::f32, {n_tokens * c.top_k, l.gate.rows}) : gates();
  const uint16_t up = b.bound(Port::expert_up, FTH_ROLE_SLOTS, l.up.dtype, {slots, l.up.rows, l.up.cols});
  const uint16_t down = b.bound(Port::expert_down, FTH_ROLE_SLOTS, l.down.dtype, {slots, l.down.rows, l.down.cols});
  const uint16_t out = b.out(Port::expert_out, {n_tokens * c.top_k, c.n_embd});
  b.op(FTH_OP_EXPERTS, {h, slot_begin, rows, gate, up, down}, {out},
       {static_cast<double>(c.activation), static_cast<double>(c.top_k), static_cast<double>(l.down_layout),
        rest ? 0.0 : Builder::order(l.gate)});
  return b.take();
}

Segment combine_segment(const Model& model, int64_t layer, int64_t n_tokens) {
  const Config& c = model.config;
  Builder b = make(SegmentKind::combine, layer, n_tokens);
  const uint16_t y = b.in(Port::y, DType::f32, {n_tokens, c.n_embd});
  const uint16_t e = b.in(Port::expert_out, DType::f32, {n_tokens * c.top_k, c.n_embd});
  const uint16_t w = b.in(Port::gates, DType::f32, {n_tokens, c.top_k});
  const uint16_t x = b.out(Port::x, {n_tokens, c.n_embd});
  b.op(FTH_OP_COMBINE, {y, e, w}, {x});
  return b.take();
}

Segment head_segment(const Model& model, int64_t n_tokens, Variant variant) {
  const Config& c = model.config;
  Builder b = make(SegmentKind::head, -1, n_tokens);
  b.segment().fine = fine_activations(c);
  const uint16_t x = b.in(Port::x, DType::f32, {n_tokens, c.n_embd});
  const uint16_t logits = b.out(Port::logits, {n_tokens, c.n_vocab});
  const uint16_t normed = variant == Variant::norms ? b.out(Port::norm, {n_tokens, c.n_embd}) : b.temp({n_tokens, c.n_embd});
  b.op(FTH_OP_RMS_NORM, {x, b.vector(model.output_norm)}, {normed}, {c.rms_eps});
  b.matmul_into(logits, normed, model.output);
  return b.take();
}

Segment screened_head_segment(const Model& model, const Weight& plane, const Weight& mean, int64_t k, double z) {
  const Config& c = model.config;
  Builder b = make(SegmentKind::head, -1, 1);
  b.segment().name += ".screened";
  const uint16_t x = b.in(Port::x, DType::f32, {1, c.n_embd});
  const uint16_t logits = b.out(Port::logits, {1, c.n_vocab}), normed = b.temp({1, c.n_embd});
  b.op(FTH_OP_RMS_NORM, {x, b.vector(model.output_norm)}, {normed}, {c.rms_eps});
  const uint16_t head = b.matrix(model.output), codes = b.matrix(plane);
  b.op(FTH_OP_HEAD_SCREENED, {normed, head, codes, b.vector(mean)}, {logits}, {static_cast<double>(k), z, fine_activations(c) ? 1.0 : 0.0});
  return b.take();
}

}  // namespace fth
