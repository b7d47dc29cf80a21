// See faults.h.

#include "tests/opencl/faults.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace fth::opencl_test {
namespace {

int g_programs_from_source = 0;

template <class F>
F* real(const char* name) {
  static void* const loader = dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  void* const found = loader ? dlsym(loader, name) : nullptr;
  if (!found) {
    std::fprintf(stderr, "libOpenCL.so.1 has no %s\n", name);
    std::abort();
  }
  return reinterpret_cast<F*>(found);
}

bool fails(const char* name) { return fault().call == name && fault().after-- <= 0; }

}  // namespace

Fault& fault() {
  static Fault f;
  return f;
}
int programs_from_source() { return g_programs_from_source; }

}  // namespace fth::opencl_test

using namespace fth::opencl_test;

#define FTH_TEST_API extern "C" __attribute__((visibility("default")))

FTH_TEST_API cl_int clGetPlatformIDs(cl_uint n, cl_platform_id* platforms, cl_uint* count) {
  if (fails(__func__)) return fault().error;
  return real<decltype(clGetPlatformIDs)>(__func__)(n, platforms, count);
}

FTH_TEST_API cl_mem clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size, void* host, cl_int* error) {
  if (fails(__func__)) {
    *error = fault().error;
    return nullptr;
  }
  return real<decltype(clCreateBuffer)>(__func__)(context, flags, size, host, error);
}

FTH_TEST_API cl_program clCreateProgramWithSource(cl_context context, cl_uint n, const char** text, const size_t* lengths, cl_int* error) {
  ++g_programs_from_source;
  return real<decltype(clCreateProgramWithSource)>(__func__)(context, n, text, lengths, error);
}

FTH_TEST_API cl_int clBuildProgram(cl_program program, cl_uint n, const cl_device_id* devices, const char* options,
                                   void(CL_CALLBACK* notify)(cl_program, void*), void* self) {
  if (fails(__func__)) return fault().error;
  return real<decltype(clBuildProgram)>(__func__)(program, n, devices, options, notify, self);
}

FTH_TEST_API cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t* offset,
                                           const size_t* global, const size_t* local, cl_uint n, const cl_event* events, cl_event* event) {
  if (fails(__func__)) return fault().error;
  return real<decltype(clEnqueueNDRangeKernel)>(__func__)(queue, kernel, dims, offset, global, local, n, events, event);
}

FTH_TEST_API cl_int clWaitForEvents(cl_uint n, const cl_event* events) {
  const cl_int waited = real<decltype(clWaitForEvents)>(__func__)(n, events);
  return fails(__func__) ? fault().error : waited;
}
