#pragma once
// OpenCL's C functions with errors as values and owned handles.

#define CL_TARGET_OPENCL_VERSION 300
#define CL_USE_DEPRECATED_OPENCL_1_2_APIS  // clCreateCommandQueue: the call that replaces it is missing from drivers of 1.2
#include <CL/cl.h>
#include <CL/cl_ext.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/result.h"
#include "plugins/sdk/text.h"

namespace fth::opencl {

using sdk::text;

// Ok, or `what` with the name and number of the error. Out of memory is resource_exhausted; no platform and no device unavailable. A kernel that
// ended for want of resources is a device that was lost (check_run): unavailable too.
Result<> check(cl_int error, std::string_view what);
Result<> check_run(cl_int error, std::string_view what);

template <class T, cl_int(CL_API_CALL* kRelease)(T)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T handle) : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Handle() {
    if (handle_) kRelease(handle_);
  }
  T get() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  T handle_ = nullptr;
};
using ContextHandle = Handle<cl_context, &clReleaseContext>;
using QueueHandle = Handle<cl_command_queue, &clReleaseCommandQueue>;
using MemHandle = Handle<cl_mem, &clReleaseMemObject>;
using ProgramHandle = Handle<cl_program, &clReleaseProgram>;
using KernelHandle = Handle<cl_kernel, &clReleaseKernel>;
using EventHandle = Handle<cl_event, &clReleaseEvent>;

// What a kernel's parameter is set to, by its bytes; `name` is of the kernel.
template <class T>
Result<> set_argument(cl_kernel kernel, cl_uint index, const T& value, std::string_view name) {
  return check(clSetKernelArg(kernel, index, std::span(&value, 1).size_bytes(), &value), text("clSetKernelArg ", index, " of ", name));
}

struct FoundDevice {
  cl_platform_id platform = nullptr;
  cl_device_id device = nullptr;
};
// Of every platform, in the loader's order. unavailable: no platform at all.
Result<std::vector<FoundDevice>> find_devices();

std::string platform_text(cl_platform_id platform, cl_platform_info what);
// Empty where the driver does not know `what`.
std::string device_text(cl_device_id device, cl_device_info what);
// `otherwise` where the driver does not know `what`, or answers in another size.
template <class T>
T device_value(cl_device_id device, cl_device_info what, T otherwise) {
  T value = otherwise;
  size_t bytes = 0;
  if (clGetDeviceInfo(device, what, sizeof value, &value, &bytes) != CL_SUCCESS || bytes != sizeof value) return otherwise;
  return value;
}

}  // namespace fth::opencl
