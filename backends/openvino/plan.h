#pragma once
// A segment, checked and laid out as one graph: what estimate() answers from and what compile() builds. Needs nothing of OpenVINO, so that planning does
// not load it.

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "plugins/sdk/plan.h"

namespace fth::openvino {

// How quantised weights enter the graph. compressed: 4- and 8-bit integers with a scale per 32 values where the file's format is that (q4_0, q8_0), f32
// otherwise; f16 and f32: unpacked.
enum class WeightForm { compressed, f16, f32 };

using Op = std::variant<sdk::RmsNormOp, sdk::MatmulOp, sdk::RopeOp, sdk::AttentionOp, sdk::ElementwiseOp, sdk::CombineOp>;

// An input or output of the graph.
struct Port {
  enum class Kind : uint8_t {
    rows,     // INPUT, OUTPUT: rows of a tensor of the segment, copied through the workspace
    state,    // STATE: bound where it lies, [C, G*D]
    visible,  // which cells, then which rows of this submit, each row attends to: bool [N, C + N]
    written,  // which cells hold a position: bool [C, 1]
    cosine,   // of the angles of a rope table, f32 [N, 1, R/2]
    sine,
    cells  // rows of k or v as the cache will hold them, [N, G*D]; wait() puts them there
  } kind;
  uint32_t value = 0;  // the tensor of the segment; cells: the STATE that they go to
  uint32_t item = 0;   // visible, written: the op; cosine, sine: the rope table
  DType type = DType::f32;
  std::vector<int64_t> shape;
  uint64_t bytes = 0;
  uint64_t offset = 0;  // in the workspace; unused for state
};

struct GraphPlan {
  sdk::BindingRules rules;
  std::vector<fth_tensor> tensors;
  std::vector<sdk::Value> values;  // of the tensors
  std::vector<Op> ops;
  sdk::RopeTables ropes;
  std::vector<Port> inputs, outputs;
  double bytes = 0, flops = 0;  // of one run with every row in use
  uint64_t resident_bytes = 0;
};

inline constexpr uint64_t kWorkspaceAlignment = 64;

// unimplemented with a reason for what the graphs do not hold; invalid_argument for what no backend can.
Result<GraphPlan> plan_segment(const sdk::SegmentView& segment, WeightForm form);

// Bytes of a weight matrix in the graph.
uint64_t graph_bytes(const fth_tensor& t, WeightForm form);

}  // namespace fth::openvino
