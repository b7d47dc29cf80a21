// The CUDA runtime, linked in statically: it opens the driver by itself and answers with an error where there is none.

#include "backends/cuda/gpu.h"

#include <cuda_runtime_api.h>

#include "backends/cuda/launch.h"
#include "core/base/bytes.h"
#include "plugins/sdk/text.h"

namespace fth::cuda {
namespace {

using sdk::text;

Code code_of(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation: return Code::resource_exhausted;
    // No driver, one that is too old, no device, one that others hold.
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorStubLibrary:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorInitializationError:
    case cudaErrorDevicesUnavailable:
    case cudaErrorDeviceNotLicensed:
    case cudaErrorSystemNotReady:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCudartUnloading:
    case cudaErrorNoKernelImageForDevice:
    // A device that is lost: every later call of the process gets the same error.
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
#if CUDART_VERSION >= 13000
    case cudaErrorContained:
#endif
    case cudaErrorUnknown: return Code::unavailable;
    default: return Code::internal;
  }
}

Result<> check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return {};
  (void)cudaGetLastError();  // errors that do not last are not to be found again by the next call
  return fail(code_of(error), text(what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

cudaStream_t stream_of(void* queue) { return static_cast<cudaStream_t>(queue); }
cudaEvent_t event_of(Mark mark) { return static_cast<cudaEvent_t>(mark); }

std::string version_text(int version) { return text(version / 1000, ".", version % 1000 / 10); }

}  // namespace

Result<uint32_t> count_gpus() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice) {
    (void)cudaGetLastError();
    return 0u;  // a driver without a device
  }
  if (error == cudaErrorInsufficientDriver) {
    (void)cudaGetLastError();
    int driver = 0, ours = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&ours);
    return fail(Code::unavailable,
                text("cuda: ", cudaGetErrorString(error), ": ",
                     driver == 0 ? std::string("no driver is there") : text("the driver is for CUDA ", version_text(driver)),
                     ", need one for CUDA ", version_text(ours)));
  }
  FTH_RETURN_IF_ERROR(check(error, "cuda: cudaGetDeviceCount"));
  return static_cast<uint32_t>(count);
}

Result<std::unique_ptr<Gpu>> Gpu::open(uint32_t index) {
  FTH_ASSIGN_OR_RETURN(const uint32_t count, count_gpus());
  if (index >= count) return fail(Code::not_found, text("cuda: device ", index, " of ", count));
  std::unique_ptr<Gpu> self(new Gpu(index));
  FTH_RETURN_IF_ERROR(self->use());
  cudaDeviceProp properties{};
  FTH_RETURN_IF_ERROR(check(cudaGetDeviceProperties(&properties, static_cast<int>(index)), "cudaGetDeviceProperties"));
  int driver = 0;
  FTH_RETURN_IF_ERROR(check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion"));
  self->facts_ = {.name = properties.name,
                  .driver = text("CUDA ", version_text(driver), ", compute capability ", properties.major, ".", properties.minor),
                  .memory_bytes = properties.totalGlobalMem,
                  .processors = static_cast<uint32_t>(properties.multiProcessorCount)};
  if (properties.major < 8)
    return fail(Code::unimplemented, text("cuda:", index, " (", properties.name, "): compute capability ", properties.major, ".",
                                          properties.minor, ", built for 8.0 and later"));
  cudaStream_t stream = nullptr;
  FTH_RETURN_IF_ERROR(check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate"));
  self->queue_ = stream;
  return self;
}

Gpu::~Gpu() {
  if (!queue_ || !use()) return;
  (void)cudaStreamSynchronize(stream_of(queue_));
  (void)cudaStreamDestroy(stream_of(queue_));
}

// A thread's current device is its own: each call says which one it is about.
Result<> Gpu::use() const { return check(cudaSetDevice(static_cast<int>(index_)), "cudaSetDevice"); }

Result<uint64_t> Gpu::free_bytes() const {
  FTH_RETURN_IF_ERROR(use());
  size_t free = 0, total = 0;
  FTH_RETURN_IF_ERROR(check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  return free;
}

Result<std::byte*> Gpu::allocate(uint64_t bytes) {
  FTH_RETURN_IF_ERROR(use());
  void* p = nullptr;
  FTH_RETURN_IF_ERROR(check(cudaMalloc(&p, bytes), text("cudaMalloc of ", format_bytes(bytes))));
  return static_cast<std::byte*>(p);
}
void Gpu::free(std::byte* p) {
  if (use()) (void)cudaFree(p);
}
Result<std::byte*> Gpu::allocate_locked(uint64_t bytes) {
  FTH_RETURN_IF_ERROR(use());
  void* p = nullptr;
  FTH_RETURN_IF_ERROR(check(cudaHostAlloc(&p, bytes, cudaHostAllocDefault), text("cudaHostAlloc of ", format_bytes(bytes))));
  return static_cast<std::byte*>(p);
}
void Gpu::free_locked(std::byte* p) {
  if (use()) (void)cudaFreeHost(p);
}

Result<> Gpu::copy(void* dst, const void* src, uint64_t bytes, Copy direction) {
  constexpr cudaMemcpyKind kKinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice};  // in the order of Copy
  FTH_RETURN_IF_ERROR(use());
  return check(cudaMemcpyAsync(dst, src, bytes, kKinds[static_cast<size_t>(direction)], stream_of(queue_)),
               text("cudaMemcpyAsync of ", format_bytes(bytes)));
}

Result<> Gpu::clear(void* dst, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(use());
  return check(cudaMemsetAsync(dst, 0, bytes, stream_of(queue_)), "cudaMemsetAsync");
}

Result<> Gpu::launch(KernelId kernel, Grid grid, const Params& params) {
  FTH_RETURN_IF_ERROR(use());
  const Entry& entry = entry_of(kernel);
  void* arguments[] = {const_cast<Params*>(&params)};
  return check(cudaLaunchKernel(entry.function, dim3(grid.x, grid.y), dim3(entry.threads), arguments, 0, stream_of(queue_)),
               text("launching ", entry.name, " on ", grid.x, " x ", grid.y, " blocks"));
}

Result<Mark> Gpu::make_mark(MarkKind kind) {
  FTH_RETURN_IF_ERROR(use());
  cudaEvent_t event = nullptr;
  FTH_RETURN_IF_ERROR(
      check(cudaEventCreateWithFlags(&event, kind == MarkKind::timed ? cudaEventDefault : cudaEventDisableTiming), "cudaEventCreate"));
  return Mark{event};
}
void Gpu::release(Mark mark) {
  if (use()) (void)cudaEventDestroy(event_of(mark));
}
Result<> Gpu::record(Mark mark) {
  FTH_RETURN_IF_ERROR(use());
  return check(cudaEventRecord(event_of(mark), stream_of(queue_)), "cudaEventRecord");
}
Result<> Gpu::wait(Mark mark) {
  FTH_RETURN_IF_ERROR(use());
  return check(cudaEventSynchronize(event_of(mark)), "waiting for the device");
}
Result<> Gpu::finish() {
  FTH_RETURN_IF_ERROR(use());
  return check(cudaStreamSynchronize(stream_of(queue_)), "waiting for the device");
}
Result<double> Gpu::seconds_between(Mark begin, Mark end) {
  FTH_RETURN_IF_ERROR(use());
  float milliseconds = 0;
  FTH_RETURN_IF_ERROR(check(cudaEventElapsedTime(&milliseconds, event_of(begin), event_of(end)), "cudaEventElapsedTime"));
  return 1e-3 * static_cast<double>(milliseconds);
}

}  // namespace fth::cuda
