// plan_segment(): ops to steps, then a place in the workspace for everything that lives inside one submit.

#include "backends/cpu/segment.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu/planner.h"
#include "core/base/bytes.h"

namespace fth::cpu {

tl::unexpected<Error> Planner::problem(Code code, std::string_view what) const {
  return fail(code, text(segment.name(), ": op ", op_index, " (", sdk::op_name(op->kind), "): ", what));
}

std::string Planner::describe(std::string_view what, ValueId v) const {
  return text(what, " (tensor ", v, ", ", sdk::describe(tensor(v)), ")");
}

Result<> Planner::arity(uint32_t min_in, uint32_t max_in, uint32_t n_out) const {
  if (op->n_in < min_in || op->n_in > max_in || op->n_out != n_out)
    return invalid(text(op->n_in, " inputs and ", op->n_out, " outputs, need ", min_in,
                        min_in == max_in ? std::string() : text(" to ", max_in), " and ", n_out));
  for (uint32_t i = 0; i < min_in; ++i)
    if (!has_input(i)) return invalid(text("input ", i, " is absent"));
  return {};
}

Result<> Planner::check_shape(std::string_view what, ValueId v, std::initializer_list<Dim> dims) const {
  const fth_tensor& t = tensor(v);
  if (t.rank != dims.size()) return invalid(text(describe(what, v), " needs ", dims.size(), " dims"));
  const int64_t* size = t.dims;
  for (const Dim& d : dims) {
    if (*d.size < 0) *d.size = *size;
    if (*d.size != *size)
      return invalid(text(describe(what, v), ": ", d.letter, " is ", *d.size, " by the tensors or attributes before it"));
    ++size;
  }
  return {};
}

Result<ValueId> Planner::input(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) {
  const ValueId v = op->in[i];
  FTH_RETURN_IF_ERROR(check_shape(what, v, dims));
  touch(v, step());
  return v;
}

Result<ValueId> Planner::input(uint32_t i, std::string_view what, DType type, std::initializer_list<Dim> dims) {
  FTH_ASSIGN_OR_RETURN(const ValueId v, input(i, what, dims));
  if (dtype(v) != type) return unsupported(text(describe(what, v), ": only ", name(type)));
  if (tensor(v).role == FTH_ROLE_SLOTS) return invalid(text(describe(what, v), " has the role slots"));
  return v;
}

Result<ValueId> Planner::output(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) {
  const ValueId v = op->out[i];
  FTH_RETURN_IF_ERROR(check_shape(what, v, dims));
  if (dtype(v) != DType::f32) return unsupported(text(describe(what, v), ": only f32"));
  if (written[v]) return unsupported(text(describe(what, v), " is written by an earlier op: one writer per tensor"));
  written[v] = true;
  touch(v, step());
  return v;
}

Result<> Planner::check_weight(std::string_view what, ValueId v) const {
  const DType t = dtype(v);
  if (static_cast<size_t>(t) >= kWeightTypes || !kernels.matmul[static_cast<size_t>(t)])
    return unsupported(text(describe(what, v), ": the ", kernels.name, " kernels have no product with ", name(t)));
  const int64_t k = tensor(v).dims[tensor(v).rank - 1];
  if (is_quantized(t) && k % 32 != 0) return invalid(text(describe(what, v), ": rows of ", k, " values are not whole blocks of 32"));
  return {};
}

Result<bool> Planner::interleaved(uint32_t i, std::string_view what, ValueId v) const {
  FTH_ASSIGN_OR_RETURN(const int64_t order, integer(i, text("order of the ", what), 0, 1));
  if (order == 0) return false;
  const int64_t rows = tensor(v).dims[tensor(v).rank - 2];
  if (!kernels.matmul_interleaved[static_cast<size_t>(dtype(v))])
    return unsupported(text(describe(what, v), ": interleaved rows, which q8_0, q4_0, q4_1 and q6_k have"));
  if (rows % 16 != 0) return invalid(text(describe(what, v), ": ", rows, " interleaved rows, need a multiple of 16"));
  return true;
}

Result<int64_t> Planner::integer(uint32_t i, std::string_view what, int64_t min, int64_t max) const {
  const double a = op->attr[i];
  if (!(a >= static_cast<double>(min) && a <= static_cast<double>(max)) || a != std::floor(a))
    return invalid(text("attribute ", i, " (", what, ") is ", a, ", need a whole number from ", min, " to ", max));
  return static_cast<int64_t>(a);
}

Result<double> Planner::finite(uint32_t i, std::string_view what) const {
  if (!std::isfinite(op->attr[i])) return invalid(text("attribute ", i, " (", what, ") is ", op->attr[i], ", need a finite number"));
  return op->attr[i];
}

void Planner::touch(ValueId v, uint32_t at_step) {
  plan.values[v].first_step = std::min(plan.values[v].first_step, at_step);
  plan.values[v].last_step = std::max(plan.values[v].last_step, at_step);
}

ValueId Planner::scratch(uint64_t bytes) {
  Value v;
  v.bytes = bytes;
  plan.values.push_back(v);
  const ValueId id = static_cast<ValueId>(plan.values.size() - 1);
  touch(id, step());
  return id;
}

ValueId Planner::quantized(ValueId x, int64_t k, bool fine) {
  ValueId& rows = fine ? fine_q8_rows[x] : q8_rows[x];
  if (rows == kNoValue) {
    rows = scratch(static_cast<uint64_t>(plan.n_tokens) * (fine ? 2 : 1) * q8_row_bytes(k));
    touch(x, step());
    plan.steps.push_back(QuantizeStep{.x = x, .q8 = rows, .width = k, .fine = fine});
  }
  return rows;
}

namespace {

constexpr uint64_t kAlignment = 64;

// First fit, the largest first: a value lies beside every placed one whose life overlaps its own. Optimal packing would save little; what
// matters is that a layer's activations do not add up.
Result<uint64_t> place_in_workspace(std::vector<Value>& values) {
  std::vector<Value*> temps;
  for (Value& v : values)
    if (v.role == FTH_ROLE_TEMP && v.first_step <= v.last_step) temps.push_back(&v);
  std::stable_sort(temps.begin(), temps.end(), [](const Value* a, const Value* b) { return a->bytes > b->bytes; });
  uint64_t total = 0;
  std::vector<const Value*> alive;
  for (size_t i = 0; i < temps.size(); ++i) {
    Value& v = *temps[i];
    alive.clear();
    for (size_t j = 0; j < i; ++j)
      if (temps[j]->first_step <= v.last_step && v.first_step <= temps[j]->last_step) alive.push_back(temps[j]);
    std::sort(alive.begin(), alive.end(), [](const Value* a, const Value* b) { return a->offset < b->offset; });
    uint64_t at = 0;
    for (const Value* other : alive) {
      if (at + v.bytes <= other->offset) break;
      at = std::max(at, align_up(other->offset + other->bytes, kAlignment));
    }
    v.offset = at;
    // Sizes come from checked tensors or are products of their dims with small factors; still, a sum may wrap.
    if (v.bytes > (uint64_t{1} << 56) || at > (uint64_t{1} << 56)) return fail(Code::resource_exhausted, "the workspace passes 2^56 bytes");
    total = std::max(total, align_up(at + v.bytes, kAlignment));
  }
  return total;
}

Result<> plan_op(Planner& p) {
  switch (p.op->kind) {
    case FTH_OP_EMBED: return plan_embed(p);
    case FTH_OP_RMS_NORM: return plan_norm(p);
    case FTH_OP_MATMUL: return plan_matmul(p);
    case FTH_OP_ROPE: return plan_rope(p);
    case FTH_OP_ATTENTION: return plan_attention(p);
    case FTH_OP_ADD: return plan_add(p);
    case FTH_OP_GLU: return plan_glu(p);
    case FTH_OP_EXPERTS: return plan_experts(p);
    case FTH_OP_EXPERT_GATES: return plan_expert_gates(p);
    case FTH_OP_COMBINE: return plan_combine(p);
    case FTH_OP_HEAD_SCREENED: return plan_head_screened(p);
    default: return p.unsupported("the cpu backend does not know this op");
  }
}

uint64_t element_alignment(DType t) { return t == DType::f32 || t == DType::i32 ? 4 : 1; }

}  // namespace

Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const KernelTable& kernels) {
  Planner p{.segment = segment, .kernels = kernels, .plan = {}, .q8_rows = {}, .fine_q8_rows = {}, .written = {}};
  p.plan.name = segment.name();
  p.plan.n_tensors = static_cast<uint32_t>(segment.tensors().size());
  p.plan.n_bindings = segment.n_bindings();
  p.plan.values.reserve(p.plan.n_tensors + 4 * segment.ops().size());
  for (const fth_tensor& t : segment.tensors()) {
    Value v;
    v.role = t.role;
    v.bytes = *sdk::binding_bytes(t);
    v.alignment = element_alignment(sdk::dtype(t));
    if (t.role == FTH_ROLE_SLOTS) {
      v.first_slot = p.plan.n_slots;
      v.n_slots = static_cast<uint32_t>(t.dims[0]);
      p.plan.n_slots += v.n_slots;
    }
    p.plan.values.push_back(v);
  }
  p.q8_rows.assign(p.plan.n_tensors, kNoValue);
  p.fine_q8_rows.assign(p.plan.n_tensors, kNoValue);
  p.written.assign(p.plan.n_tensors, false);
  for (const fth_op& op : segment.ops()) {
    p.op = &op;
    FTH_RETURN_IF_ERROR(plan_op(p));
    ++p.op_index;
  }
  if (p.plan.n_tokens < 0) p.plan.n_tokens = 1;  // no op: nothing runs
  FTH_ASSIGN_OR_RETURN(p.plan.workspace_bytes, place_in_workspace(p.plan.values));
  return std::move(p.plan);
}

}  // namespace fth::cpu
