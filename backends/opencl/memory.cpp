// Buffers of a device, in its own memory or in the host's.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/opencl/context.h"

namespace fth::opencl {
namespace {

constexpr uint64_t kPage = 4096;

}  // namespace

Buffer::~Buffer() { context_.freed(counted_); }

Result<> Buffer::write(uint64_t offset, const void* src, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
  if (bytes == 0) return {};
  if (host_) {
    std::memcpy(host_ + offset, src, bytes);
    return {};
  }
  return check_run(clEnqueueWriteBuffer(context_.queue(), memory_.get(), CL_TRUE, base_ + offset, bytes, src, 0, nullptr, nullptr),
                   text(context_.label(), ": clEnqueueWriteBuffer"));
}

Result<> Buffer::read(uint64_t offset, void* dst, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
  if (bytes == 0) return {};
  if (host_) {
    std::memcpy(dst, host_ + offset, bytes);
    return {};
  }
  return check_run(clEnqueueReadBuffer(context_.queue(), memory_.get(), CL_TRUE, base_ + offset, bytes, dst, 0, nullptr, nullptr),
                   text(context_.label(), ": clEnqueueReadBuffer"));
}

// A buffer over the pages that p lies in: drivers work in place only in memory that starts at a boundary, and the rest of a page is mapped whenever p is.
// The kernels get the distance as an offset.
Result<std::unique_ptr<Buffer>> Context::wrap(std::byte* p, uint64_t bytes, std::unique_ptr<std::byte, Buffer::Free> own,
                                              uint64_t counted) {
  const uint64_t base = reinterpret_cast<uintptr_t>(p) % kPage;
  const uint64_t size = align_up(base + std::max<uint64_t>(bytes, 1), 64);
  if (size > limits_.max_buffer)
    return fail(Code::resource_exhausted,
                text(label_, ": a buffer of ", format_bytes(bytes), ": the device allows ", format_bytes(limits_.max_buffer)));
  cl_int error = CL_SUCCESS;
  MemHandle memory(clCreateBuffer(context_.get(), CL_MEM_READ_WRITE | CL_MEM_USE_HOST_PTR, size, p - base, &error));
  FTH_RETURN_IF_ERROR(check(error, text(label_, ": clCreateBuffer of ", format_bytes(bytes), " in the host's memory")));
  allocated_ += counted;
  return std::make_unique<Buffer>(*this, std::move(memory), base, bytes, p, std::move(own), counted);
}

Result<std::unique_ptr<Buffer>> Context::import(void* p, uint64_t bytes) {
  if (!in_host_memory_)
    return fail(Code::unimplemented, text(label_, ": ", bytes, " bytes of the host's memory: this device keeps copies"));
  if ((p == nullptr && bytes > 0) || reinterpret_cast<uintptr_t>(p) % 4 != 0)
    return fail(Code::invalid_argument, text(label_, ": import of memory that is null or does not start at a multiple of 4"));
  if (p == nullptr) return allocate(0);
  return wrap(static_cast<std::byte*>(p), bytes, nullptr, 0);
}

Result<std::unique_ptr<Buffer>> Context::allocate(uint64_t bytes) {
  if (bytes > limits_.max_buffer || align_up(std::max<uint64_t>(bytes, 1), kPage) > limits_.max_buffer)
    return fail(Code::resource_exhausted,
                text(label_, ": a buffer of ", format_bytes(bytes), ": the device allows ", format_bytes(limits_.max_buffer)));
  const uint64_t size = align_up(std::max<uint64_t>(bytes, 1), 64);
  const std::string title = text(label_, ": a buffer of ", format_bytes(bytes), " with ", format_bytes(free_bytes()), " free");
  if (in_host_memory_) {
    std::unique_ptr<std::byte, Buffer::Free> own(static_cast<std::byte*>(std::aligned_alloc(kPage, align_up(size, kPage))));
    if (!own) return fail(Code::resource_exhausted, text(title, ": out of memory"));
    std::byte* const p = own.get();
    return wrap(p, bytes, std::move(own), size);
  }
  cl_int error = CL_SUCCESS;
  MemHandle memory(clCreateBuffer(context_.get(), CL_MEM_READ_WRITE, size, nullptr, &error));
  FTH_RETURN_IF_ERROR(check(error, text(title, ": clCreateBuffer")));
  // Drivers take memory at the first use; then it would be the run that fails.
  const cl_mem used = memory.get();
  const cl_int moved = clEnqueueMigrateMemObjects(queue_.get(), 1, &used, CL_MIGRATE_MEM_OBJECT_CONTENT_UNDEFINED, 0, nullptr, nullptr);
  FTH_RETURN_IF_ERROR(check(moved == CL_SUCCESS ? clFinish(queue_.get()) : moved, text(title, ": clEnqueueMigrateMemObjects")));
  allocated_ += size;
  return std::make_unique<Buffer>(*this, std::move(memory), 0, bytes, nullptr, nullptr, size);
}

// A device that says it shares the host's memory may still copy it around a run, within the letter of the specification. Two fills, of which the device
// and the host must each see the other's without a map between them.
Result<> Context::check_host_memory() {
  in_host_memory_ = true;  // for allocate
  FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> buffer, allocate(2 * kPage));
  in_host_memory_ = false;
  const cl_uint ours = 0x1234567u, theirs = 0x89abcdeu;
  cl_uint seen = 0, seen_by_device = 0;
  FTH_RETURN_IF_ERROR(check_run(clEnqueueFillBuffer(queue_.get(), buffer->memory(), &theirs, sizeof theirs, 64, 64, 0, nullptr, nullptr),
                                text(label_, ": clEnqueueFillBuffer")));
  FTH_RETURN_IF_ERROR(check_run(clFinish(queue_.get()), text(label_, ": clFinish")));
  FTH_RETURN_IF_ERROR(buffer->read(64, &seen, sizeof seen));
  FTH_RETURN_IF_ERROR(buffer->write(128, &ours, sizeof ours));
  FTH_RETURN_IF_ERROR(check_run(
      clEnqueueReadBuffer(queue_.get(), buffer->memory(), CL_TRUE, 128, sizeof seen_by_device, &seen_by_device, 0, nullptr, nullptr),
      text(label_, ": clEnqueueReadBuffer")));
  in_host_memory_ = seen == theirs && seen_by_device == ours;
  return {};
}

uint64_t Context::free_bytes() const {
  const uint64_t all = device_value<cl_ulong>(device_, CL_DEVICE_GLOBAL_MEM_SIZE, 0);
  uint64_t free = all - std::min(all, allocated_);
  // AMD's own query, in KiB: all of it, and the largest piece.
  constexpr cl_device_info kFreeMemoryAmd = 0x4039;
  struct FreeMemory {
    size_t total, largest;
  };
  if (extensions_.find("cl_amd_device_attribute_query") != std::string::npos) {
    const auto amd = device_value<FreeMemory>(device_, kFreeMemoryAmd, {0, 0});
    if (amd.total > 0) free = std::min<uint64_t>(all, amd.total * kKiB);
  }
  return free;
}

}  // namespace fth::opencl
