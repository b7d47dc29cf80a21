#pragma once
// A segment, checked and turned into dispatches: what estimate() answers from and what compile() records. One function serves both, so an estimate
// that says yes is a compile that succeeds.

#include <string>
#include <vector>

#include "backends/vulkan/context.h"
#include "core/base/bytes.h"
#include "plugins/sdk/plan.h"

namespace fth::vulkan {

inline constexpr uint32_t kThreads = 128;  // of the shaders whose local size does not depend on the device
inline constexpr uint64_t kWorkspaceAlignment = 16;

struct Dispatch {
  Shader shader;
  Constants constants{};
  std::vector<uint32_t> push;  // the words after the address of Params
  uint64_t groups_x = 1;       // folded into z where the device limits x
  uint32_t groups_y = 1;
  std::vector<uint32_t> reads, writes;  // values
};

// A value behind the segment's own that the executable keeps: made from weights, read by dispatches.
inline constexpr uint16_t kOwnRole = 0xffff;

struct SegmentPlan {
  sdk::BindingRules rules;
  std::vector<sdk::Value> values;  // the tensors; the address of each is the entry of Params with its index
  std::vector<Dispatch> dispatches;
  std::vector<Dispatch> once;   // at compile, in front of the first run: fill the values of role kOwnRole
  sdk::RopeTables ropes;        // their frequencies are entries behind the addresses
  double bytes = 0, flops = 0;  // of one run with every row in use
  double coop_flops = 0;        // beside `flops`: of products in cooperative matrices

  uint64_t own_bytes() const {
    uint64_t sum = 0;
    for (const sdk::Value& v : values) sum += v.role == kOwnRole ? align_up(v.bytes, kWorkspaceAlignment) : 0;
    return sum;
  }
  uint64_t params_bytes() const { return 16 + 8 * (values.size() + ropes.n_entries); }
};

// unimplemented with a reason for what the shaders do not do; invalid_argument for what no backend can.
Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Limits& limits);

}  // namespace fth::vulkan
