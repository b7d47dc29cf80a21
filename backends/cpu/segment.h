#pragma once
// A segment, checked and turned into steps: what estimate() answers from and what an executable runs. One function, plan_segment(), serves both,
// so an estimate that says yes is a compile that succeeds, and its workspace is exactly the one the steps use.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "backends/cpu/kernels/kernels.h"
#include "core/base/dtype.h"
#include "core/base/result.h"
#include "plugins/sdk/backend.h"

namespace fth::cpu {

// What a step reads or writes: a tensor of the segment (the same number), or scratch that a step asked for (the numbers after them).
using ValueId = uint32_t;
inline constexpr ValueId kNoValue = 0xffffffffu;

struct Value {
  uint16_t role = FTH_ROLE_TEMP;
  uint64_t bytes = 0;      // of one slot for SLOTS
  uint64_t alignment = 1;  // that a binding must have
  // TEMP: the steps it lives through, both ends included, and its place in the workspace.
  uint32_t first_step = 0xffffffffu, last_step = 0;
  uint64_t offset = 0;
  uint32_t first_slot = 0, n_slots = 0;  // SLOTS: its range of Run::slots
};

// Of rows that EXPERTS had alone in their slots: relaxed sums, read between submits.
struct NeuronCounts {
  std::atomic<uint64_t> live{0}, all{0};
};

// One submit as the steps see it.
struct Run {
  const sdk::Host& host;
  const KernelTable& kernels;
  std::byte* const* values;  // by ValueId; null for SLOTS
  std::byte* const* slots;   // by Value::first_slot + slot; null where unused
  int64_t n_tokens, pos, n_slots;
  NeuronCounts& neurons;
  int64_t gather_below;  // percent of a piece's neurons: where fewer are alive, only their up rows are read

