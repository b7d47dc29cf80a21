// What this backend takes of a segment, and where the scratch of each step lies.

#include "backends/onednn/plan.h"

#include <algorithm>

#include "core/base/bytes.h"

namespace fth::onednn {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint64_t kMostBytes = uint64_t{1} << 50;

struct Planner {
  const sdk::SegmentView& segment;
  const Units& units;
  sdk::OpChecker& ops;
  SegmentPlan& plan;
  uint64_t scratch = 0;  // of the step at hand

  uint64_t place(uint64_t bytes) {
    const uint64_t at = scratch;
    scratch = align_up(scratch + bytes, kAlignment);
    return at;
  }
  PackedArea packed(int64_t k, int64_t columns, bool int8) {
    PackedArea a{.used = true, .k = k, .groups = (k + kGroup - 1) / kGroup};
    const auto groups = static_cast<uint64_t>(a.groups) * static_cast<uint64_t>(columns);
    a.data = place(groups * kGroup * (int8 ? 1 : sizeof(float)));
    if (int8) a.scales = place(groups * sizeof(float)), a.sums = place(groups * sizeof(int32_t));
    return a;
  }
  Result<Matrix> matrix(std::string_view what, uint32_t tensor, int64_t rows, int64_t k, bool neuron_major, bool exact) {
    Matrix m{.tensor = tensor, .type = ops.type(tensor), .neuron_major = neuron_major, .rows = rows, .k = k};
    if (!neuron_major && (m.type == DType::q4_k || m.type == DType::q6_k))
      return ops.unsupported(sdk::text(ops.describe(what, tensor), ": products of f32, f16, bf16, q8_0, q4_0 and q4_1 only"));
    const bool grouped = m.type == DType::q4_0 || m.type == DType::q8_0;
    m.products = grouped && !exact && units.int8 != nullptr ? units.int8 : &units.f32;
    m.first_slot = plan.first_slot[tensor];
    return m;
  }
  // Of one matrix times `columns` columns in `passes` unpackings, over all threads.
  double seconds(const Matrix& m, double passes, double columns) const {
    const int64_t tile_rows = (m.rows + kTile - 1) / kTile;
    const double tiles = static_cast<double>(tile_rows) * static_cast<double>(m.k) / 2560.0;
    return tiles * (passes * m.products->seconds_per_tile + columns * m.products->seconds_per_column) / units.n_threads;
  }

  Result<> matmul() {
    FTH_ASSIGN_OR_RETURN(const sdk::MatmulOp op, ops.matmul());
    MatmulStep s{.x = op.x, .bias = op.bias, .y = op.y, .w = {}, .packed = {}};
    FTH_ASSIGN_OR_RETURN(s.w, matrix("weight", op.weight, op.m, op.k, false, op.fine));
    const int64_t columns = (ops.n_tokens() + s.w.products->unit - 1) / s.w.products->unit * s.w.products->unit;
    s.packed = packed(op.k, columns, s.w.products->int8);
    const int64_t passes = (columns + kWide - 1) / kWide;
    plan.seconds += seconds(s.w, static_cast<double>(passes), static_cast<double>(columns));
    plan.steps.emplace_back(s);
    return {};
  }

