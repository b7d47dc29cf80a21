#pragma once
// A compiled segment: one command buffer, recorded once. What changes from submit to submit, addresses and scalars, is in a small buffer that the
// shaders read; a submit fills it and queues the commands.

#include "backends/vulkan/plan.h"

namespace fth::vulkan {

// Device memory, as the boundary hands it around. Freed before its device.
class Buffer {
 public:
  Buffer(Context& context, const Memory& memory, uint64_t bytes) : context_(context), memory_(memory), bytes_(bytes) {}
  ~Buffer() { context_.free(memory_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Result<> write(uint64_t offset, const void* src, uint64_t bytes);
  Result<> read(uint64_t offset, void* dst, uint64_t bytes);
  VkDeviceAddress address() const { return memory_.address; }
  uint64_t bytes() const { return bytes_; }

 private:
  Context& context_;
  Memory memory_;
  uint64_t bytes_;  // as asked for
};

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
  double device_seconds() const { return context_.seconds(timer_); }

 private:
  Executable(Context& context, SegmentPlan plan) : context_(context), plan_(std::move(plan)), event_(*this) {}
  Result<VkDeviceAddress> resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what, uint64_t index) const;
  Result<> bind_weights(std::span<const fth_binding> weights);
  Result<> make_own();
  Result<> dispatch(VkCommandBuffer commands, const Dispatch& d);
  Result<> record();
  void set_entry(uint32_t i, uint64_t value);

  Context& context_;
  SegmentPlan plan_;
  Memory params_, own_;
  VkCommandBuffer commands_ = VK_NULL_HANDLE;
  VkQueryPool timer_ = VK_NULL_HANDLE;
  uint64_t done_ = 0;  // on the timeline: the last run
  bool running_ = false;
  Event event_;
};

}  // namespace fth::vulkan
