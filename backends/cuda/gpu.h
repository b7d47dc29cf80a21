#pragma once
// The seam to the driver: one GPU, its memory and its one queue. gpu.cpp and launch.cu implement it with the CUDA runtime; tests/cuda/emulated.cpp on the
// host, so that all else of this backend runs without a GPU. Errors name the call: out of memory is resource_exhausted; no driver, no device and a device
// that was lost are unavailable; the rest internal. One thread at a time per Gpu, any thread.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "backends/cuda/kernels/block.h"
#include "backends/cuda/kernels/list.h"
#include "core/base/result.h"

namespace fth::cuda {

struct Facts {
  std::string name, driver;  // "NVIDIA H100 80GB HBM3", "CUDA 13.0, compute capability 9.0"
  uint64_t memory_bytes = 0;
  uint32_t processors = 1;
  bool software = false;  // the emulation
};

struct Grid {
  uint32_t x = 1, y = 1;
};
inline constexpr uint32_t kMostGridX = 0x7fffffffu, kMostGridY = 65535;

enum class Copy { to_device, to_host, within };

// A place in the queue. Opaque: the driver's event. Timed ones remember when the device was there.
using Mark = void*;
enum class MarkKind { plain, timed };

// unavailable with the driver's reason where there is no driver.
Result<uint32_t> count_gpus();

class Gpu {
 public:
  static Result<std::unique_ptr<Gpu>> open(uint32_t index);
  ~Gpu();  // waits for the queue
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  const Facts& facts() const { return facts_; }
  Result<uint64_t> free_bytes() const;

  // At a multiple of 256 bytes.
  Result<std::byte*> allocate(uint64_t bytes);
  void free(std::byte* p);
  // The host's memory, locked, for copies that go on while the host does something else.
  Result<std::byte*> allocate_locked(uint64_t bytes);
  void free_locked(std::byte* p);

  // Queued in order; what they read and write on the host is locked memory and stays until a mark behind them was waited for.
  Result<> copy(void* dst, const void* src, uint64_t bytes, Copy direction);
  Result<> clear(void* dst, uint64_t bytes);
  Result<> launch(KernelId kernel, Grid grid, const Params& params);

  Result<Mark> make_mark(MarkKind kind);
  void release(Mark mark);
  Result<> record(Mark mark);
  Result<> wait(Mark mark);  // for what was queued before the last record; at once if there was none
  Result<> finish();         // for all
  // By the device's clock, between two timed marks that were recorded and waited for.
  Result<double> seconds_between(Mark begin, Mark end);

 private:
  explicit Gpu(uint32_t index) : index_(index) {}
  Result<> use() const;

  uint32_t index_;
  Facts facts_;
  void* queue_ = nullptr;
};

}  // namespace fth::cuda
