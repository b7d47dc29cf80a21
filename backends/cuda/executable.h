#pragma once
// A compiled segment: its launches with all parameters set that do not change. A submit sets the others and queues the launches in order; nothing of it
// waits. Launches of a submit are not kept as a CUDA graph: positions, rows and grids change with each token, and would have to be set in it one by one.

#include "backends/cuda/context.h"
#include "backends/cuda/plan.h"

namespace fth::cuda {

class Executable;
using Event = sdk::RunEvent<Executable>;

class Executable {
 public:
  static Result<std::unique_ptr<Executable>> make(Context& context, SegmentPlan plan, std::span<const fth_binding> weights);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;
  // failed_precondition while the last run has not been waited for.
  Result<Event*> submit(std::span<const fth_binding> bindings, const int64_t* scalars);
  Result<> wait();
  // Of the last run, from the start of its first launch to the end of its last; negative before there is one, while one is under way, and after one that failed.
  double device_seconds() const;

 private:
  Executable(Context& context, SegmentPlan plan) : context_(context), plan_(std::move(plan)), event_(*this) {}
  Result<> bind_weights(std::span<const fth_binding> weights);
  Result<> enqueue(uint32_t pos, uint32_t tokens);
  Result<std::byte*> resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what, uint64_t index) const;
  std::byte* place(const Operand& o) const;

  Context& context_;
  SegmentPlan plan_;
  std::vector<Params> params_;      // of each launch
  std::vector<std::byte*> places_;  // of each value
  std::unique_ptr<Buffer> frequencies_, status_;
  OwnMark begun_, done_;
  bool running_ = false, timed_ = false;  // timed: both marks are of a run that was waited for
  Event event_;
};

}  // namespace fth::cuda
