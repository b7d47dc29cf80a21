#pragma once
// A segment, checked and turned into launches of kernels: what estimate() answers from and what compile() makes. One function serves both.

#include <optional>
#include <vector>

#include "backends/cuda/gpu.h"
#include "backends/cuda/kernels/all.h"
#include "plugins/sdk/plan.h"

namespace fth::cuda {

inline constexpr uint64_t kAlignment = 16;  // of weights, workspaces and what products read: the kernels load 16 bytes at once

// A tensor of a kernel: a value of the plan, or a table that the executable keeps.
struct Operand {
  enum class Kind : uint8_t { value, frequencies, status } kind = Kind::value;
  uint32_t value = 0;
};

struct Launch {
  KernelId kernel;
  uint32_t x = 1;        // blocks along x
  uint32_t columns = 1;  // tokens of a block, along y
  std::vector<Operand> tensors;
  std::vector<uint64_t> numbers;  // each below 2^32
  float real = 0;
  std::optional<uint32_t> window{};  // x counts for each tile of positions that a single row sees through this window
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

// most: bytes of a tensor. unimplemented with a reason for what the kernels do not do; invalid_argument for what no backend can.
Result<SegmentPlan> plan_segment(const sdk::SegmentView& segment, uint64_t most);

}  // namespace fth::cuda
