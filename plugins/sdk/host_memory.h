#pragma once
// What a device needs that works in the host's memory and runs a submit to its end: buffers of its own or over the host's memory, and an event that is
// always done.

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "core/base/bytes.h"
#include "core/base/result.h"
#include "plugins/sdk/backend.h"
#include "plugins/sdk/text.h"

#pragma GCC visibility push(hidden)
namespace fth::sdk {

class DoneEvent {
 public:
  Result<> wait() { return {}; }
};

class HostBuffer {
 public:
  static constexpr uint64_t kAlignment = 64;

  // `backend` is who says so in messages. resource_exhausted without memory. alignment: a power of two, at most a page. Large ones begin at a huge page and ask for such pages: without them a scan of
  // weights spends a tenth of its time on address translation.
  static Result<std::unique_ptr<HostBuffer>> allocate(std::string_view backend, uint64_t bytes, uint64_t alignment = kAlignment) {
    constexpr uint64_t kHugePage = 2 << 20;
    const bool huge = bytes >= kHugePage;
    void* p = nullptr;
    if (bytes > (uint64_t{1} << 56) || posix_memalign(&p, huge ? kHugePage : alignment, std::max<uint64_t>(bytes, 1)) != 0)
      return fail(Code::resource_exhausted, text(backend, ": out of memory for a buffer of ", format_bytes(bytes)));
    if (huge) (void)madvise(p, bytes, MADV_HUGEPAGE);  // advice: refused is fine
    auto* const data = static_cast<std::byte*>(p);
    return std::unique_ptr<HostBuffer>(new HostBuffer(std::unique_ptr<std::byte, Free>(data), data, bytes));
  }
  // invalid_argument for null and for memory that does not start at a multiple of `alignment`.
  static Result<std::unique_ptr<HostBuffer>> import(std::string_view backend, void* p, uint64_t bytes, uint64_t alignment = 1) {
    if (p == nullptr) return fail(Code::invalid_argument, text(backend, ": import_host of a null pointer"));
    if (reinterpret_cast<uintptr_t>(p) % alignment != 0)
      return fail(Code::invalid_argument, text(backend, ": import_host of memory that does not start at a multiple of ", alignment));
    return std::unique_ptr<HostBuffer>(new HostBuffer(nullptr, static_cast<std::byte*>(p), bytes));
  }
  Result<> write(uint64_t offset, const void* src, uint64_t bytes) {
    FTH_RETURN_IF_ERROR(check_range(offset, bytes, bytes_));
    if (bytes > 0) std::memcpy(data_ + offset, src, bytes);
    return {};
  }
  Result<> read(uint64_t offset, void* dst, uint64_t bytes) {
    FTH_RETURN_IF_ERROR(check_range(offset, bytes, bytes_));
    if (bytes > 0) std::memcpy(dst, data_ + offset, bytes);
    return {};
  }
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  HostBuffer(std::unique_ptr<std::byte, Free> own, std::byte* data, uint64_t bytes) : own_(std::move(own)), data_(data), bytes_(bytes) {}

  std::unique_ptr<std::byte, Free> own_;  // null for the host's memory
  std::byte* data_;
  uint64_t bytes_;
};

}  // namespace fth::sdk
#pragma GCC visibility pop
