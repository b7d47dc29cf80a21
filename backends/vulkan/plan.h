#pragma once
// A segment, checked and turned into dispatches: what estimate() answers from and what compile() records. One function serves both, so an estimate
// that says yes is a compile that succeeds.

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "plugins/vulkan/context.h"

namespace fth::vulkan {

// A tensor of the segment. Its address is entry `index` of Params.
struct Value {
  uint16_t role = FTH_ROLE_TEMP;
  uint64_t bytes = 0;
  uint64_t alignment = 4;  // of its address
  // TEMP: the dispatches it lives through, both ends included, and its place in the workspace.
  uint32_t first = 0xffffffffu, last = 0;
  uint64_t offset = 0;
};

struct Dispatch {
  Shader shader;
  Constants constants{};
  std::vector<uint32_t> push;  // the words after the address of Params
  uint64_t groups_x = 1;       // folded into z where the device limits x
  uint32_t groups_y = 1;
  std::vector<uint32_t> reads, writes;  // values
};

// The frequencies of a ROPE, as constants behind the addresses: turns per position times 2^64.
struct RopeTable {
  uint32_t factors = 0xffffffffu;  // value of a WEIGHT, or none
  uint32_t first = 0;              // constant of the first
  int64_t half = 0;
  double base = 0, scale = 0;
};

struct SegmentPlan {
  std::string name;
  std::vector<Value> values;
  std::vector<Dispatch> dispatches;
  std::vector<RopeTable> ropes;
  uint32_t n_constants = 0;
  int64_t n_tokens = -1;               // the bucket
  uint32_t n_bindings = 0;             // at submit, the workspace not counted
  int64_t max_end = int64_t{1} << 31;  // positions end here: a full cache without a window, or 31 bits
  uint64_t workspace_bytes = 0;
  double bytes = 0, flops = 0;  // of one run with every row in use

  uint64_t params_bytes() const { return 16 + 8 * (values.size() + n_constants); }
};

inline constexpr uint32_t kThreads = 128;  // of the shaders whose local size does not depend on the device
inline constexpr uint64_t kWorkspaceAlignment = 16;

// unimplemented with a reason for what the shaders do not do; invalid_argument for what no backend can.
Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Limits& limits);

}  // namespace fth::vulkan
