// plan_segment(): ops to launches, then a place in the workspace for what lives inside one submit.

#include "backends/opencl/plan.h"

#include <algorithm>
#include <bit>

namespace fth::opencl {
namespace {

using Source = KernelName::Source;
using Kind = Arg::Kind;

constexpr uint32_t kUnit = 32;    // weights that the kernels unpack at once
constexpr uint32_t kItems = 128;  // of a work-group of kernels that do a value, or a unit, per work-item
constexpr int64_t kMostHeadDim = 256;

constexpr uint32_t u32(int64_t v) { return static_cast<uint32_t>(v); }
constexpr uint64_t u64(int64_t v) { return static_cast<uint64_t>(v); }
Arg value(uint32_t v) { return {Kind::value, v}; }
Arg number(int64_t n) { return {Kind::u32, u32(n)}; }
Arg real(double f) { return {Kind::f32, std::bit_cast<uint32_t>(static_cast<float>(f))}; }

bool is_quantized(DType t) { return t != DType::i32 && traits(t).block > 1; }

class Planner {
 public:
  Planner(const sdk::SegmentView& segment, const Limits& limits) : segment_(segment), limits_(limits), ops_(segment) {}
  Result<SegmentPlan> run();

 private:
  Result<> plan_op(const fth_op& op);
  Result<> embed();
  Result<> rms_norm();
  Result<> matmul();
  Result<> rope();
  Result<> attention();
  Result<> elementwise();
  Result<> combine();

  void add(Launch launch);
  uint32_t rounded(uint32_t x, int64_t k, const std::string& options);
  std::string threads() const { return text("-DTHREADS=", limits_.threads); }
  void align_weight(uint32_t v) {
    if (ops_.type(v) != DType::f32) plan_.values[v].alignment = 2;
  }
  double rows() const { return static_cast<double>(ops_.n_tokens()); }

