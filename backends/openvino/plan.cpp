// plan_segment(): ops to unpacked ops, then the graph's inputs and outputs and their places in the workspace.

#include "backends/openvino/plan.h"

#include <algorithm>

namespace fth::openvino {
namespace {

using sdk::text;

constexpr int64_t kMostTokens = 65536;  // times the cells of a cache, a size still

constexpr uint64_t u64(int64_t v) { return static_cast<uint64_t>(v); }

class Planner {
 public:
  Planner(const sdk::SegmentView& segment, WeightForm form) : segment_(segment), form_(form), ops_(segment) {}
  Result<GraphPlan> run();

 private:
  Result<> plan_op(const fth_op& op);
  Result<> attention();

  // A parameter of the graph: constant, so that the device may lay it out as it likes.
  Result<> constant(uint32_t v, std::string_view what) {
    if (ops_.tensor(v).role != FTH_ROLE_WEIGHT)
      return ops_.unsupported(text(ops_.describe(what, v), ": only as a weight, known at compile"));
    if (counted_[v]) return {};
    counted_[v] = true;
    const uint64_t bytes = graph_bytes(ops_.tensor(v), form_);
    plan_.resident_bytes += bytes;
    plan_.bytes += static_cast<double>(bytes);
    return {};
  }
  template <class T>
  void add(const T& op) {
    plan_.ops.emplace_back(op);
  }
  static void port(std::vector<Port>& list, Port p) {
    p.bytes = u64(traits(p.type).block_bytes);
    if (p.kind == Port::Kind::visible || p.kind == Port::Kind::written) p.bytes = 1;
    for (const int64_t d : p.shape) p.bytes *= u64(d);
    list.push_back(std::move(p));
  }
  double rows() const { return static_cast<double>(ops_.n_tokens()); }

