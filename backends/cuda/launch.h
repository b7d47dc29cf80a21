#pragma once
// Between gpu.cpp and what nvcc compiles.

#include "backends/cuda/kernels/list.h"

namespace fth::cuda {

struct Entry {
  const char* name;
  const void* function;  // for cudaLaunchKernel, with one Params
  uint32_t threads;
};
// Not for KernelId::end.
const Entry& entry_of(KernelId id);

}  // namespace fth::cuda
