#pragma once
// A segment, checked and turned into steps: what estimate() answers from and what an executable runs. An estimate that says yes is a compile that
// succeeds, and its workspace is exactly the one that the steps use.

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "backends/onednn/products.h"
#include "core/base/dtype.h"
#include "core/base/result.h"
#include "plugins/sdk/backend.h"
#include "plugins/sdk/ops.h"
#include "plugins/sdk/plan.h"

namespace fth::onednn {

using sdk::kNoValue;

// The tiles and products that a device has; outlives its plans.
struct Units {
  const TileTable& tiles;
  const Products* int8;  // null: f32 serves q4_0 and q8_0, too
  const Products& f32;
  uint32_t n_threads;
};

// A weight as products take it.
struct Matrix {
  uint32_t tensor = kNoValue;
  uint32_t first_slot = 0;  // SLOTS
  DType type = DType::f32;
  bool neuron_major = false, interleaved = false;
  int64_t rows = 0, k = 0;
  const Products* products = nullptr;

  WeightView view(const std::byte* data) const {
    return {data, static_cast<uint16_t>(type), neuron_major, interleaved, rows, k, neuron_major ? 0 : row_bytes(type, k)};
  }
};

// Columns packed into panels, for products on 8 bits or on f32: offsets into the scratch.
struct PackedArea {
  bool used = false;
  int64_t k = 0, groups = 0;
  uint64_t data = 0, scales = 0, sums = 0;
};

struct MatmulStep {
  uint32_t x, bias, y;
  Matrix w;
  PackedArea packed;
};
struct ExpertsStep {
  uint32_t x, slot_begin, rows, gate_values, y;  // gate_values: kNoValue for none
  Matrix gate, up, down;                         // gate.tensor is kNoValue with gate values; EXPERT_GATES has a gate alone
  bool gates_only, silu;
  int64_t slots, width, ff, top_k, unit;
  PackedArea x_int8, x_f32, hidden;
  int64_t max_rows;  // N * K
  uint64_t columns;  // i32 [slots + 1]: first column of a slot
  uint64_t seen;     // u8 [N * K]: a slot has the row
};
using Step = std::variant<MatmulStep, ExpertsStep>;

struct SegmentPlan {
  sdk::BindingRules rules;
  std::vector<sdk::Value> values;
  std::vector<uint32_t> first_slot;  // [tensor]; of SLOTS
  std::vector<int64_t> slot_count;   // [tensor]; 0 for others
  uint32_t n_slots = 0;
  int64_t max_slots = 0;
  std::vector<Step> steps;
  uint64_t scratch = 0;  // where the steps' scratch begins in the workspace
  double seconds = 0;
};

// invalid_argument: the segment contradicts itself. unimplemented: well formed, not supported here. Both name op, tensor and numbers.
Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Units& units);

// One submit as the steps see it.
struct Run {
  const sdk::Host& host;
  const Units& units;
  std::byte* const* values;  // [tensor]
  std::byte* const* slots;   // by SegmentPlan::first_slot + slot; null where unused
  std::byte* scratch;
  int64_t n_tokens, n_slots;

  template <class T>
  T* at(uint32_t value) const {
    return reinterpret_cast<T*>(values[value]);
  }
  template <class T>
  T* area(uint64_t offset) const {
    return reinterpret_cast<T*>(scratch + offset);
  }
};

// They fail on what only a submit can show: a malformed slot table; internal when oneDNN fails.
Result<> run_step(const MatmulStep&, const Run&);
Result<> run_step(const ExpertsStep&, const Run&);

}  // namespace fth::onednn