  const sdk::SegmentView& segment_;
  WeightForm form_;
  sdk::OpChecker ops_;
  GraphPlan plan_;
  std::vector<bool> counted_;
};

Result<> Planner::attention() {
  FTH_ASSIGN_OR_RETURN(const sdk::AttentionOp op, ops_.attention());
  if (ops_.n_tokens() > kMostTokens) return ops_.unsupported(text(ops_.n_tokens(), " tokens at once: at most ", kMostTokens));
  if (op.window == 0) plan_.rules.max_end = std::min(plan_.rules.max_end, op.cells);
  plan_.values[op.k_cache].alignment = plan_.values[op.v_cache].alignment = op.cache == DType::f32 ? 4 : 2;
  const auto item = static_cast<uint32_t>(plan_.ops.size());
  const int64_t width = op.kv_heads * op.head_dim, n = ops_.n_tokens();
  for (const uint32_t v : {op.k_cache, op.v_cache}) {
    for (const Port& p : plan_.inputs)
      if (p.kind == Port::Kind::state && p.value == v) return ops_.unsupported(text(ops_.describe("a cache", v), ": of two attentions"));
    port(plan_.inputs, {.kind = Port::Kind::state, .value = v, .item = item, .type = op.cache, .shape = {op.cells, width}});
    port(plan_.outputs, {.kind = Port::Kind::cells, .value = v, .item = item, .type = op.cache, .shape = {n, width}});
  }
  port(plan_.inputs, {.kind = Port::Kind::visible, .item = item, .shape = {n, op.cells + n}});
  port(plan_.inputs, {.kind = Port::Kind::written, .item = item, .shape = {op.cells, 1}});
  add(op);
  // The graph attends to every cell, whatever is visible.
  const double cells = static_cast<double>(op.cells + n);
  plan_.bytes += 2 * cells * static_cast<double>(row_bytes(op.cache, width));
  plan_.flops += 4 * cells * static_cast<double>(op.heads * op.head_dim) * rows();
  return {};
}

Result<> Planner::plan_op(const fth_op& op) {
  switch (op.kind) {
    case FTH_OP_RMS_NORM: {
      FTH_ASSIGN_OR_RETURN(const sdk::RmsNormOp o, ops_.rms_norm());
      FTH_RETURN_IF_ERROR(constant(o.weight, "weight"));
      add(o);
      return {};
    }
    case FTH_OP_MATMUL: {
      FTH_ASSIGN_OR_RETURN(const sdk::MatmulOp o, ops_.matmul());
      FTH_RETURN_IF_ERROR(constant(o.weight, "weight"));
      if (o.bias != sdk::kNoValue) FTH_RETURN_IF_ERROR(constant(o.bias, "bias"));
      if (ops_.type(o.weight) != DType::f32) plan_.values[o.weight].alignment = 2;
      plan_.flops += 2 * rows() * static_cast<double>(o.k) * static_cast<double>(o.m);
      add(o);
      return {};
    }
    case FTH_OP_ROPE: {
      FTH_ASSIGN_OR_RETURN(const sdk::RopeOp o, ops_.rope());
      const size_t before = plan_.ropes.tables.size();
      plan_.ropes.table_of(o);
      if (plan_.ropes.tables.size() > before)
        for (const Port::Kind kind : {Port::Kind::cosine, Port::Kind::sine})
          port(plan_.inputs, {.kind = kind, .item = static_cast<uint32_t>(before), .shape = {ops_.n_tokens(), 1, o.half}});
      add(o);
      return {};
    }
    case FTH_OP_ATTENTION: return attention();
    case FTH_OP_ADD:
    case FTH_OP_GLU: {
      FTH_ASSIGN_OR_RETURN(const sdk::ElementwiseOp o, ops_.elementwise());
      add(o);
      return {};
    }
    case FTH_OP_COMBINE: {
      FTH_ASSIGN_OR_RETURN(const sdk::CombineOp o, ops_.combine());
      add(o);
      return {};
    }
    case FTH_OP_EMBED: return ops_.unsupported("rows of a table are looked up in the host's memory; leave it on the cpu");
    default: return ops_.unsupported("the openvino backend does not run it; leave it on the cpu");
  }
}

Result<GraphPlan> Planner::run() {
  FTH_ASSIGN_OR_RETURN(plan_.values, sdk::values_of(segment_, uint64_t{1} << 40));
  plan_.tensors.assign(segment_.tensors().begin(), segment_.tensors().end());
  counted_.resize(plan_.tensors.size());
  while (const fth_op* const op = ops_.next()) FTH_RETURN_IF_ERROR(plan_op(*op));
  const int64_t n = std::max<int64_t>(ops_.n_tokens(), 1);
  std::vector<bool> used(plan_.tensors.size());
  for (const fth_op& op : segment_.ops()) {
    for (uint32_t i = 0; i < op.n_in; ++i)
      if (op.in[i] != FTH_NO_TENSOR) used[op.in[i]] = true;
    for (uint32_t i = 0; i < op.n_out; ++i) used[op.out[i]] = true;
  }
  for (uint32_t t = 0; t < plan_.tensors.size(); ++t) {
    const fth_tensor& tensor = plan_.tensors[t];
    const std::string what = text(segment_.name(), ": tensor ", t, " (", sdk::describe(tensor), ")");
    if (tensor.role == FTH_ROLE_SLOTS)
      return fail(Code::unimplemented, text(what, " holds slots: no op of the openvino backend takes them"));
    if ((tensor.role != FTH_ROLE_INPUT && tensor.role != FTH_ROLE_OUTPUT) || !used[t]) continue;
    if (tensor.dims[0] % n != 0) return fail(Code::unimplemented, text(what, ": its rows are no multiple of the ", n, " tokens"));
    port(tensor.role == FTH_ROLE_INPUT ? plan_.inputs : plan_.outputs,
         {.kind = Port::Kind::rows, .value = t, .type = sdk::dtype(tensor), .shape = {tensor.dims, tensor.dims + tensor.rank}});
    plan_.bytes += static_cast<double>(plan_.values[t].bytes);
  }
  if (plan_.ops.empty() || plan_.outputs.empty()) return fail(Code::unimplemented, text(segment_.name(), ": no output that an op writes"));
  uint64_t end = 0;
  for (std::vector<Port>* const list : {&plan_.inputs, &plan_.outputs})
    for (Port& p : *list) {
      if (p.kind == Port::Kind::state) continue;
      p.offset = end;
      end = align_up(end + p.bytes, kWorkspaceAlignment);
    }
  plan_.rules.name = segment_.name();
  plan_.rules.n_tokens = n;
  plan_.rules.n_bindings = segment_.n_bindings();
  plan_.rules.workspace_bytes = end;
  return std::move(plan_);
}

}  // namespace

uint64_t graph_bytes(const fth_tensor& t, WeightForm form) {
  const DType type = sdk::dtype(t);
  uint64_t values = 1;
  for (const int64_t d : sdk::dims(t)) values *= u64(d);
  const bool as_it_is =
      type == DType::f32 || type == DType::f16 || (form == WeightForm::compressed && (type == DType::q4_0 || type == DType::q8_0));
  if (as_it_is) return *sdk::tensor_bytes(t);
  return values * (form == WeightForm::f16 && type != DType::bf16 ? 2 : 4);
}

Result<GraphPlan> plan_segment(const sdk::SegmentView& segment, WeightForm form) { return Planner(segment, form).run(); }

}  // namespace fth::openvino