  template <class T>
  T* at(ValueId v) const {
    return reinterpret_cast<T*>(values[v]);
  }
};

struct EmbedStep {
  ValueId ids, table, y;
  DType type;
  int64_t width, vocab;
  uint64_t row_bytes;
};
struct NormStep {
  ValueId x, weight, y;
  int64_t width;
  float eps;
};
struct QuantizeStep {  // rows of x as Q8 rows: once for all the products that read x
  ValueId x, q8;
  int64_t width;
  bool fine;  // two Q8 rows for each row of x: x rounded, and what that leaves
};
struct MatmulPart {
  ValueId weight, bias, y, act;  // act: x itself, or its Q8 rows
  DType type;
  int64_t rows;
  uint64_t row_bytes, act_bytes;
  bool fine;         // act has two rows for each token, whose products are added
  bool interleaved;  // the weight is stored in panels of 16 rows (core/model/interleaved.h)
};
struct MatmulStep {  // every product of one x in one parallel loop: Q, K and V cost one barrier
  ValueId x;
  int64_t k;
  std::vector<MatmulPart> parts;
};
struct RopeTableStep {  // cosines and sines of this submit's positions, [N, half] each, shared by the ropes with the same parameters
  ValueId cosine, sine, factors;
  std::vector<double> frequency;  // base^(-2j/R)
  double base, position_scale;
};
struct RopeStep {
  ValueId x, y, cosine, sine;
  int64_t heads, head_dim, half;
  bool adjacent;
};
struct AttentionStep {
  ValueId q, k, v, k_cache, v_cache, y;
  bool paged;                 // the caches are SLOTS, pages of cells; else one STATE each: one page
  uint32_t k_pages, v_pages;  // Value::first_slot of each, when paged
  DType cache_type;
  int64_t heads, kv_heads, head_dim, window, cells, page_cells;
  float scale;
};
struct AddStep {
  ValueId a, b, y;
  int64_t width;
};
struct GluStep {
  ValueId gate, up, y;
  int64_t width;
  bool silu;
};
// How down is stored, attr[2] of EXPERTS.
enum class DownOrder : uint8_t { row_major, row_per_neuron, neuron_major };
struct ExpertsStep {
  ValueId x, slot_begin, rows, y;
  uint32_t gate, up, down;  // Value::first_slot of each
  ValueId gate_values;      // in place of the gates: their products; kNoValue: there are none
  DType gate_type, up_type, down_type;
  int64_t max_tokens, max_slots, width, ff, top_k;
  bool silu;
  DownOrder order;
  bool gate_interleaved;
  // Scratch. Row i of the packed areas belongs to rows[i], so that the rows of one slot are adjacent.
  ValueId place;    // i32[N*K]: where row r stands in rows[], or -1
  ValueId pending;  // i32[S]: a slot's items whose hidden values are still to come
  ValueId x_q8;     // for quantised gate or up
  ValueId x_f32;    // for the others
  ValueId hidden;   // Q8 rows of F values for a quantised down, but f32[F] for a row per neuron and for other types
  ValueId x_pairs;  // pair_q8 rows of the tokens, where live pairs of a batch are computed alone; else kNoValue
  ValueId lists;    // LiveGroup[N*K][F/32] of hidden, where down of a batch may be multiplied by live neurons; else kNoValue
  ValueId n_live;   // i64[S]: how many neurons the lists of a slot's rows hold; kNoValue without lists
};
struct ExpertGatesStep {
  ValueId x, slot_begin, rows, act, y;  // act: x itself, or its Q8 rows
  uint32_t gate;                        // Value::first_slot
  DType type;
  bool interleaved;
  int64_t max_tokens, max_slots, width, ff, top_k;
};
struct CombineStep {
  ValueId x, y, weights, out;
  int64_t width, top_k;
};

struct HeadScreenedStep {
  ValueId x, weight, plane, mean, act, y;
  DType type;
  int64_t width, rows, k;
  float z;
  uint64_t row_bytes, act_bytes;
  bool fine;
  ValueId input;  // scratch: x rotated and rounded; the best rows of every item; the rows that are tried first, with their products
};

using Step = std::variant<EmbedStep, NormStep, QuantizeStep, MatmulStep, RopeTableStep, RopeStep, AttentionStep, AddStep, GluStep,
                          ExpertsStep, ExpertGatesStep, CombineStep, HeadScreenedStep>;

// Run one step. They fail on what only a submit can show: an id out of range, a full cache, a malformed slot table.
Result<> run_step(const EmbedStep&, const Run&);
Result<> run_step(const NormStep&, const Run&);
Result<> run_step(const QuantizeStep&, const Run&);
Result<> run_step(const MatmulStep&, const Run&);
Result<> run_step(const RopeTableStep&, const Run&);
Result<> run_step(const RopeStep&, const Run&);
Result<> run_step(const AttentionStep&, const Run&);
Result<> run_step(const AddStep&, const Run&);
Result<> run_step(const GluStep&, const Run&);
Result<> run_step(const ExpertsStep&, const Run&);
Result<> run_step(const ExpertGatesStep&, const Run&);
Result<> run_step(const CombineStep&, const Run&);
Result<> run_step(const HeadScreenedStep&, const Run&);

struct SegmentPlan {
  std::string name;
  std::vector<Value> values;
  uint32_t n_tensors = 0;  // values[0 .. n_tensors) are the segment's
  std::vector<Step> steps;
  int64_t n_tokens = -1;    // the bucket, N
  uint32_t n_bindings = 0;  // at submit, the workspace not counted
  uint32_t n_slots = 0;     // length of Run::slots
  int64_t max_slots = 0;    // most that FTH_SCALAR_SLOTS may say
  uint64_t workspace_bytes = 0;
  double bytes = 0, flops = 0;  // of one run with every row in use and caches half full: weights, states and experts read
};

// invalid_argument: the segment contradicts itself. unimplemented: well formed, not supported here. Both name op, kind, tensor and numbers.
Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const KernelTable& kernels);

// "a", 3, 2.5 -> "a32.5": messages.
inline void append_text(std::string& s, std::string_view v) { s += v; }
template <class T>
requires std::is_arithmetic_v<T>
void append_text(std::string& s, T v) {
  if constexpr (std::is_floating_point_v<T>) {
    char number[32];
    s.append(number, static_cast<size_t>(std::snprintf(number, sizeof number, "%g", static_cast<double>(v))));
  } else {
    s += std::to_string(v);
  }
}
template <class... T>
std::string text(const T&... parts) {
  std::string s;
  (append_text(s, parts), ...);
  return s;
}

// body(i) for i in [0, n) on the host's pool; inline when there is one.
template <class F>
void parallel(const sdk::Host& host, int64_t n, const F& body) {
  if (n == 1) return body(uint32_t{0});
  if (n > 1) host.parallel_for(static_cast<uint32_t>(n), body);
}

// body(token) for the tokens of a submit, in chunks worth a thread's while: `values` is what one token reads.
template <class F>
void for_tokens(const Run& run, int64_t values, const F& body) {
  const int64_t grain = values >= 16384 ? 1 : 16384 / (values > 0 ? values : 1);
  const int64_t chunks = (run.n_tokens + grain - 1) / grain;
  parallel(run.host, chunks, [&](uint32_t i) {
    const int64_t begin = i * grain, end = begin + grain < run.n_tokens ? begin + grain : run.n_tokens;
    for (int64_t t = begin; t < end; ++t) body(t);
  });
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fth::cpu
