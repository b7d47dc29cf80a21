// Names of errors, and the list of devices.

#include "backends/opencl/api.h"

#include <algorithm>

namespace fth::opencl {
namespace {

const char* name(cl_int e) {
  switch (e) {
#define FTH_CL_NAME(error) \
  case error: return #error;
    FTH_CL_NAME(CL_DEVICE_NOT_FOUND)
    FTH_CL_NAME(CL_DEVICE_NOT_AVAILABLE)
    FTH_CL_NAME(CL_COMPILER_NOT_AVAILABLE)
    FTH_CL_NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE)
    FTH_CL_NAME(CL_OUT_OF_RESOURCES)
    FTH_CL_NAME(CL_OUT_OF_HOST_MEMORY)
    FTH_CL_NAME(CL_BUILD_PROGRAM_FAILURE)
    FTH_CL_NAME(CL_MAP_FAILURE)
    FTH_CL_NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST)
    FTH_CL_NAME(CL_INVALID_VALUE)
    FTH_CL_NAME(CL_INVALID_DEVICE)
    FTH_CL_NAME(CL_INVALID_CONTEXT)
    FTH_CL_NAME(CL_INVALID_COMMAND_QUEUE)
    FTH_CL_NAME(CL_INVALID_HOST_PTR)
    FTH_CL_NAME(CL_INVALID_MEM_OBJECT)
    FTH_CL_NAME(CL_INVALID_BINARY)
    FTH_CL_NAME(CL_INVALID_BUILD_OPTIONS)
    FTH_CL_NAME(CL_INVALID_PROGRAM)
    FTH_CL_NAME(CL_INVALID_PROGRAM_EXECUTABLE)
    FTH_CL_NAME(CL_INVALID_KERNEL_NAME)
    FTH_CL_NAME(CL_INVALID_KERNEL)
    FTH_CL_NAME(CL_INVALID_ARG_INDEX)
    FTH_CL_NAME(CL_INVALID_ARG_VALUE)
    FTH_CL_NAME(CL_INVALID_ARG_SIZE)
    FTH_CL_NAME(CL_INVALID_KERNEL_ARGS)
    FTH_CL_NAME(CL_INVALID_WORK_GROUP_SIZE)
    FTH_CL_NAME(CL_INVALID_GLOBAL_WORK_SIZE)
    FTH_CL_NAME(CL_INVALID_EVENT)
    FTH_CL_NAME(CL_INVALID_OPERATION)
    FTH_CL_NAME(CL_INVALID_BUFFER_SIZE)
    FTH_CL_NAME(CL_PLATFORM_NOT_FOUND_KHR)
#undef FTH_CL_NAME
    default: return "error";
  }
}

Code code_of(cl_int e) {
  switch (e) {
    case CL_MEM_OBJECT_ALLOCATION_FAILURE:
    case CL_OUT_OF_RESOURCES:
    case CL_OUT_OF_HOST_MEMORY:
    case CL_INVALID_BUFFER_SIZE: return Code::resource_exhausted;
    case CL_DEVICE_NOT_FOUND:
    case CL_DEVICE_NOT_AVAILABLE:
    case CL_COMPILER_NOT_AVAILABLE:
    case CL_PLATFORM_NOT_FOUND_KHR: return Code::unavailable;
    default: return Code::internal;
  }
}

template <class Query>
std::string text_of(const Query& query) {
  size_t bytes = 0;
  if (query(0, nullptr, &bytes) != CL_SUCCESS || bytes == 0) return {};
  std::string s(bytes, '\0');
  if (query(bytes, s.data(), nullptr) != CL_SUCCESS) return {};
  s.resize(s.find('\0') == std::string::npos ? bytes : s.find('\0'));
  return s;
}

}  // namespace

Result<> check(cl_int error, std::string_view what) {
  if (error == CL_SUCCESS) return {};
  return fail(code_of(error), text("opencl: ", what, ": ", name(error), " (", error, ")"));
}

Result<> check_run(cl_int error, std::string_view what) {
  if (error != CL_OUT_OF_RESOURCES && error != CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST) return check(error, what);
  return fail(Code::unavailable, text("opencl: ", what, ": ", name(error), " (", error, "): the device was lost"));
}

Result<std::vector<FoundDevice>> find_devices() {
  constexpr cl_uint kMost = 256;
  cl_uint n = 0;
  const cl_int listed = clGetPlatformIDs(0, nullptr, &n);
  if (listed == CL_PLATFORM_NOT_FOUND_KHR || (listed == CL_SUCCESS && n == 0))
    return fail(Code::unavailable, "opencl: no driver: the loader knows no platform");
  FTH_RETURN_IF_ERROR(check(listed, "clGetPlatformIDs"));
  std::vector<cl_platform_id> platforms(std::min(n, kMost));
  FTH_RETURN_IF_ERROR(check(clGetPlatformIDs(static_cast<cl_uint>(platforms.size()), platforms.data(), nullptr), "clGetPlatformIDs"));
  std::vector<FoundDevice> found;
  for (const cl_platform_id platform : platforms) {
    // One platform without a device, or a broken one, hides no other.
    if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, nullptr, &n) != CL_SUCCESS || n == 0) continue;
    std::vector<cl_device_id> devices(std::min(n, kMost));
    if (clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, static_cast<cl_uint>(devices.size()), devices.data(), nullptr) != CL_SUCCESS) continue;
    for (const cl_device_id device : devices) found.push_back({platform, device});
  }
  return found;
}

std::string platform_text(cl_platform_id platform, cl_platform_info what) {
  return text_of([&](size_t size, void* value, size_t* bytes) { return clGetPlatformInfo(platform, what, size, value, bytes); });
}

std::string device_text(cl_device_id device, cl_device_info what) {
  return text_of([&](size_t size, void* value, size_t* bytes) { return clGetDeviceInfo(device, what, size, value, bytes); });
}

}  // namespace fth::opencl
