#pragma once
// A compiled segment: a kernel object for each launch, with all arguments set that do not change. A submit sets the others and queues the launches in
// order; nothing of it waits.

#include "backends/opencl/plan.h"

namespace fth::opencl {

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
  double device_seconds() const { return seconds_; }

 private:
  Executable(Context& context, SegmentPlan plan) : context_(context), plan_(std::move(plan)), event_(*this) {}
  Result<> bind_weights(std::span<const fth_binding> weights);
  Result<> set_arguments(bool constant, uint32_t pos, uint32_t tokens);
  Result<> enqueue(uint32_t tokens);
  // Where a value is now: its buffer and the offset in it.
  struct Place {
    cl_mem memory = nullptr;
    cl_ulong offset = 0;
  };
  Result<Place> resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what, uint64_t index) const;

  Context& context_;
  SegmentPlan plan_;
  std::vector<KernelHandle> kernels_;  // of each launch
  std::vector<Place> places_;          // of each value
  std::unique_ptr<Buffer> angles_, status_;
  EventHandle first_, done_;  // of the first launch and the last; null while nothing runs
  double seconds_ = -1;       // of the last run, by the device's clock
  bool running_ = false;
  Event event_;
};

}  // namespace fth::opencl