  Result<> experts(bool gates_only) {
    ExpertsStep s{};
    s.gates_only = gates_only;
    s.gate_values = s.gate.tensor = kNoValue;
    uint32_t gate = kNoValue, up = kNoValue, down = kNoValue;
    bool neuron_major = false, interleaved = false;
    if (gates_only) {
      FTH_ASSIGN_OR_RETURN(const sdk::ExpertGatesOp op, ops.expert_gates());
      s.x = op.x, s.slot_begin = op.slot_begin, s.rows = op.rows, s.y = op.y, gate = op.gate;
      s.slots = op.slots, s.width = op.width, s.ff = op.ff, s.top_k = op.top_k, interleaved = op.gate_interleaved;
    } else {
      FTH_ASSIGN_OR_RETURN(const sdk::ExpertsOp op, ops.experts());
      if (op.order == sdk::DownOrder::row_per_neuron) return ops.unsupported("down as a row per neuron: only by outputs, or neuron-major");
      neuron_major = op.order == sdk::DownOrder::neuron_major;
      s.x = op.x, s.slot_begin = op.slot_begin, s.rows = op.rows, s.y = op.y, s.silu = op.silu;
      s.gate_values = op.gate_values, gate = op.gate, up = op.up, down = op.down;
      s.slots = op.slots, s.width = op.width, s.ff = op.ff, s.top_k = op.top_k, interleaved = op.gate_interleaved;
    }
    s.unit = 8;
    const auto take = [&](std::string_view what, uint32_t tensor, int64_t rows, int64_t k, bool by_neuron, Matrix* to) -> Result<> {
      if (tensor == kNoValue) return {};
      FTH_ASSIGN_OR_RETURN(*to, matrix(what, tensor, rows, k, by_neuron, false));
      s.unit = std::max(s.unit, to->products->unit);
      return {};
    };
    FTH_RETURN_IF_ERROR(take("gate", gate, s.ff, s.width, false, &s.gate));
    s.gate.interleaved = interleaved;
    if (interleaved && s.gate.type != DType::q4_0 && s.gate.type != DType::q4_1)
      return ops.unsupported(sdk::text("the gate has interleaved rows of ", name(s.gate.type), ": only of q4_0 and q4_1"));
    FTH_RETURN_IF_ERROR(take("up", up, s.ff, s.width, false, &s.up));
    FTH_RETURN_IF_ERROR(take("down", down, s.width, s.ff, neuron_major, &s.down));
    plan.max_slots = std::max(plan.max_slots, s.slots);

    const int64_t n_rows = ops.n_tokens() * s.top_k, used = std::min(s.slots, n_rows);
    const int64_t columns = (n_rows + (s.unit - 1) * used + s.unit - 1) / s.unit * s.unit;
    s.max_rows = n_rows;
    s.columns = place(static_cast<uint64_t>(s.slots + 1) * sizeof(int32_t));
    s.seen = place(static_cast<uint64_t>(n_rows));
    for (const Matrix* m : {&s.gate, &s.up}) {
      if (m->products == nullptr) continue;
      PackedArea& area = m->products->int8 ? s.x_int8 : s.x_f32;
      if (!area.used) area = packed(s.width, columns, m->products->int8);
    }
    if (s.down.products != nullptr) s.hidden = packed(s.ff, columns, s.down.products->int8);
    for (const Matrix* m : {&s.gate, &s.up, &s.down})
      if (m->products != nullptr) plan.seconds += seconds(*m, static_cast<double>(used), static_cast<double>(columns));
    plan.steps.emplace_back(s);
    return {};
  }
};

}  // namespace

Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Units& units) {
  SegmentPlan plan;
  FTH_ASSIGN_OR_RETURN(plan.values, sdk::values_of(segment, kMostBytes));
  for (const fth_tensor& t : segment.tensors()) {
    const bool slots = t.role == FTH_ROLE_SLOTS;
    if (traits(sdk::dtype(t)).block_bytes != sizeof(float))
      plan.values[plan.slot_count.size()].alignment = 1;  // weights are read by the byte
    plan.first_slot.push_back(plan.n_slots);
    plan.slot_count.push_back(slots ? t.dims[0] : 0);
    if (slots) plan.n_slots += static_cast<uint32_t>(t.dims[0]);
  }
  sdk::OpChecker ops(segment);
  ops.takes_interleaved_gates();
  Planner p{.segment = segment, .units = units, .ops = ops, .plan = plan};
  uint64_t scratch = 0;
  while (const fth_op* op = ops.next()) {
    const auto step = static_cast<uint32_t>(plan.steps.size());
    p.scratch = 0;
    switch (op->kind) {
      case FTH_OP_MATMUL: FTH_RETURN_IF_ERROR(p.matmul()); break;
      case FTH_OP_EXPERTS: FTH_RETURN_IF_ERROR(p.experts(false)); break;
      case FTH_OP_EXPERT_GATES: FTH_RETURN_IF_ERROR(p.experts(true)); break;
      default: return ops.unsupported("this backend multiplies: matmul, experts and expert_gates only");
    }
    scratch = std::max(scratch, p.scratch);
    for (uint32_t i = 0; i < op->n_in; ++i)
      if (op->in[i] != FTH_NO_TENSOR) plan.values[op->in[i]].used_at(step);
    for (uint32_t i = 0; i < op->n_out; ++i) plan.values[op->out[i]].used_at(step);
  }
  plan.rules.name = segment.name();
  plan.rules.n_tokens = std::max<int64_t>(ops.n_tokens(), 1);
  plan.rules.n_bindings = segment.n_bindings();
  plan.scratch = sdk::place_temps(plan.values, kAlignment);
  plan.rules.workspace_bytes = plan.scratch + scratch;
  if (plan.rules.workspace_bytes > kMostBytes)
    return fail(Code::resource_exhausted, sdk::text(segment.name(), ": the workspace passes 2^50 bytes"));
  return plan;
}

}  // namespace fth::onednn
