// plan_segment(): ops to dispatches, then a place in the workspace for what lives inside one submit.

#include "plugins/vulkan/plan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <initializer_list>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

namespace fth::vulkan {
namespace {

constexpr uint32_t kNone = 0xffffffffu;
constexpr uint64_t kMaxTensor = 4 * kGiB;  // shaders count words and values in 32 bits

constexpr uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
constexpr uint32_t u32(int64_t v) { return static_cast<uint32_t>(v); }

struct Dim {
  const char* letter;
  int64_t* size;  // -1 until some tensor says what it is, then every other must agree
};

class Planner {
 public:
  Planner(const sdk::SegmentView& segment, const Limits& limits) : segment_(segment), limits_(limits) {}
  Result<SegmentPlan> run();

 private:
  tl::unexpected<Error> problem(Code code, std::string_view what) const {
    return fail(code, text(segment_.name(), ": op ", op_index_, " (", sdk::op_name(op_->kind), "): ", what));
  }
  tl::unexpected<Error> invalid(std::string_view what) const { return problem(Code::invalid_argument, what); }
  tl::unexpected<Error> unsupported(std::string_view what) const { return problem(Code::unimplemented, what); }
  const fth_tensor& tensor(uint32_t v) const { return segment_.tensors()[v]; }
  DType type(uint32_t v) const { return sdk::dtype(tensor(v)); }
  std::string describe(std::string_view what, uint32_t v) const { return text(what, " (tensor ", v, ", ", sdk::describe(tensor(v)), ")"); }

