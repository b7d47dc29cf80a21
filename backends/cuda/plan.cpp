// plan_segment(): ops to launches, then a place in the workspace for what lives inside one submit.

#include "backends/cuda/plan.h"

#include <algorithm>

#include "core/base/bytes.h"

namespace fth::cuda {
namespace {

using sdk::text;
using Kind = Operand::Kind;

constexpr uint64_t kMostShares = 64 * kMiB;  // scratch for tiles in blocks of their own; beyond, a row's tiles go through one block

constexpr uint32_t u32(int64_t v) { return static_cast<uint32_t>(v); }
constexpr uint64_t u64(int64_t v) { return static_cast<uint64_t>(v); }
constexpr uint32_t blocks(int64_t items, uint32_t each) { return u32((items + each - 1) / each); }
Operand value(uint32_t v) { return {Kind::value, v}; }

class Planner {
 public:
  Planner(const sdk::SegmentView& segment, uint64_t most) : segment_(segment), most_(most), ops_(segment) {}
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

  // Numbers and tensors in the order of the kernel's enums.
  void add(Launch launch);
  void align(uint32_t v) { plan_.values[v].alignment = kAlignment; }
  double rows() const { return static_cast<double>(ops_.n_tokens()); }

  const sdk::SegmentView& segment_;
  uint64_t most_;
  sdk::OpChecker ops_;
  SegmentPlan plan_;
};

void Planner::add(Launch launch) {
  const uint32_t at = static_cast<uint32_t>(plan_.launches.size());
  for (const Operand& o : launch.tensors) {
    if (o.kind != Kind::value) continue;
    sdk::Value& v = plan_.values[o.value];
    v.used_at(at);
    if (v.role != FTH_ROLE_TEMP && v.role != FTH_ROLE_STATE) plan_.bytes += static_cast<double>(v.bytes);
  }
  plan_.launches.push_back(std::move(launch));
}

Result<> Planner::embed() {
  FTH_ASSIGN_OR_RETURN(const sdk::EmbedOp op, ops_.embed());
  const DType type = ops_.type(op.table);
  const uint64_t row = row_bytes(type, op.width);
  align(op.table);
  plan_.has_status = true;
  add({.kernel = KernelId::embed,
       .x = blocks(op.width % kUnit != 0 ? op.width : op.width / kUnit, PerItem::kThreads),
       .tensors = {value(op.ids), value(op.table), value(op.y), {.kind = Kind::status}},
       .numbers = {u64(op.width), u64(op.vocabulary), row, static_cast<uint64_t>(type)}});
  plan_.bytes -= static_cast<double>(plan_.values[op.table].bytes) - rows() * static_cast<double>(row);
  return {};
}

Result<> Planner::rms_norm() {
  FTH_ASSIGN_OR_RETURN(const sdk::RmsNormOp op, ops_.rms_norm());
  add({.kernel = KernelId::rms_norm,
       .tensors = {value(op.x), value(op.weight), value(op.y)},
       .numbers = {u64(op.width)},
       .real = static_cast<float>(op.eps)});
  return {};
}

Result<> Planner::matmul() {
  FTH_ASSIGN_OR_RETURN(const sdk::MatmulOp op, ops_.matmul());
  const DType type = ops_.type(op.weight);
  const bool one = ops_.n_tokens() == 1, by_value = op.k % kUnit != 0, has_bias = op.bias != sdk::kNoValue;
  using One = Matmul<DType::f32, 1>;
  using Many = Matmul<DType::f32, 8>;
  Launch launch{.kernel = after(one ? KernelId::matmul_one_f32 : KernelId::matmul_many_f32, static_cast<uint32_t>(type)),
                .x = blocks(op.m, one ? One::kBlockRows : Many::kBlockRows),
                .columns = one ? One::kColumns : Many::kColumns,
                .tensors = {value(op.x), value(op.weight), value(has_bias ? op.bias : op.weight), value(op.y)},
                .numbers = {u64(op.k), u64(op.m), row_bytes(type, op.k), has_bias ? 1u : 0u, static_cast<uint64_t>(type)}};
  if (by_value) {
    launch.kernel = KernelId::matmul_by_value;
    launch.x = blocks(op.m, MatmulByValue::kBlockRows);
    launch.columns = 1;
  }
  align(op.weight);
  align(op.x);
  add(std::move(launch));
  if (!has_bias) plan_.bytes -= static_cast<double>(plan_.values[op.weight].bytes);
  plan_.flops += 2 * rows() * static_cast<double>(op.k) * static_cast<double>(op.m);
  return {};
}

Result<> Planner::rope() {
  FTH_ASSIGN_OR_RETURN(const sdk::RopeOp op, ops_.rope());
  const uint32_t first = plan_.ropes.table_of(op).first;
  add({.kernel = KernelId::rope,
       .x = blocks(op.heads * (op.head_dim - op.half), PerItem::kThreads),
       .tensors = {value(op.x), value(op.y), {.kind = Kind::frequencies}},
       .numbers = {first, u64(op.heads), u64(op.head_dim), u64(op.half), op.adjacent ? 1u : 0u}});
  return {};
}

Result<> Planner::attention() {
  FTH_ASSIGN_OR_RETURN(const sdk::AttentionOp op, ops_.attention({DType::f32, DType::f16, DType::q8_0}));
  if (op.head_dim > AttentionParams::kMostHeadDim)
    return ops_.unsupported(text("heads of ", op.head_dim, ": at most ", AttentionParams::kMostHeadDim));
  if (op.window == 0) plan_.rules.max_end = std::min(plan_.rules.max_end, op.cells);
  plan_.values[op.k_cache].alignment = plan_.values[op.v_cache].alignment = op.cache == DType::f32 ? 4 : 2;
  const int64_t kv_width = op.kv_heads * op.head_dim;
  const uint32_t cell = op.cache == DType::f32 ? 0 : op.cache == DType::f16 ? 1 : 2;  // in the order of the list
  add({.kernel = after(KernelId::kv_store_f32, cell),
       .x = blocks(2 * kv_width / traits(op.cache).block, PerItem::kThreads),
       .tensors = {value(op.k), value(op.v), value(op.k_cache), value(op.v_cache)},
       .numbers = {u64(kv_width), u64(op.cells)}});

  // A single row is too little for a GPU: its tiles go to blocks of their own. At most one tile more than the window is long: it may start inside of one.
  const uint32_t window = u32(std::min(op.window, int64_t{1} << 31));
  const int64_t seen = window > 0 ? std::min<int64_t>(window, op.cells) : op.cells, tiles = seen / AttentionParams::kTile + 2;
  const uint64_t share_bytes = u64(op.heads) * AttentionParams::share_floats(u32(op.head_dim)) * sizeof(float);
  const bool alone = ops_.n_tokens() == 1, split = alone && u64(tiles) <= kMostShares / share_bytes;
  const KernelId kernel = split ? KernelId::attention_tile_f32 : alone ? KernelId::attention_row_f32 : KernelId::attention_rows_f32;
  Launch launch{.kernel = after(kernel, cell),
                .x = u32(op.heads),
                .columns = alone ? 1u : Attention<DType::f32, 8, true>::kRows,
                .tensors = {value(op.q), value(op.k_cache), value(op.v_cache), value(op.y)},
                .numbers = {u64(op.heads), u64(op.kv_heads), u64(op.head_dim), window, u64(op.cells)},
                .real = static_cast<float>(op.scale)};
  if (split) {
    const auto shares = static_cast<uint32_t>(plan_.values.size());
    plan_.values.push_back({.role = FTH_ROLE_TEMP, .bytes = u64(tiles) * share_bytes});
    launch.tensors.push_back(value(shares));
    launch.window = window;
    Launch merge = launch;
    add(std::move(launch));
    merge.kernel = KernelId::attention_merge;
    merge.window.reset();
    add(std::move(merge));
  } else {
    add(std::move(launch));
  }
  const double half_seen = static_cast<double>(seen) / 2;
  plan_.bytes += 2 * half_seen * static_cast<double>(row_bytes(op.cache, kv_width));
  plan_.flops += 4 * half_seen * static_cast<double>(op.heads * op.head_dim) * rows();
  return {};
}

Result<> Planner::elementwise() {
  FTH_ASSIGN_OR_RETURN(const sdk::ElementwiseOp op, ops_.elementwise());
  add({.kernel = after(KernelId::add, static_cast<uint32_t>(op.kind)),
       .x = blocks(op.width, PerItem::kThreads),
       .tensors = {value(op.a), value(op.b), value(op.y)},
       .numbers = {u64(op.width)}});
  return {};
}

Result<> Planner::combine() {
  FTH_ASSIGN_OR_RETURN(const sdk::CombineOp op, ops_.combine());
  add({.kernel = KernelId::combine,
       .x = blocks(op.width, PerItem::kThreads),
       .tensors = {value(op.x), value(op.y), value(op.weights), value(op.result)},
       .numbers = {u64(op.width), u64(op.top_k)}});
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
    default: return ops_.unsupported("the cuda backend does not run it; leave it on the cpu");
  }
}

Result<SegmentPlan> Planner::run() {
  FTH_ASSIGN_OR_RETURN(plan_.values, sdk::values_of(segment_, most_));
  FTH_RETURN_IF_ERROR(sdk::check_dims(segment_));
  while (const fth_op* const op = ops_.next()) FTH_RETURN_IF_ERROR(plan_op(*op));
  FTH_RETURN_IF_ERROR(sdk::check_no_slots(segment_, "cuda"));
  for (const Launch& l : plan_.launches)
    for (const uint64_t n : l.numbers)
      if (n > UINT32_MAX) return fail(Code::unimplemented, text(segment_.name(), ": rows of ", n, " bytes: at most 4 GiB"));
  if (ops_.n_tokens() > kMostGridY)
    return fail(Code::unimplemented, text(segment_.name(), ": ", ops_.n_tokens(), " tokens at once: at most ", kMostGridY));
  plan_.rules.name = segment_.name();
  plan_.rules.n_bindings = segment_.n_bindings();
  plan_.rules.n_tokens = std::max<int64_t>(ops_.n_tokens(), 1);
  plan_.rules.workspace_bytes = sdk::place_temps(plan_.values, kAlignment);
  if (plan_.rules.workspace_bytes > most_)
    return fail(Code::unimplemented,
                text(segment_.name(), ": a workspace of ", format_bytes(plan_.rules.workspace_bytes), ", at most ", format_bytes(most_)));
  return std::move(plan_);
}

}  // namespace

Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, uint64_t most) { return Planner(segment, most).run(); }

}  // namespace fth::cuda
