#pragma once
// A segment, checked and turned into launches of kernels: what estimate() answers from and what compile() makes. One function serves both.

#include <string>
#include <vector>

#include "backends/opencl/context.h"

namespace fth::opencl {

// An argument of a kernel, in the order of its parameters.
struct Arg {
  enum class Kind : uint8_t {
    value,   // two parameters: the buffer of a value of the plan, and the offset in it
    u32,     // the number itself
    u64,     // the number itself
    f32,     // the bits of the number
    angles,  // the buffer of the ropes' frequencies
    status,  // the buffer of bad_row
    pos,     // scalars of the submit
    tokens
  } kind;
  uint64_t number = 0;
};

struct Launch {
  KernelName kernel;
  std::vector<Arg> args;
  uint64_t items = 1;    // along x, rounded up to whole work-groups
  uint32_t local = 1;    // work-items of a group, along x
  uint32_t columns = 1;  // tokens of a group, along y
};

struct SegmentPlan {
  sdk::BindingRules rules;
  std::vector<sdk::Value> values;  // the segment's tensors, then scratch
  std::vector<Launch> launches;
  sdk::RopeTables ropes;
  bool has_status = false;
  double bytes = 0, flops = 0;  // of one run with every row in use

  uint64_t resident_bytes() const { return 8 * uint64_t{ropes.n_entries} + (has_status ? 4 : 0); }
};

inline constexpr uint64_t kWorkspaceAlignment = 64;

// unimplemented with a reason for what the kernels do not do; invalid_argument for what no backend can.
Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, const Limits& limits);

}  // namespace fth::opencl