  Result<> arity(uint32_t min_in, uint32_t max_in) const;
  Result<uint32_t> shaped(uint32_t v, std::string_view what, std::initializer_list<Dim> dims) const;
  Result<uint32_t> input(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    return shaped(op_->in[i], what, dims);
  }
  Result<uint32_t> input_of(DType wanted, uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const;
  Result<uint32_t> f32(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    return input_of(DType::f32, i, what, dims);
  }
  Result<uint32_t> output(std::string_view what, std::initializer_list<Dim> dims);
  Result<uint32_t> weight(uint32_t i, std::string_view what, std::initializer_list<Dim> dims, bool by_value);
  Result<int64_t> integer(uint32_t i, std::string_view what, int64_t min, int64_t max) const;
  Result<double> finite(uint32_t i, std::string_view what) const;
  void align(uint32_t v, uint64_t alignment) { plan_.values[v].alignment = std::max(plan_.values[v].alignment, alignment); }
  void add(Dispatch d);
  double rows() const { return static_cast<double>(plan_.n_tokens); }

  Result<> plan_op();
  Result<> embed();
  Result<> rms_norm();
  Result<> matmul();
  Result<> rope();
  Result<> attention();
  Result<> elementwise();
  Result<> combine();
  Result<> place();

  const sdk::SegmentView& segment_;
  const Limits& limits_;
  SegmentPlan plan_;
  std::vector<bool> written_;
  uint32_t op_index_ = 0;
  const fth_op* op_ = nullptr;
};

Result<> Planner::arity(uint32_t min_in, uint32_t max_in) const {
  if (op_->n_in < min_in || op_->n_in > max_in || op_->n_out != 1)
    return invalid(text(op_->n_in, " inputs and ", op_->n_out, " outputs, need ", min_in,
                        min_in == max_in ? std::string() : text(" to ", max_in), " and 1"));
  for (uint32_t i = 0; i < min_in; ++i)
    if (!segment_.in(*op_, i)) return invalid(text("input ", i, " is absent"));
  return {};
}

Result<uint32_t> Planner::shaped(uint32_t v, std::string_view what, std::initializer_list<Dim> dims) const {
  const fth_tensor& t = tensor(v);
  if (t.rank != dims.size()) return invalid(text(describe(what, v), " needs ", dims.size(), " dims"));
  if (t.role == FTH_ROLE_SLOTS) return invalid(text(describe(what, v), " has the role slots"));
  const int64_t* size = t.dims;
  for (const Dim& d : dims) {
    if (*d.size < 0) *d.size = *size;
    if (*d.size != *size)
      return invalid(text(describe(what, v), ": ", d.letter, " is ", *d.size, " by the tensors or attributes before it"));
    ++size;
  }
  return v;
}

Result<uint32_t> Planner::input_of(DType wanted, uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
  FTH_ASSIGN_OR_RETURN(const uint32_t v, input(i, what, dims));
  if (type(v) != wanted) return unsupported(text(describe(what, v), ": only ", name(wanted)));
  return v;
}

Result<uint32_t> Planner::output(std::string_view what, std::initializer_list<Dim> dims) {
  FTH_ASSIGN_OR_RETURN(const uint32_t v, shaped(op_->out[0], what, dims));
  if (type(v) != DType::f32) return unsupported(text(describe(what, v), ": only f32"));
  if (written_[v]) return unsupported(text(describe(what, v), " is written by an earlier op: one writer per tensor"));
  for (uint32_t i = 0; i < op_->n_in; ++i)
    if (op_->in[i] == v) return unsupported(text(describe(what, v), " is an input of the op too"));
  written_[v] = true;
  return v;
}

// A matrix that the shaders can read: by units of 8 values, or value by value.
Result<uint32_t> Planner::weight(uint32_t i, std::string_view what, std::initializer_list<Dim> dims, bool by_value) {
  FTH_ASSIGN_OR_RETURN(const uint32_t v, input(i, what, dims));
  const DType t = type(v);
  if (t == DType::i32) return unsupported(text(describe(what, v), ": no product with i32"));
  if (t <= DType::bf16 && !by_value) align(v, 16);
  return v;
}

Result<int64_t> Planner::integer(uint32_t i, std::string_view what, int64_t min, int64_t max) const {
  const double a = op_->attr[i];
  if (!(a >= static_cast<double>(min) && a <= static_cast<double>(max)) || a != std::floor(a))
    return invalid(text("attribute ", i, " (", what, ") is ", a, ", need a whole number from ", min, " to ", max));
  return static_cast<int64_t>(a);
}

Result<double> Planner::finite(uint32_t i, std::string_view what) const {
  if (!std::isfinite(op_->attr[i])) return invalid(text("attribute ", i, " (", what, ") is ", op_->attr[i], ", need a finite number"));
  return op_->attr[i];
}

void Planner::add(Dispatch d) {
  const uint32_t at = static_cast<uint32_t>(plan_.dispatches.size());
  for (const auto* list : {&d.reads, &d.writes})
    for (const uint32_t v : *list) {
      plan_.values[v].first = std::min(plan_.values[v].first, at);
      plan_.values[v].last = std::max(plan_.values[v].last, at);
      const uint16_t role = tensor(v).role;
      if (role != FTH_ROLE_TEMP) plan_.bytes += role == FTH_ROLE_STATE ? 0 : static_cast<double>(plan_.values[v].bytes);
    }
  plan_.dispatches.push_back(std::move(d));
}

Result<> Planner::embed() {
  FTH_RETURN_IF_ERROR(arity(2, 2));
  int64_t v = -1, e = -1;
  FTH_ASSIGN_OR_RETURN(const uint32_t ids, input_of(DType::i32, 0, "ids", {{"N", &plan_.n_tokens}}));
  const bool by_value = tensor(op_->in[1]).dims[tensor(op_->in[1]).rank - 1] % 8 != 0;
  FTH_ASSIGN_OR_RETURN(const uint32_t table, weight(1, "table", {{"V", &v}, {"E", &e}}, by_value));
  FTH_ASSIGN_OR_RETURN(const uint32_t y, output("y", {{"N", &plan_.n_tokens}, {"E", &e}}));
  const uint64_t row = row_bytes(type(table), e);
  add({.shader = Shader::embed,
       .constants = {kThreads, static_cast<uint32_t>(type(table))},
       .push = {ids, table, y, u32(e), u32(v), static_cast<uint32_t>(row), by_value ? 1u : 0u},
       .groups_x = ceil_div(static_cast<uint64_t>(by_value ? e : e / 8), kThreads),
       .groups_y = u32(plan_.n_tokens),
       .reads = {ids, table},
       .writes = {y}});
  plan_.bytes -= static_cast<double>(plan_.values[table].bytes) - rows() * static_cast<double>(row);
  return {};
}

Result<> Planner::rms_norm() {
  FTH_RETURN_IF_ERROR(arity(2, 2));
  int64_t e = -1;
  FTH_ASSIGN_OR_RETURN(const uint32_t x, f32(0, "x", {{"N", &plan_.n_tokens}, {"E", &e}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t w, f32(1, "weight", {{"E", &e}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t y, output("y", {{"N", &plan_.n_tokens}, {"E", &e}}));
  FTH_ASSIGN_OR_RETURN(const double eps, finite(0, "eps"));
  if (eps < 0) return invalid(text("attribute 0 (eps) is ", eps, ", need at least 0"));
  add({.shader = Shader::rms_norm,
       .constants = {kThreads, kThreads},
       .push = {x, w, y, u32(e), std::bit_cast<uint32_t>(static_cast<float>(eps))},
       .groups_x = static_cast<uint64_t>(plan_.n_tokens),
       .reads = {x, w},
       .writes = {y}});
  return {};
}

Result<> Planner::matmul() {
  FTH_RETURN_IF_ERROR(arity(2, 3));
  int64_t k = -1, m = -1;
  FTH_ASSIGN_OR_RETURN(const uint32_t x, f32(0, "x", {{"N", &plan_.n_tokens}, {"K", &k}}));
  const bool by_value = k % 8 != 0;
  FTH_ASSIGN_OR_RETURN(const uint32_t w, weight(1, "weight", {{"M", &m}, {"K", &k}}, by_value));
  if (!by_value) align(x, 16);
  uint32_t bias = kNone;
  if (segment_.in(*op_, 2)) {
    FTH_ASSIGN_OR_RETURN(bias, f32(2, "bias", {{"M", &m}}));
  }
  FTH_ASSIGN_OR_RETURN(const uint32_t y, output("y", {{"N", &plan_.n_tokens}, {"M", &m}}));

  // A weight is unpacked once for `cols` tokens and a value of x is read once for `row_tile` weights; few rows are split finer, to keep every
  // processor of the device busy.
  const uint64_t n = static_cast<uint64_t>(plan_.n_tokens), rows_of_w = static_cast<uint64_t>(m);
  const uint32_t cols = n == 1 ? 1 : n <= 8 ? 8 : 16;
  constexpr uint64_t kBusy = 256;  // workgroups
  uint32_t row_tile = n == 1 ? 2 : 4;
  while (row_tile > 1 && ceil_div(rows_of_w, row_tile * limits_.groups) * ceil_div(n, cols) < kBusy) row_tile /= 2;
  Dispatch d{.shader = limits_.subgroups ? Shader::matmul_subgroup : Shader::matmul,
             .constants = {limits_.lanes * limits_.groups, static_cast<uint32_t>(type(w)), limits_.lanes, row_tile, cols},
             .push = {x, w, bias, y, u32(k), u32(m), static_cast<uint32_t>(row_bytes(type(w), k)), by_value ? 1u : 0u},
             .groups_x = ceil_div(rows_of_w, uint64_t{row_tile} * limits_.groups),
             .groups_y = static_cast<uint32_t>(ceil_div(n, cols)),
             .reads = {x, w},
             .writes = {y}};
  if (bias != kNone) d.reads.push_back(bias);
  add(std::move(d));
  plan_.flops += 2 * rows() * static_cast<double>(k) * static_cast<double>(m);
  return {};
}

Result<> Planner::rope() {
  FTH_RETURN_IF_ERROR(arity(1, 2));
  FTH_ASSIGN_OR_RETURN(const int64_t heads, integer(0, "heads", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(const int64_t head_dim, integer(1, "D", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(const double base, finite(2, "base"));
  FTH_ASSIGN_OR_RETURN(const int64_t rotated, integer(3, "R", 2, head_dim));
  FTH_ASSIGN_OR_RETURN(const int64_t pairing, integer(4, "pairing", 0, 1));
  FTH_ASSIGN_OR_RETURN(const double scale, finite(5, "position scale"));
  if (!(base > 0)) return invalid(text("attribute 2 (base) is ", base, ", need more than 0"));
  if (rotated % 2 != 0) return invalid(text("attribute 3 (R) is ", rotated, ", need an even number"));
  int64_t width = heads * head_dim, half = rotated / 2;
  FTH_ASSIGN_OR_RETURN(const uint32_t x, f32(0, "x", {{"N", &plan_.n_tokens}, {"H*D", &width}}));
  uint32_t factors = kNone;
  if (segment_.in(*op_, 1)) {
    FTH_ASSIGN_OR_RETURN(factors, f32(1, "factors", {{"R/2", &half}}));
    if (tensor(factors).role != FTH_ROLE_WEIGHT)
      return unsupported(text(describe("factors", factors), ": only as a weight, known at compile"));
  }
  FTH_ASSIGN_OR_RETURN(const uint32_t y, output("y", {{"N", &plan_.n_tokens}, {"H*D", &width}}));
  const auto same = [&](const RopeTable& t) { return t.factors == factors && t.half == half && t.base == base && t.scale == scale; };
  auto table = std::find_if(plan_.ropes.begin(), plan_.ropes.end(), same);
  if (table == plan_.ropes.end()) {
    plan_.ropes.push_back({.factors = factors, .first = plan_.n_constants, .half = half, .base = base, .scale = scale});
    plan_.n_constants += u32(half);
    table = plan_.ropes.end() - 1;
  }
  const uint32_t frequency = static_cast<uint32_t>(plan_.values.size()) + table->first;
  add({.shader = Shader::rope,
       .constants = {kThreads},
       .push = {x, y, frequency, u32(heads), u32(head_dim), u32(half), u32(pairing)},
       .groups_x = ceil_div(static_cast<uint64_t>(heads * (head_dim - half)), kThreads),
       .groups_y = u32(plan_.n_tokens),
       .reads = {x},
       .writes = {y}});
  return {};
}

Result<> Planner::attention() {
  FTH_RETURN_IF_ERROR(arity(5, 5));
  FTH_ASSIGN_OR_RETURN(const int64_t heads, integer(0, "H", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(const int64_t kv_heads, integer(1, "G", 1, heads));
  FTH_ASSIGN_OR_RETURN(const int64_t head_dim, integer(2, "D", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(const int64_t window, integer(3, "window", 0, int64_t{1} << 40));
  FTH_ASSIGN_OR_RETURN(const double scale, finite(4, "score scale"));
  if (heads % kv_heads != 0) return invalid(text(heads, " query heads over ", kv_heads, " kv heads"));
  int64_t q_width = heads * head_dim, kv_width = kv_heads * head_dim, cells = -1;
  int64_t& n = plan_.n_tokens;
  FTH_ASSIGN_OR_RETURN(const uint32_t q, f32(0, "q", {{"N", &n}, {"H*D", &q_width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t k, f32(1, "k", {{"N", &n}, {"G*D", &kv_width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t v, f32(2, "v", {{"N", &n}, {"G*D", &kv_width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t k_cache, input(3, "k_cache", {{"C", &cells}, {"G*D", &kv_width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t v_cache, input_of(type(k_cache), 4, "v_cache", {{"C", &cells}, {"G*D", &kv_width}}));
  if (tensor(k_cache).role != FTH_ROLE_STATE || tensor(v_cache).role != FTH_ROLE_STATE || k_cache == v_cache)
    return invalid("k_cache and v_cache must be two tensors of the role state");
  const DType cache = type(k_cache);
  if (cache != DType::f32 && cache != DType::f16) return unsupported(text("a cache of ", name(cache), ": only f32 and f16"));
  if (head_dim > 2 * int64_t{kThreads}) return unsupported(text("heads of ", head_dim, ": at most ", 2 * kThreads));
  if (cache == DType::f16 && head_dim % 2 != 0) return unsupported(text("heads of ", head_dim, " in a cache of f16: an even number"));
  const int64_t need = window > 0 ? window + n - 1 : n;
  if (cells < need) return invalid(text("a cache of ", cells, " cells for window ", window, " and ", n, " tokens, need ", need));
  if (cells >= int64_t{1} << 31) return unsupported(text("a cache of ", cells, " cells"));
  FTH_ASSIGN_OR_RETURN(const uint32_t y, output("y", {{"N", &n}, {"H*D", &q_width}}));
  align(k_cache, 16);
  align(v_cache, 16);
  if (window == 0) plan_.max_end = std::min(plan_.max_end, cells);

  const uint64_t words = static_cast<uint64_t>(cache == DType::f16 ? kv_width / 2 : kv_width);
  add({.shader = Shader::kv_store,
       .constants = {kThreads, static_cast<uint32_t>(cache)},
       .push = {k, v, k_cache, v_cache, u32(kv_width), u32(cells)},
       .groups_x = ceil_div(2 * words, kThreads),
       .groups_y = u32(n),
       .reads = {k, v},
       .writes = {k_cache, v_cache}});
  if (static_cast<uint64_t>(heads) > limits_.max_groups_x)
    return unsupported(text(heads, " heads: the device allows ", limits_.max_groups_x));
  add({.shader = Shader::attention,
       .constants = {kThreads, kThreads, static_cast<uint32_t>(cache)},
       .push = {q, k_cache, v_cache, y, u32(heads), u32(kv_heads), u32(head_dim), u32(std::min(window, int64_t{1} << 31)), u32(cells),
                std::bit_cast<uint32_t>(static_cast<float>(scale))},
       .groups_x = static_cast<uint64_t>(heads),
       .groups_y = u32(n),
       .reads = {q, k_cache, v_cache},
       .writes = {y}});
  const double seen = static_cast<double>(window > 0 ? std::min(window, cells) : cells) / 2;
  plan_.bytes += 2 * seen * static_cast<double>(row_bytes(cache, kv_width));
  plan_.flops += 4 * seen * static_cast<double>(q_width) * rows();
  return {};
}

Result<> Planner::elementwise() {
  FTH_RETURN_IF_ERROR(arity(2, 2));
  const bool glu = op_->kind == FTH_OP_GLU;
  int64_t width = -1, activation = 0;
  FTH_ASSIGN_OR_RETURN(const uint32_t a, f32(0, glu ? "gate" : "a", {{"N", &plan_.n_tokens}, {"E", &width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t b, f32(1, glu ? "up" : "b", {{"N", &plan_.n_tokens}, {"E", &width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t y, output("y", {{"N", &plan_.n_tokens}, {"E", &width}}));
  if (glu) {
    FTH_ASSIGN_OR_RETURN(activation, integer(0, "activation", 0, 1));
  }
  add({.shader = Shader::elementwise,
       .constants = {kThreads, glu ? 1 + u32(activation) : 0u},
       .push = {a, b, y, u32(width)},
       .groups_x = ceil_div(static_cast<uint64_t>(plan_.n_tokens * width), kThreads),
       .reads = {a, b},
       .writes = {y}});
  return {};
}

Result<> Planner::combine() {
  FTH_RETURN_IF_ERROR(arity(3, 3));
  int64_t width = -1, top_k = -1;
  FTH_ASSIGN_OR_RETURN(const uint32_t x, f32(0, "x", {{"N", &plan_.n_tokens}, {"E", &width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t weights, f32(2, "weights", {{"N", &plan_.n_tokens}, {"K", &top_k}}));
  int64_t expert_rows = plan_.n_tokens * top_k;
  FTH_ASSIGN_OR_RETURN(const uint32_t y, f32(1, "y", {{"N*K", &expert_rows}, {"E", &width}}));
  FTH_ASSIGN_OR_RETURN(const uint32_t result, output("out", {{"N", &plan_.n_tokens}, {"E", &width}}));
  add({.shader = Shader::combine,
       .constants = {kThreads},
       .push = {x, y, weights, result, u32(width), u32(top_k)},
       .groups_x = ceil_div(static_cast<uint64_t>(width), kThreads),
       .groups_y = u32(plan_.n_tokens),
       .reads = {x, y, weights},
       .writes = {result}});
  return {};
}

Result<> Planner::plan_op() {
  switch (op_->kind) {
    case FTH_OP_EMBED: return embed();
    case FTH_OP_RMS_NORM: return rms_norm();
    case FTH_OP_MATMUL: return matmul();
    case FTH_OP_ROPE: return rope();
    case FTH_OP_ATTENTION: return attention();
    case FTH_OP_ADD:
    case FTH_OP_GLU: return elementwise();
    case FTH_OP_COMBINE: return combine();
    default: return unsupported("the vulkan backend does not run it; leave it on the cpu");
  }
}

// First fit, the largest first: a value lies beside every placed one whose life overlaps its own. Values that share a place are kept apart in time
// by the barriers, which are drawn from places (executable.cpp).
Result<> Planner::place() {
  std::vector<Value*> temps, alive;
  for (Value& v : plan_.values)
    if (v.role == FTH_ROLE_TEMP && v.first <= v.last) temps.push_back(&v);
  std::stable_sort(temps.begin(), temps.end(), [](const Value* a, const Value* b) { return a->bytes > b->bytes; });
  for (size_t i = 0; i < temps.size(); ++i) {
    Value& v = *temps[i];
    alive.clear();
    for (size_t j = 0; j < i; ++j)
      if (temps[j]->first <= v.last && v.first <= temps[j]->last) alive.push_back(temps[j]);
    std::sort(alive.begin(), alive.end(), [](const Value* a, const Value* b) { return a->offset < b->offset; });
    for (const Value* other : alive) {
      if (v.offset + v.bytes <= other->offset) break;
      v.offset = std::max(v.offset, align_up(other->offset + other->bytes, kWorkspaceAlignment));
    }
    // At most 4096 tensors of less than 4 GiB: no sum wraps.
    plan_.workspace_bytes = std::max(plan_.workspace_bytes, align_up(v.offset + v.bytes, kWorkspaceAlignment));
  }
  return {};
}

Result<SegmentPlan> Planner::run() {
  plan_.name = segment_.name();
  plan_.n_bindings = segment_.n_bindings();
  for (const fth_tensor& t : segment_.tensors()) {
    Value v;
    v.role = t.role;
    v.bytes = *sdk::binding_bytes(t);
    if (v.bytes >= kMaxTensor || v.bytes > limits_.max_buffer)
      return fail(Code::unimplemented,
                  text(plan_.name, ": tensor ", plan_.values.size(), " (", sdk::describe(t), ") has ", format_bytes(v.bytes), ", at most ",
                       format_bytes(std::min(kMaxTensor - 1, limits_.max_buffer))));
    plan_.values.push_back(v);
  }
  written_.assign(plan_.values.size(), false);
  for (const fth_op& op : segment_.ops()) {
    op_ = &op;
    FTH_RETURN_IF_ERROR(plan_op());
    if (plan_.n_tokens > int64_t{limits_.max_groups_y})
      return unsupported(text(plan_.n_tokens, " tokens: the device allows ", limits_.max_groups_y));
    ++op_index_;
  }
  for (const Value& v : plan_.values)
    if (v.role == FTH_ROLE_SLOTS)
      return fail(Code::unimplemented, text(plan_.name, ": a tensor of slots: no op of the vulkan backend takes one"));
  if (plan_.n_tokens < 0) plan_.n_tokens = 1;  // no op: nothing runs
  FTH_RETURN_IF_ERROR(place());
  return std::move(plan_);
}

}  // namespace

Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Limits& limits) { return Planner(segment, limits).run(); }

}  // namespace fth::vulkan
