// plan_segment(): ops to dispatches, then a place in the workspace for what lives inside one submit.

#include "backends/vulkan/plan.h"

#include <algorithm>
#include <bit>
#include <map>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

namespace fth::vulkan {
namespace {

constexpr uint64_t kMaxTensor = 4 * kGiB;  // shaders count words and values in 32 bits

constexpr uint64_t ceil_div(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
constexpr uint32_t u32(int64_t v) { return static_cast<uint32_t>(v); }

class Planner {
 public:
  Planner(const sdk::SegmentView& segment, const Limits& limits) : segment_(segment), limits_(limits), ops_(segment) {}
  Result<SegmentPlan> run();

 private:
  void align(uint32_t v, uint64_t alignment) { plan_.values[v].alignment = std::max(plan_.values[v].alignment, alignment); }
  // Matrices of floats are read 16 bytes at a time: by units of 8 values, or value by value.
  void align_matrix(uint32_t v, bool by_value) {
    if (ops_.type(v) <= DType::bf16 && !by_value) align(v, 16);
  }
  void add(Dispatch d);
  uint32_t tokens() const { return u32(ops_.n_tokens()); }
  double rows() const { return static_cast<double>(ops_.n_tokens()); }

  Result<> plan_op(const fth_op& op);
  Result<> embed();
  Result<> rms_norm();
  Result<> matmul();
  bool matmul_coop(const sdk::MatmulOp& op);
  Result<> rope();
  Result<> attention();
  Result<> elementwise();
  Result<> combine();

  const sdk::SegmentView& segment_;
  const Limits& limits_;
  sdk::OpChecker ops_;
  SegmentPlan plan_;
  uint32_t next_own_ = 0;                    // of the values behind the segment's, two for each MATMUL
  std::map<uint32_t, uint32_t> f16_copies_;  // by x: the value that holds it as to_f16.comp leaves it
};

void Planner::add(Dispatch d) {
  const uint32_t at = static_cast<uint32_t>(plan_.dispatches.size());
  for (const auto* list : {&d.reads, &d.writes})
    for (const uint32_t v : *list) {
      sdk::Value& value = plan_.values[v];
      value.used_at(at);
      if (list == &d.writes) f16_copies_.erase(v);
      if (value.role != FTH_ROLE_TEMP && value.role != FTH_ROLE_STATE) plan_.bytes += static_cast<double>(value.bytes);
    }
  plan_.dispatches.push_back(std::move(d));
}

Result<> Planner::embed() {
  FTH_ASSIGN_OR_RETURN(const sdk::EmbedOp op, ops_.embed());
  const DType type = ops_.type(op.table);
  const bool by_value = op.width % 8 != 0;
  const uint64_t row = row_bytes(type, op.width);
  align_matrix(op.table, by_value);
  add({.shader = Shader::embed,
       .constants = {kThreads, static_cast<uint32_t>(type)},
       .push = {op.ids, op.table, op.y, u32(op.width), u32(op.vocabulary), static_cast<uint32_t>(row), by_value ? 1u : 0u},
       .groups_x = ceil_div(static_cast<uint64_t>(by_value ? op.width : op.width / 8), kThreads),
       .groups_y = tokens(),
       .reads = {op.ids, op.table},
       .writes = {op.y}});
  plan_.bytes -= static_cast<double>(plan_.values[op.table].bytes) - rows() * static_cast<double>(row);
  return {};
}

Result<> Planner::rms_norm() {
  FTH_ASSIGN_OR_RETURN(const sdk::RmsNormOp op, ops_.rms_norm());
  add({.shader = Shader::rms_norm,
       .constants = {kThreads, kThreads},
       .push = {op.x, op.weight, op.y, u32(op.width), std::bit_cast<uint32_t>(static_cast<float>(op.eps))},
       .groups_x = tokens(),
       .reads = {op.x, op.weight},
       .writes = {op.y}});
  return {};
}

Result<> Planner::matmul() {
  FTH_ASSIGN_OR_RETURN(const sdk::MatmulOp op, ops_.matmul());
  const DType type = ops_.type(op.weight);
  const bool by_value = op.k % 8 != 0;
  align_matrix(op.weight, by_value);
  if (!by_value) align(op.x, 16);

  if (limits_.coop && ops_.n_tokens() >= kCoopTokens && !op.fine && coop_type(type) && matmul_coop(op)) return {};
  // A weight is unpacked once for `cols` tokens and a value of x is read once for `row_tile` weights; few rows are split finer, to keep every
  // processor of the device busy.
  const uint64_t n = tokens(), rows_of_w = static_cast<uint64_t>(op.m);
  const uint32_t cols = n == 1 ? 1 : n <= 8 ? 8 : 16;
  constexpr uint64_t kBusy = 256;  // workgroups
  uint32_t row_tile = n == 1 ? 2 : 4;
  while (row_tile > 1 && ceil_div(rows_of_w, row_tile * limits_.groups) * ceil_div(n, cols) < kBusy) row_tile /= 2;
  Dispatch d{
      .shader = limits_.subgroups ? Shader::matmul_subgroup : Shader::matmul,
      .constants = {limits_.lanes * limits_.groups, static_cast<uint32_t>(type), limits_.lanes, row_tile, cols},
      .push = {op.x, op.weight, op.bias, op.y, u32(op.k), u32(op.m), static_cast<uint32_t>(row_bytes(type, op.k)), by_value ? 1u : 0u},
      .groups_x = ceil_div(rows_of_w, uint64_t{row_tile} * limits_.groups),
      .groups_y = static_cast<uint32_t>(ceil_div(n, cols)),
      .reads = {op.x, op.weight},
      .writes = {op.y}};
  if (op.bias != sdk::kNoValue) d.reads.push_back(op.bias);
  add(std::move(d));
  plan_.flops += 2 * rows() * static_cast<double>(op.k) * static_cast<double>(op.m);
  return {};
}

// In cooperative matrices. False: it is not to be had for this shape.
bool Planner::matmul_coop(const sdk::MatmulOp& op) {
  const DType type = ops_.type(op.weight);
  const uint64_t n = tokens(), m = static_cast<uint64_t>(op.m), k = static_cast<uint64_t>(op.k);
  const std::optional<CoopTiles> t = coop_tiles(limits_.coop, type, n, m);
  if (!t) return false;
  // Every type's tiles fit into rows of whole 128 values; workgroups read whole tiles of tokens.
  const uint64_t kp = align_up(k, 128), rows = align_up(n, 4 * uint64_t{limits_.coop.m}), values = align_up(4 * rows, 16);
  const uint64_t copy_bytes = values + 2 * rows * kp;
  if (copy_bytes >= std::min(kMaxTensor, limits_.max_buffer)) return false;
  const uint32_t scales = next_own_++;
  const auto [copy, made] = f16_copies_.emplace(op.x, next_own_);
  const uint32_t x16 = copy->second;
  if (made) {
    plan_.values[next_own_++].bytes = copy_bytes;
    align(x16, kWorkspaceAlignment);
    add({.shader = Shader::to_f16,
         .constants = {kThreads, kThreads},
         .push = {op.x, x16, u32(op.k), static_cast<uint32_t>(kp), static_cast<uint32_t>(values / 4)},
         .groups_x = n,
         .reads = {op.x},
         .writes = {x16}});
  }
  sdk::Value& unscale = plan_.values[scales];
  unscale.role = kOwnRole;
  unscale.bytes = 4 * m;
  const uint32_t row = static_cast<uint32_t>(row_bytes(type, op.k));
  plan_.once.push_back({.shader = Shader::row_scales,
                        .constants = {kThreads, kThreads, static_cast<uint32_t>(type)},
                        .push = {op.weight, scales, u32(op.k), u32(op.m), row},
                        .groups_x = m});
  const Coop& c = limits_.coop;
  Dispatch d{.shader = Shader::matmul_coop,
             .constants = {t->threads(c), static_cast<uint32_t>(type), c.m, c.n, c.k, t->token_tiles, t->row_tiles, t->token_groups,
                           t->row_groups, t->chunk, t->threads(c)},
             .push = {x16, op.weight, scales, op.bias, op.y, u32(op.k), u32(op.m), row, static_cast<uint32_t>(kp),
                      static_cast<uint32_t>(values / 4)},
             .groups_x = ceil_div(m, t->rows(c)),
             .groups_y = static_cast<uint32_t>(ceil_div(n, t->tokens(c))),
             .reads = {x16, op.weight},
             .writes = {op.y}};
  if (op.bias != sdk::kNoValue) d.reads.push_back(op.bias);
  add(std::move(d));
  plan_.coop_flops += 2 * static_cast<double>(n) * static_cast<double>(k) * static_cast<double>(m);
  return true;
}

Result<> Planner::rope() {
  FTH_ASSIGN_OR_RETURN(const sdk::RopeOp op, ops_.rope());
  const uint32_t frequency = static_cast<uint32_t>(plan_.values.size()) + plan_.ropes.table_of(op).first;
  add({.shader = Shader::rope,
       .constants = {kThreads},
       .push = {op.x, op.y, frequency, u32(op.heads), u32(op.head_dim), u32(op.half), op.adjacent ? 1u : 0u},
       .groups_x = ceil_div(static_cast<uint64_t>(op.heads * (op.head_dim - op.half)), kThreads),
       .groups_y = tokens(),
       .reads = {op.x},
       .writes = {op.y}});
  return {};
}

Result<> Planner::attention() {
  FTH_ASSIGN_OR_RETURN(const sdk::AttentionOp op, ops_.attention());
  const int64_t head_dim = op.head_dim, kv_width = op.kv_heads * head_dim;
  if (head_dim > 2 * int64_t{kThreads}) return ops_.unsupported(text("heads of ", head_dim, ": at most ", 2 * kThreads));
  if (op.cache == DType::f16 && head_dim % 2 != 0)
    return ops_.unsupported(text("heads of ", head_dim, " in a cache of f16: an even number"));
  if (static_cast<uint64_t>(op.heads) > limits_.max_groups_x)
    return ops_.unsupported(text(op.heads, " heads: the device allows ", limits_.max_groups_x));
  align(op.k_cache, 16);
  align(op.v_cache, 16);
  if (op.window == 0) plan_.rules.max_end = std::min(plan_.rules.max_end, op.cells);

  const uint64_t words = static_cast<uint64_t>(op.cache == DType::f16 ? kv_width / 2 : kv_width);
  add({.shader = Shader::kv_store,
       .constants = {kThreads, static_cast<uint32_t>(op.cache)},
       .push = {op.k, op.v, op.k_cache, op.v_cache, u32(kv_width), u32(op.cells)},
       .groups_x = ceil_div(2 * words, kThreads),
       .groups_y = tokens(),
       .reads = {op.k, op.v},
       .writes = {op.k_cache, op.v_cache}});
  add({.shader = Shader::attention,
       .constants = {kThreads, kThreads, static_cast<uint32_t>(op.cache)},
       .push = {op.q, op.k_cache, op.v_cache, op.y, u32(op.heads), u32(op.kv_heads), u32(head_dim),
                u32(std::min(op.window, int64_t{1} << 31)), u32(op.cells), std::bit_cast<uint32_t>(static_cast<float>(op.scale))},
       .groups_x = static_cast<uint64_t>(op.heads),
       .groups_y = tokens(),
       .reads = {op.q, op.k_cache, op.v_cache},
       .writes = {op.y}});
  const double seen = static_cast<double>(op.window > 0 ? std::min(op.window, op.cells) : op.cells) / 2;
  plan_.bytes += 2 * seen * static_cast<double>(row_bytes(op.cache, kv_width));
  plan_.flops += 4 * seen * static_cast<double>(op.heads * head_dim) * rows();
  return {};
}

Result<> Planner::elementwise() {
  FTH_ASSIGN_OR_RETURN(const sdk::ElementwiseOp op, ops_.elementwise());
  add({.shader = Shader::elementwise,
       .constants = {kThreads, static_cast<uint32_t>(op.kind)},  // the shader's kKind counts as the enum does
       .push = {op.a, op.b, op.y, u32(op.width)},
       .groups_x = ceil_div(static_cast<uint64_t>(ops_.n_tokens() * op.width), kThreads),
       .reads = {op.a, op.b},
       .writes = {op.y}});
  return {};
}

Result<> Planner::combine() {
  FTH_ASSIGN_OR_RETURN(const sdk::CombineOp op, ops_.combine());
  add({.shader = Shader::combine,
       .constants = {kThreads},
       .push = {op.x, op.y, op.weights, op.result, u32(op.width), u32(op.top_k)},
       .groups_x = ceil_div(static_cast<uint64_t>(op.width), kThreads),
       .groups_y = tokens(),
       .reads = {op.x, op.y, op.weights},
       .writes = {op.result}});
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
    default: return ops_.unsupported("the vulkan backend does not run it; leave it on the cpu");
  }
}

Result<SegmentPlan> Planner::run() {
  FTH_ASSIGN_OR_RETURN(plan_.values, sdk::values_of(segment_, std::min(kMaxTensor - 1, limits_.max_buffer)));
  next_own_ = static_cast<uint32_t>(plan_.values.size());
  if (limits_.coop)  // before the ops are planned: entries behind the values are counted from their end
    for (const fth_op& op : segment_.ops())
      if (op.kind == FTH_OP_MATMUL) plan_.values.resize(plan_.values.size() + 2);
  while (const fth_op* const op = ops_.next()) {
    FTH_RETURN_IF_ERROR(plan_op(*op));
    if (ops_.n_tokens() > int64_t{limits_.max_groups_y})
      return ops_.unsupported(text(ops_.n_tokens(), " tokens: the device allows ", limits_.max_groups_y));
  }
  FTH_RETURN_IF_ERROR(sdk::check_no_slots(segment_, "vulkan"));
  plan_.rules.name = segment_.name();
  plan_.rules.n_bindings = segment_.n_bindings();
  plan_.rules.n_tokens = std::max<int64_t>(ops_.n_tokens(), 1);  // 1: no op, nothing runs
  // Values that share a place are kept apart in time by the barriers, which are drawn from places (executable.cpp).
  plan_.rules.workspace_bytes = sdk::place_temps(plan_.values, kWorkspaceAlignment);
  return std::move(plan_);
}

}  // namespace

Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Limits& limits) { return Planner(segment, limits).run(); }

}  // namespace fth::vulkan
