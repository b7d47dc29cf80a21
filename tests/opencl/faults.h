#pragma once
// OpenCL calls that fail when a test says so. The test program defines these functions itself and exports them: the plugin, which is linked against the
// loader, finds them first. One thread.

#include <CL/cl.h>
#include <CL/cl_ext.h>

#include <string>

namespace fth::opencl_test {

struct Fault {
  std::string call;  // "clCreateBuffer"; empty: no fault
  int after = 0;     // calls that succeed first
  cl_int error = CL_SUCCESS;
};
// Set by tests, read by the functions; back to none with Fault{}.
Fault& fault();
// Programs that were made of source since the start.
int programs_from_source();
// Contexts, queues, buffers, programs, kernels and events that were made and not released.
int live_objects();

}  // namespace fth::opencl_test
