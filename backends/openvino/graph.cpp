// Ops of a segment as nodes. Every shape is static, as NPU compilers want it; what depends on the position comes in as inputs.

#include "backends/openvino/graph.h"

#include <limits>

#include <openvino/opsets/opset13.hpp>

#include "backends/openvino/weights.h"

namespace fth::openvino {
namespace {

namespace op = ov::opset13;
using Value = ov::Output<ov::Node>;
using Kind = Port::Kind;

Value integers(const std::vector<int64_t>& v) { return op::Constant::create(ov::element::i64, {v.size()}, v); }
Value number(double v) { return op::Constant::create(ov::element::f32, ov::Shape{}, {static_cast<float>(v)}); }
Value reshape(const Value& x, const std::vector<int64_t>& dims) { return std::make_shared<op::Reshape>(x, integers(dims), false); }
Value transpose(const Value& x, const std::vector<int64_t>& order) { return std::make_shared<op::Transpose>(x, integers(order)); }
Value multiply(const Value& a, const Value& b) { return std::make_shared<op::Multiply>(a, b); }
Value add(const Value& a, const Value& b) { return std::make_shared<op::Add>(a, b); }
Value subtract(const Value& a, const Value& b) { return std::make_shared<op::Subtract>(a, b); }
Value matmul(const Value& a, const Value& b, bool b_transposed) { return std::make_shared<op::MatMul>(a, b, false, b_transposed); }
Value concat(const ov::OutputVector& parts, int64_t axis) { return std::make_shared<op::Concat>(parts, axis); }
Value in_f32(const Value& x) {
  return x.get_element_type() == ov::element::f32 ? x : Value(std::make_shared<op::Convert>(x, ov::element::f32));
}
ov::OutputVector split(const Value& x, int64_t axis, const std::vector<int64_t>& lengths) {
  const auto axis_node = op::Constant::create(ov::element::i64, ov::Shape{}, {axis});
  return std::make_shared<op::VariadicSplit>(x, axis_node, integers(lengths))->outputs();
}

// x with the 11 significant bits of f16, still in f32 (T. J. Dekker, Numerische Mathematik 18, 1971: 2^13 + 1 splits 24 bits into 11 and 13). Rows attend to
// what the cache will hold; a conversion there and back is what a compiler for f32 takes out.
Value rounded_to_half(const Value& x) {
  const Value scaled = multiply(x, number(8193));
  return subtract(scaled, subtract(scaled, x));
}

class Builder {
 public:
  Builder(const GraphPlan& plan, const std::vector<const std::byte*>& weights, const Target& to)
      : plan_(plan), weights_(weights), to_(to), values_(plan.tensors.size()) {}
  std::shared_ptr<ov::Model> build();

 private:
  int64_t n() const { return plan_.rules.n_tokens; }
  Value of(uint32_t v) {
    if (values_[v].get_node() == nullptr) values_[v] = constant_of(plan_.tensors[v], weights_[v], to_.form);
    return values_[v];
  }
  Value input(Kind kind, uint32_t item) const {
    for (size_t i = 0; i < plan_.inputs.size(); ++i)
      if (plan_.inputs[i].kind == kind && plan_.inputs[i].item == item) return parameters_[i];
    return {};
  }
  Value state(uint32_t v) const {
    for (size_t i = 0; i < plan_.inputs.size(); ++i)
      if (plan_.inputs[i].kind == Kind::state && plan_.inputs[i].value == v) return parameters_[i];
    return {};
  }

  void build(const sdk::RmsNormOp& o, uint32_t);
  void build(const sdk::MatmulOp& o, uint32_t);
  void build(const sdk::RopeOp& o, uint32_t);
  void build(const sdk::AttentionOp& o, uint32_t index);
  void build(const sdk::ElementwiseOp& o, uint32_t);
  void build(const sdk::CombineOp& o, uint32_t);

