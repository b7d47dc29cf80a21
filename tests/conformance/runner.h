#pragma once
// Puts problems on a backend through the plugin boundary alone: the linked-in cpu backend or a plugin file. Every output, state and workspace lies
// between guard bytes.

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/device/device.h"
#include "core/device/thread_pool.h"
#include "tests/conformance/problem.h"

namespace fth::conformance {

struct BackendOptions {
  std::string backend = "cpu";  // or the path of a plugin file
  uint32_t device = 0;
  std::string options;     // "isa=avx2"
  uint32_t n_threads = 0;  // 0: one per hardware thread
  int32_t log_level = FTH_LOG_WARNING;
};

// A backend on a pool of its own, and one open device of it. Opened once per thread count; a plugin stays loaded for good.
class Backend {
 public:
  // unavailable: no driver or no such device, a reason to skip. The backend's own code for the rest.
  static Result<std::unique_ptr<Backend>> open(const BackendOptions& options);
  const Device& device() const { return *device_; }
  int errors() const { return errors_; }  // that the plugin logged so far

 private:
  explicit Backend(uint32_t n_threads) : pool_(n_threads) {}
  ThreadPool pool_;
  fth_host host_{};
  std::unique_ptr<Device> device_;
  int32_t log_level_ = 0;
  std::atomic<int> errors_{0};  // drivers may log from threads of their own; a count, ordering nothing
};

// A compiled problem with everything bound.
class Prepared {
 public:
  static Result<Prepared> make(const Device& device, const Problem& problem);
  Result<> run();
  double device_seconds() const { return executable_.device_seconds(); }
  // The problem with what is in the buffers now: OUTPUT and STATE data as the device left it. internal when a guard byte changed.
  Result<Problem> collect() const;

 private:
  struct Bound {
    size_t tensor;
    Buffer buffer;
    bool guarded;
  };
  static constexpr uint64_t kGuard = 4096;  // bytes on either side; a multiple of every alignment we know

  Problem problem_;
  std::vector<Buffer> weights_;
  std::vector<Bound> bound_;
  Buffer workspace_;
  uint64_t workspace_bytes_ = 0;
  std::vector<fth_binding> bindings_;
  Executable executable_;
};

// What OUTPUT tensors without data hold before the run.
inline constexpr std::byte kCanary{0xa5};

// Compiles, runs once, collects.
Result<Problem> run_once(const Device& device, const Problem& problem);

}  // namespace fth::conformance
