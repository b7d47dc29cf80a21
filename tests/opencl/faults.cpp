// See faults.h.

#include "tests/opencl/faults.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace fth::opencl_test {
namespace {

int g_programs_from_source = 0, g_live = 0;

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

template <class T>
T counted(T made) {
  if (made) ++g_live;
  return made;
}

bool fails(const char* name) { return fault().call == name && fault().after-- <= 0; }

}  // namespace

Fault& fault() {
  static Fault f;
  return f;
}
int programs_from_source() { return g_programs_from_source; }
int live_objects() { return g_live; }

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
  return counted(real<decltype(clCreateBuffer)>(__func__)(context, flags, size, host, error));
}

FTH_TEST_API cl_program clCreateProgramWithSource(cl_context context, cl_uint n, const char** text, const size_t* lengths, cl_int* error) {
  ++g_programs_from_source;
  return counted(real<decltype(clCreateProgramWithSource)>(__func__)(context, n, text, lengths, error));
}

FTH_TEST_API cl_int clBuildProgram(cl_program program, cl_uint n, const cl_device_id* devices, const char* options,
                                   void(CL_CALLBACK* notify)(cl_program, void*), void* self) {
  if (fails(__func__)) return fault().error;
  return real<decltype(clBuildProgram)>(__func__)(program, n, devices, options, notify, self);
}

FTH_TEST_API cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t* offset,
                                           const size_t* global, const size_t* local, cl_uint n, const cl_event* events, cl_event* event) {
  if (fails(__func__)) return fault().error;
  const cl_int queued = real<decltype(clEnqueueNDRangeKernel)>(__func__)(queue, kernel, dims, offset, global, local, n, events, event);
  if (queued == CL_SUCCESS && event) ++g_live;
  return queued;
}

FTH_TEST_API cl_int clWaitForEvents(cl_uint n, const cl_event* events) {
  const cl_int waited = real<decltype(clWaitForEvents)>(__func__)(n, events);
  return fails(__func__) ? fault().error : waited;
}

FTH_TEST_API cl_context clCreateContext(const cl_context_properties* properties, cl_uint n, const cl_device_id* devices,
                                        void(CL_CALLBACK* notify)(const char*, const void*, size_t, void*), void* self, cl_int* error) {
  return counted(real<decltype(clCreateContext)>(__func__)(properties, n, devices, notify, self, error));
}

FTH_TEST_API cl_command_queue clCreateCommandQueue(cl_context context, cl_device_id device, cl_command_queue_properties properties,
                                                   cl_int* error) {
  using Create = cl_command_queue(cl_context, cl_device_id, cl_command_queue_properties, cl_int*);
  return counted(real<Create>(__func__)(context, device, properties, error));
}

FTH_TEST_API cl_program clCreateProgramWithBinary(cl_context context, cl_uint n, const cl_device_id* devices, const size_t* lengths,
                                                  const unsigned char** binaries, cl_int* status, cl_int* error) {
  return counted(real<decltype(clCreateProgramWithBinary)>(__func__)(context, n, devices, lengths, binaries, status, error));
}

FTH_TEST_API cl_kernel clCreateKernel(cl_program program, const char* name, cl_int* error) {
  return counted(real<decltype(clCreateKernel)>(__func__)(program, name, error));
}

#define FTH_TEST_RELEASE(name, Type)               \
  FTH_TEST_API cl_int name(Type object) {          \
    --g_live;                                      \
    return real<decltype(name)>(__func__)(object); \
  }
FTH_TEST_RELEASE(clReleaseContext, cl_context)
FTH_TEST_RELEASE(clReleaseCommandQueue, cl_command_queue)
FTH_TEST_RELEASE(clReleaseMemObject, cl_mem)
FTH_TEST_RELEASE(clReleaseProgram, cl_program)
FTH_TEST_RELEASE(clReleaseKernel, cl_kernel)
FTH_TEST_RELEASE(clReleaseEvent, cl_event)