  const GraphPlan& plan_;
  const std::vector<const std::byte*>& weights_;
  Target to_;
  std::vector<Value> values_;  // of the segment's tensors, as they are made
  ov::ParameterVector parameters_;
  std::vector<std::pair<uint32_t, Value>> cells_;  // what goes into each STATE
};

void Builder::build(const sdk::RmsNormOp& o, uint32_t) {
  const Value x = of(o.x);
  const Value mean = std::make_shared<op::ReduceMean>(multiply(x, x), integers({-1}), true);
  const Value root = std::make_shared<op::Sqrt>(add(mean, number(o.eps)));
  values_[o.y] = multiply(std::make_shared<op::Divide>(x, root), of(o.weight));
}

void Builder::build(const sdk::MatmulOp& o, uint32_t) {
  const Value y = matmul(of(o.x), of(o.weight), true);
  values_[o.y] = o.bias == sdk::kNoValue ? y : add(y, of(o.bias));
}

void Builder::build(const sdk::RopeOp& o, uint32_t) {
  uint32_t table = 0;  // RopeTables::table_of, which found or made it when the segment was planned
  for (const auto& t : plan_.ropes.tables) {
    if (t.factors == o.factors && t.half == o.half && t.base == o.base && t.scale == o.scale) break;
    ++table;
  }
  const Value cosine = input(Kind::cosine, table), sine = input(Kind::sine, table);
  const int64_t rotated = 2 * o.half, rest = o.head_dim - rotated;
  const Value x = reshape(of(o.x), {n(), o.heads, o.head_dim});
  ov::OutputVector parts = rest > 0 ? split(x, 2, {rotated, rest}) : ov::OutputVector{x};
  Value a, b;
  if (o.adjacent) {
    const ov::OutputVector pairs = split(reshape(parts[0], {n(), o.heads, o.half, 2}), 3, {1, 1});
    a = reshape(pairs[0], {n(), o.heads, o.half}), b = reshape(pairs[1], {n(), o.heads, o.half});
  } else {
    const ov::OutputVector halves = split(parts[0], 2, {o.half, o.half});
    a = halves[0], b = halves[1];
  }
  const Value first = subtract(multiply(a, cosine), multiply(b, sine)), second = add(multiply(b, cosine), multiply(a, sine));
  if (o.adjacent) {
    const std::vector<int64_t> one = {n(), o.heads, o.half, 1};
    parts[0] = reshape(concat({reshape(first, one), reshape(second, one)}, 3), {n(), o.heads, rotated});
  } else {
    parts[0] = concat({first, second}, 2);
  }
  values_[o.y] = reshape(rest > 0 ? concat(parts, 2) : parts[0], {n(), o.heads * o.head_dim});
}

// The cache as it was before this submit, and this submit's rows beside it: the graph only reads the cache, wait() writes the rows to their cells.
void Builder::build(const sdk::AttentionOp& o, uint32_t index) {
  const int64_t g = o.kv_heads, d = o.head_dim, shared = o.heads / g;
  const auto stored = [&](uint32_t row, uint32_t cache) {
    Value x = of(row);
    if (o.cache == DType::f32) {
      // A result that is a parameter gets the memory of one for both: a node between them, which changes nothing.
      cells_.emplace_back(cache, std::make_shared<op::Maximum>(x, number(std::numeric_limits<float>::lowest())));
      return x;
    }
    const Value rounded = to_.half ? x : rounded_to_half(x);
    const Value half = std::make_shared<op::Convert>(rounded, ov::element::f16);
    cells_.emplace_back(cache, half);
    return to_.half ? in_f32(half) : rounded;
  };
  const auto by_head = [&](const Value& x, int64_t rows) { return transpose(reshape(x, {rows, g, d}), {1, 0, 2}); };  // [G, rows, D]
  const Value k_rows = by_head(stored(o.k, o.k_cache), n()), v_rows = by_head(stored(o.v, o.v_cache), n());
  // Cells that hold no position yet may hold anything, and nothing times NaN is NaN: scores of k are replaced, v is.
  const Value k_cells = by_head(in_f32(state(o.k_cache)), o.cells);
  const Value clean = std::make_shared<op::Select>(input(Kind::written, index), in_f32(state(o.v_cache)), number(0));
  const Value v_cells = by_head(clean, o.cells);

  Value q = transpose(reshape(multiply(of(o.q), number(o.scale)), {n(), o.heads, d}), {1, 0, 2});
  q = reshape(q, {g, shared * n(), d});
  const Value scores = concat({matmul(q, k_cells, true), matmul(q, k_rows, true)}, 2);  // [G, shared * N, C + N]
  // The lowest number that is one in f16 too: devices that compute in it turn lower ones into infinities, and a row of those into NaN.
  const Value masked =
      std::make_shared<op::Select>(input(Kind::visible, index), reshape(scores, {o.heads, n(), o.cells + n()}), number(-65504));
  const Value share = reshape(std::make_shared<op::Softmax>(masked, 2), {g, shared * n(), o.cells + n()});
  const ov::OutputVector parts = split(share, 2, {o.cells, n()});
  const Value y = add(matmul(parts[0], v_cells, false), matmul(parts[1], v_rows, false));
  values_[o.y] = reshape(transpose(reshape(y, {o.heads, n(), d}), {1, 0, 2}), {n(), o.heads * d});
}

void Builder::build(const sdk::ElementwiseOp& o, uint32_t) {
  const Value a = of(o.a), b = of(o.b);
  switch (o.kind) {
    case sdk::ElementwiseOp::Kind::add: values_[o.y] = add(a, b); break;
    case sdk::ElementwiseOp::Kind::relu_glu: values_[o.y] = multiply(std::make_shared<op::Relu>(a), b); break;
    case sdk::ElementwiseOp::Kind::silu_glu: values_[o.y] = multiply(std::make_shared<op::Swish>(a), b); break;
  }
}

void Builder::build(const sdk::CombineOp& o, uint32_t) {
  const Value y = reshape(of(o.y), {n(), o.top_k, o.width}), weights = reshape(of(o.weights), {n(), o.top_k, 1});
  const Value sum = std::make_shared<op::ReduceSum>(multiply(y, weights), integers({1}), false);
  values_[o.result] = add(of(o.x), sum);
}

std::shared_ptr<ov::Model> Builder::build() {
  for (const Port& p : plan_.inputs) {
    parameters_.push_back(std::make_shared<op::Parameter>(element_of(p), shape_of(p)));
    if (p.kind == Kind::rows) values_[p.value] = parameters_.back();
  }
  uint32_t index = 0;
  for (const Op& o : plan_.ops) std::visit([&](const auto& one) { build(one, index); }, o), ++index;
  ov::ResultVector results;
  for (const Port& p : plan_.outputs) {
    Value from;
    if (p.kind == Kind::rows) {
      from = values_[p.value];
    } else {
      for (const auto& [cache, value] : cells_)
        if (cache == p.value) from = value;
    }
    results.push_back(std::make_shared<op::Result>(from));
  }
  return std::make_shared<ov::Model>(results, parameters_, plan_.rules.name);
}

}  // namespace

ov::element::Type element_of(const Port& p) {
  if (p.kind == Kind::visible || p.kind == Kind::written) return ov::element::boolean;
  return p.type == DType::f16 ? ov::element::f16 : ov::element::f32;
}

ov::Shape shape_of(const Port& p) { return {p.shape.begin(), p.shape.end()}; }

std::shared_ptr<ov::Model> build_model(const GraphPlan& plan, const std::vector<const std::byte*>& weights, const Target& to) {
  return Builder(plan, weights, to).build();
}

}  // namespace fth::openvino