  const sdk::SegmentView& segment_;
  const Limits& limits_;
  sdk::OpChecker ops_;
  SegmentPlan plan_;
  std::vector<std::pair<uint32_t, uint32_t>> rounded_;  // an input of products, and its rounded form
};

void Planner::add(Launch launch) {
  const uint32_t at = static_cast<uint32_t>(plan_.launches.size());
  for (const Arg& a : launch.args) {
    if (a.kind != Kind::value) continue;
    sdk::Value& v = plan_.values[a.number];
    v.used_at(at);
    if (v.role != FTH_ROLE_TEMP && v.role != FTH_ROLE_STATE) plan_.bytes += static_cast<double>(v.bytes);
  }
  plan_.launches.push_back(std::move(launch));
}

Result<> Planner::embed() {
  FTH_ASSIGN_OR_RETURN(const sdk::EmbedOp op, ops_.embed());
  const DType type = ops_.type(op.table);
  const bool by_value = op.width % kUnit != 0;
  const uint64_t row = row_bytes(type, op.width);
  align_weight(op.table);
  plan_.has_status = true;
  add({.kernel = {Source::embed, "embed", text("-DTYPE=", static_cast<uint32_t>(type), " -DBY_VALUE=", by_value ? 1 : 0)},
       .args = {value(op.ids), value(op.table), value(op.y), number(op.width), number(op.vocabulary), {Kind::u64, row}, {Kind::status}},
       .items = u64(by_value ? op.width : op.width / kUnit),
       .local = kItems});
  plan_.bytes -= static_cast<double>(plan_.values[op.table].bytes) - rows() * static_cast<double>(row);
  return {};
}

Result<> Planner::rms_norm() {
  FTH_ASSIGN_OR_RETURN(const sdk::RmsNormOp op, ops_.rms_norm());
  add({.kernel = {Source::basic, "rms_norm", threads()},
       .args = {value(op.x), value(op.weight), value(op.y), number(op.width), real(op.eps)},
       .items = limits_.threads,
       .local = limits_.threads});
  return {};
}

// The form of x that products in f16 or in integers read, made once for all products that do.
uint32_t Planner::rounded(uint32_t x, int64_t k, const std::string& options) {
  for (const auto& [from, to] : rounded_)
    if (from == x) return to;
  const uint32_t scratch = u32(static_cast<int64_t>(plan_.values.size()));
  const uint64_t unit_bytes = 8 + kUnit * (limits_.math == Math::f16 ? 2 : 1), units = u64(k) / kUnit;
  plan_.values.push_back({.role = FTH_ROLE_TEMP, .bytes = u64(ops_.n_tokens()) * units * unit_bytes});
  rounded_.emplace_back(x, scratch);
  add({.kernel = {Source::matmul, "round_units", options},
       .args = {value(x), value(scratch), {Kind::u32, units}},
       .items = units,
       .local = kItems});
  return scratch;
}

Result<> Planner::matmul() {
  FTH_ASSIGN_OR_RETURN(const sdk::MatmulOp op, ops_.matmul());
  const DType type = ops_.type(op.weight);
  const Math math = is_quantized(type) && !op.fine ? limits_.math : Math::f32;
  const uint32_t columns = ops_.n_tokens() == 1 ? 1 : limits_.columns;
  align_weight(op.weight);
  const std::string common =
      text("-DTYPE=", static_cast<uint32_t>(type), " -DLANES=", limits_.lanes, " -DBY_VALUE=", op.k % kUnit != 0 ? 1 : 0,
           " -DMATH=", static_cast<uint32_t>(math), " -DINT_DOT=", limits_.int_dot ? 1 : 0);
  const std::string options = text(common, " -DCOLS=", columns);
  const uint32_t x = math == Math::f32 ? op.x : rounded(op.x, op.k, options);
  // A group that does one row is the finest split; where that is more than keeps every processor busy, starting groups costs.
  const uint64_t groups = u64(limits_.compute_units) * (limits_.lanes > 1 ? 32 : 8);
  const uint64_t per_group = std::clamp<uint64_t>(u64(op.m) / groups, 1, limits_.lanes > 1 ? 4 : 64);
  const bool has_bias = op.bias != sdk::kNoValue;
  add({.kernel = {Source::matmul, "matmul", options},
       .args = {value(x),
                value(op.weight),
                value(has_bias ? op.bias : op.weight),
                value(op.y),
                number(op.k),
                number(op.m),
                {Kind::u64, row_bytes(type, op.k)},
                {Kind::u32, has_bias ? 1u : 0u},
                {Kind::u32, per_group},
                {Kind::tokens}},
       .items = (u64(op.m) + per_group - 1) / per_group * limits_.lanes,
       .local = limits_.lanes,
       .columns = columns});
  if (!has_bias) plan_.bytes -= static_cast<double>(plan_.values[op.weight].bytes);
  plan_.flops += 2 * rows() * static_cast<double>(op.k) * static_cast<double>(op.m);
  return {};
}

Result<> Planner::rope() {
  FTH_ASSIGN_OR_RETURN(const sdk::RopeOp op, ops_.rope());
  const uint32_t first = plan_.ropes.table_of(op).first;
  add({.kernel = {Source::basic, "rope", threads()},
       .args = {value(op.x),
                value(op.y),
                {Kind::angles},
                {Kind::u32, first},
                number(op.heads),
                number(op.head_dim),
                number(op.half),
                {Kind::u32, op.adjacent ? 1u : 0u},
                {Kind::pos}},
       .items = u64(op.heads * (op.head_dim - op.half)),
       .local = kItems});
  return {};
}

Result<> Planner::attention() {
  FTH_ASSIGN_OR_RETURN(const sdk::AttentionOp op, ops_.attention());
  if (op.head_dim > kMostHeadDim) return ops_.unsupported(text("heads of ", op.head_dim, ": at most ", kMostHeadDim));
  if (op.window == 0) plan_.rules.max_end = std::min(plan_.rules.max_end, op.cells);
  plan_.values[op.k_cache].alignment = plan_.values[op.v_cache].alignment = op.cache == DType::f32 ? 4 : 2;
  const int64_t kv_width = op.kv_heads * op.head_dim;
  const std::string options = text("-DTYPE=", static_cast<uint32_t>(op.cache), " -DHEAD_DIM=", op.head_dim, " ", threads());
  add({.kernel = {Source::attention, "kv_store", options},
       .args = {value(op.k), value(op.v), value(op.k_cache), value(op.v_cache), number(kv_width), number(op.cells), {Kind::pos}},
       .items = u64(2 * kv_width),
       .local = kItems});
  add({.kernel = {Source::attention, "attention", options},
       .args = {value(op.q),
                value(op.k_cache),
                value(op.v_cache),
                value(op.y),
                number(op.heads),
                number(op.kv_heads),
                number(std::min(op.window, int64_t{1} << 31)),
                number(op.cells),
                real(op.scale),
                {Kind::pos},
                {Kind::tokens}},
       .items = u64(op.heads) * limits_.threads,
       .local = limits_.threads});
  const double seen = static_cast<double>(op.window > 0 ? std::min(op.window, op.cells) : op.cells) / 2;
  plan_.bytes += 2 * seen * static_cast<double>(row_bytes(op.cache, kv_width));
  plan_.flops += 4 * seen * static_cast<double>(op.heads * op.head_dim) * rows();
  return {};
}

Result<> Planner::elementwise() {
  FTH_ASSIGN_OR_RETURN(const sdk::ElementwiseOp op, ops_.elementwise());
  constexpr const char* kNames[] = {"add", "relu_glu", "silu_glu"};
  add({.kernel = {Source::basic, kNames[static_cast<size_t>(op.kind)], threads()},
       .args = {value(op.a), value(op.b), value(op.y), number(op.width)},
       .items = u64(op.width),
       .local = kItems});
  return {};
}

Result<> Planner::combine() {
  FTH_ASSIGN_OR_RETURN(const sdk::CombineOp op, ops_.combine());
  add({.kernel = {Source::basic, "combine", threads()},
       .args = {value(op.x), value(op.y), value(op.weights), value(op.result), number(op.width), number(op.top_k)},
       .items = u64(op.width),
       .local = kItems});
  return {};
}

Result<> Planner::plan_op(const fth_op& op) {
  switch (op.kind) {
    case FTH_OP_EMBED: return embed();
    case FTH_OP_RMS_NORM: return rms_norm();
    case FTH_OP_MATMUL: return matmul();
    case FTH_OP_ROPE: return rope();
    case FTH_OP_ATTENTION: return attention();
    case FTH_OP_ADD:
    case FTH_OP_GLU: return elementwise();
    case FTH_OP_COMBINE: return combine();
    default: return ops_.unsupported("the opencl backend does not run it; leave it on the cpu");
  }
}

Result<SegmentPlan> Planner::run() {
  FTH_ASSIGN_OR_RETURN(plan_.values, sdk::values_of(segment_, limits_.max_buffer));
  FTH_RETURN_IF_ERROR(sdk::check_dims(segment_));
  while (const fth_op* const op = ops_.next()) FTH_RETURN_IF_ERROR(plan_op(*op));
  FTH_RETURN_IF_ERROR(sdk::check_no_slots(segment_, "opencl"));
  plan_.rules.name = segment_.name();
  plan_.rules.n_bindings = segment_.n_bindings();
  plan_.rules.n_tokens = std::max<int64_t>(ops_.n_tokens(), 1);
  plan_.rules.workspace_bytes = sdk::place_temps(plan_.values, kWorkspaceAlignment);
  if (plan_.rules.workspace_bytes > limits_.max_buffer)
    return fail(Code::unimplemented, text(segment_.name(), ": a workspace of ", format_bytes(plan_.rules.workspace_bytes), ", at most ",
                                          format_bytes(limits_.max_buffer)));
  return std::move(plan_);
}

}  // namespace

Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Limits& limits) { return Planner(segment, limits).run(); }

}  // namespace fth::opencl
