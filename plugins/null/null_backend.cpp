// The template backend: one device that holds memory for real and runs no op. README.md beside it is the porting recipe; a new backend starts
// as a copy of this folder.

#include <cstring>
#include <new>

#include "plugins/sdk/backend.h"

namespace fth::null {
namespace {

struct NullBackend {
  static constexpr const char* kName = "null";

  // A device that finishes inside submit has nothing to wait for; one with a queue keeps its fence here.
  class Event {
   public:
    Result<> wait() { return {}; }
  };

  // Host memory, either its own or the caller's.
  class Buffer {
   public:
    explicit Buffer(std::unique_ptr<std::byte[]> owned, std::byte* p, uint64_t bytes) : owned_(std::move(owned)), p_(p), bytes_(bytes) {}
    Result<> write(uint64_t offset, const void* src, uint64_t bytes) {
      FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
      if (bytes > 0) std::memcpy(p_ + offset, src, bytes);
      return {};
    }
    Result<> read(uint64_t offset, void* dst, uint64_t bytes) {
      FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
      if (bytes > 0) std::memcpy(dst, p_ + offset, bytes);
      return {};
    }

   private:
    std::unique_ptr<std::byte[]> owned_;
    std::byte* p_;
    uint64_t bytes_;
  };

  // What compile would make. compile refuses whatever estimate refuses, so no object of it exists here.
  class Executable {
   public:
    Result<Event*> submit(std::span<const fth_binding> bindings, const int64_t*) {
      return fail(Code::unimplemented, "null: submit of " + std::to_string(bindings.size()) + " bindings: this device runs nothing");
    }
  };

  class Device {
   public:
    Result<fth_device_info> info() {
      fth_device_info info{};
      info.kind = FTH_KIND_CPU;
      info.flags = FTH_DEVICE_HOST_MEMORY | FTH_DEVICE_SOFTWARE;
      std::snprintf(info.name, sizeof info.name, "null:0");
      std::snprintf(info.description, sizeof info.description, "the template backend: host memory, no op");
      info.alignment = kAlignment;
      return info;  // memory and speeds stay 0: not known
    }

    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) {
      std::unique_ptr<std::byte[]> owned(new (std::nothrow) std::byte[bytes > 0 ? bytes : 1]);
      if (!owned) return fail(Code::resource_exhausted, "null:0: alloc of " + format_bytes(bytes) + ": out of memory");
      std::byte* const p = owned.get();
      return std::make_unique<Buffer>(std::move(owned), p, bytes);
    }
    Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes) {
      if (p == nullptr && bytes > 0) return fail(Code::invalid_argument, "null:0: import of a null pointer");
      return std::make_unique<Buffer>(nullptr, static_cast<std::byte*>(p), bytes);
    }

    // Names the op, the tensor and the number: the refusal is what `forethought plan` prints.
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) {
      if (segment.ops().empty()) return fail(Code::unimplemented, std::string(segment.name()) + ": no ops, nothing to estimate");
      const fth_op& op = segment.ops()[0];
      return fail(Code::unimplemented, std::string(segment.name()) + ": op 0 (" + std::string(sdk::op_name(op.kind)) + ") to tensor " +
                                           std::to_string(op.out[0]) + " " + sdk::describe(segment.out(op, 0)) + ": null runs no op");
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding>) {
      return tl::unexpected<Error>(estimate(segment).error().context("compile"));
    }

   private:
    static constexpr uint64_t kAlignment = alignof(std::max_align_t);
  };

  static Result<uint32_t> device_count(sdk::Host) { return 1u; }

  static Result<std::unique_ptr<Device>> open(sdk::Host, uint32_t index, sdk::Options&) {
    if (index != 0) return fail(Code::not_found, "null: device " + std::to_string(index) + " of 1");
    return std::make_unique<Device>();
  }
};

}  // namespace
}  // namespace fth::null

FTH_EXPORT_BACKEND(fth::sdk::query<fth::null::NullBackend>)
