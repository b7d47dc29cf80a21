#pragma once
// One open device: what it says of itself, its clock, its memory. All of a device's objects are made and freed while its Context lives. One thread at a
// time, as the boundary promises.

#include <array>

#include "backends/cuda/gpu.h"
#include "plugins/sdk/plan.h"

namespace fth::cuda {

using sdk::text;

// Options of open(), see docs/cuda.md.
struct Settings {
  bool measure = false;  // time the emulation as well
  double bytes_per_second = 0, flops_per_second = 0;
};

class Context;

// Memory of the device. Freed before its device.
class Buffer {
 public:
  Buffer(Context& context, std::byte* memory, uint64_t bytes) : context_(context), memory_(memory), bytes_(bytes) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  // Behind all that was queued before. write returns when src is no longer needed, the copy then being queued; read when dst is there.
  Result<> write(uint64_t offset, const void* src, uint64_t bytes);
  Result<> read(uint64_t offset, void* dst, uint64_t bytes);
  std::byte* memory() const { return memory_; }  // a multiple of 256
  uint64_t bytes() const { return bytes_; }

 private:
  Context& context_;
  std::byte* memory_;
  uint64_t bytes_;
};

// A mark of the queue, owned.
class OwnMark {
 public:
  static Result<OwnMark> make(Gpu& gpu, MarkKind kind = MarkKind::plain) {
    FTH_ASSIGN_OR_RETURN(const Mark mark, gpu.make_mark(kind));
    return OwnMark(gpu, mark);
  }
  OwnMark() = default;
  OwnMark(OwnMark&& other) noexcept : gpu_(std::exchange(other.gpu_, nullptr)), mark_(other.mark_) {}
  OwnMark& operator=(OwnMark&& other) noexcept {
    std::swap(gpu_, other.gpu_);
    std::swap(mark_, other.mark_);
    return *this;
  }
  ~OwnMark() {
    if (gpu_) gpu_->release(mark_);
  }
  Mark get() const { return mark_; }

 private:
  OwnMark(Gpu& gpu, Mark mark) : gpu_(&gpu), mark_(mark) {}
  Gpu* gpu_ = nullptr;
  Mark mark_ = nullptr;
};

class Context {
 public:
  // not_found beyond the last device, unimplemented for one that is too old.
  static Result<std::unique_ptr<Context>> open(sdk::Host host, uint32_t index, const Settings& settings);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Gpu& gpu() { return *gpu_; }
  const std::string& label() const { return label_; }  // "cuda:0"
  Result<fth_device_info> info() const;
  uint64_t memory_bytes() const { return gpu_->facts().memory_bytes; }
  double bytes_per_second() const { return bytes_per_second_; }
  double flops_per_second() const { return flops_per_second_; }
  double launch_seconds() const { return launch_seconds_; }
  double dispatch_seconds() const { return dispatch_seconds_; }

  Result<std::unique_ptr<Buffer>> allocate(uint64_t bytes);
  Result<> write(std::byte* dst, const std::byte* src, uint64_t bytes);
  Result<> read(std::byte* dst, const std::byte* src, uint64_t bytes);

  // The error with the device's name in front.
  template <class T>
  Result<T> named(Result<T> r) const {
    if (r) return r;
    return tl::unexpected<Error>(std::move(r).error().context(label_));
  }

 private:
  Context(std::unique_ptr<Gpu> gpu, Settings settings, std::string label)
      : gpu_(std::move(gpu)), settings_(settings), label_(std::move(label)) {}
  Result<> make_staging();
  Result<> measure();

  // Locked memory that copies go through, a piece each: a write needs to wait only for the copy that used its piece before.
  static constexpr size_t kPieces = 4;
  struct Staging {
    std::byte* memory = nullptr;
    std::array<OwnMark, kPieces> used;
    size_t next = 0;
  };

  std::unique_ptr<Gpu> gpu_;
  Settings settings_;
  std::string label_;
  Staging staging_;
  double bytes_per_second_ = 0, flops_per_second_ = 0, dispatch_seconds_ = 0, launch_seconds_ = 0;
};

}  // namespace fth::cuda
