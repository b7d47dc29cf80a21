// Kernels as CUDA functions: one entry for each of the list, and the table by which gpu.cpp launches them. The only file that nvcc compiles.

#include "backends/cuda/kernels/all.h"
#include "backends/cuda/kernels/device_block.h"
#include "backends/cuda/launch.h"

namespace fth::cuda {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) entry(const Params params) {
  __shared__ typename Kernel::Shared shared;
  DeviceBlock<Kernel> block(shared);
  Kernel::run(block, params);
}

// In the order of the list.
#define FTH_CUDA_ENTRY(name, ...) {#name, reinterpret_cast<const void*>(&entry<__VA_ARGS__>), __VA_ARGS__::kThreads},
const Entry kEntries[] = {FTH_CUDA_KERNELS(FTH_CUDA_ENTRY)};
#undef FTH_CUDA_ENTRY
static_assert(sizeof kEntries == kKernels * sizeof(Entry));

}  // namespace

const Entry& entry_of(KernelId id) { return kEntries[static_cast<uint32_t>(id)]; }

}  // namespace fth::cuda
