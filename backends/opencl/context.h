#pragma once
// One open OpenCL device: its queue, its memory, its programs. All of a device's objects are made and freed while its Context lives. One thread at a
// time, as the boundary promises.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>

#include "backends/opencl/api.h"
#include "core/base/bytes.h"
#include "plugins/sdk/plan.h"

namespace fth::opencl {

// How products of quantised weights are added up: kernels/matmul.cl. The numbers are its MATH.
enum class Math : uint32_t { f32 = 0, f16 = 1, int8 = 2 };

// Options of open(), see docs/opencl.md.
struct Settings {
  std::optional<Math> math;   // none: what suits the device
  std::optional<bool> alone;  // a work-item works alone on a row, as suits a CPU; none: on CPUs
  bool host_memory = true;    // work in the host's memory where the device can
  bool measure = false;       // time a software device as well
  std::string program_cache;  // a folder; empty: programs are kept in memory only
  double bytes_per_second = 0, flops_per_second = 0;
};

// What the planner and the plans of segments need to know of a device.
struct Limits {
  uint64_t max_buffer = 0;     // bytes of one allocation
  uint32_t lanes = 1;          // work-items that share a row of a product
  uint32_t threads = 1;        // of a work-group that shares a head or a norm; a power of two
  uint32_t columns = 4;        // tokens that share one unpacking of a weight
  uint32_t compute_units = 1;  // processors
  Math math = Math::f32;
  bool int_dot = false;  // the compiler has dot products of 4 bytes
};

// A kernel to make: the program it is in and what that is compiled with.
struct KernelName {
  enum class Source : uint32_t { basic, embed, attention, matmul } source;
  const char* name;
  std::string options;  // "-DTYPE=4 ..."
};

class Context;

// Memory of the device, or the host's. Freed before its device.
class Buffer {
 public:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  Buffer(Context& context, MemHandle memory, uint64_t base, uint64_t bytes, std::byte* host, std::unique_ptr<std::byte, Free> own,
         uint64_t counted)
      : context_(context), own_(std::move(own)), memory_(std::move(memory)), base_(base), bytes_(bytes), host_(host), counted_(counted) {}
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  Result<> write(uint64_t offset, const void* src, uint64_t bytes);
  Result<> read(uint64_t offset, void* dst, uint64_t bytes);
  cl_mem memory() const { return memory_.get(); }
  uint64_t base() const { return base_; }  // where the buffer's byte 0 is in memory()
  uint64_t bytes() const { return bytes_; }

 private:
  Context& context_;
  std::unique_ptr<std::byte, Free> own_;  // outlives memory_, which is made of it
  MemHandle memory_;
  uint64_t base_, bytes_;
  std::byte* host_;   // byte 0 in the host's memory; null: the device's own
  uint64_t counted_;  // bytes taken of the device's memory
};

class Context {
 public:
  // index: among find_devices(). not_found beyond them, unimplemented for one that lacks what the kernels need.
  static Result<std::unique_ptr<Context>> open(sdk::Host host, uint32_t index, const Settings& settings);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  cl_context get() const { return context_.get(); }
  cl_command_queue queue() const { return queue_.get(); }
  const Limits& limits() const { return limits_; }
  const std::string& label() const { return label_; }  // "opencl:0"
  fth_device_info info() const;
  double bytes_per_second() const { return bytes_per_second_; }
  double flops_per_second() const { return flops_per_second_; }
  double launch_seconds() const { return launch_seconds_; }
  double dispatch_seconds() const { return dispatch_seconds_; }

  Result<std::unique_ptr<Buffer>> allocate(uint64_t bytes);
  // unimplemented where the device does not work in the host's memory.
  Result<std::unique_ptr<Buffer>> import(void* p, uint64_t bytes);
  void freed(uint64_t bytes) { allocated_ -= bytes; }

  // A kernel of its own for each caller, who sets its arguments. `local`: the work-group that it will be launched with.
  Result<KernelHandle> kernel(const KernelName& kernel, uint32_t local);

 private:
  Context(sdk::Host host, Settings settings) : host_(host), settings_(std::move(settings)) {}
  Result<> check_device(uint32_t index);
  Result<> choose_math();
  Result<> make_queue();
  Result<> check_host_memory();
  Result<> measure();
  Result<std::unique_ptr<Buffer>> wrap(std::byte* p, uint64_t bytes, std::unique_ptr<std::byte, Buffer::Free> own, uint64_t counted);
  uint64_t free_bytes() const;

  Result<cl_program> program(const KernelName& kernel);
  Result<ProgramHandle> build(const std::string& source, const std::string& options);
  ProgramHandle load_binary(const std::string& path, const std::string& key, const std::string& options);
  void save_binary(const std::string& path, const std::string& key, cl_program program);

  sdk::Host host_;
  Settings settings_;
  std::string label_;
  cl_platform_id platform_ = nullptr;
  cl_device_id device_ = nullptr;
  cl_device_type type_ = 0;
  std::string name_, driver_, version_, extensions_;
  Limits limits_;
  bool in_host_memory_ = false;
  ContextHandle context_;
  QueueHandle queue_;
  std::map<std::string, ProgramHandle> programs_;  // by source and options
  uint64_t allocated_ = 0;
  double bytes_per_second_ = 0, flops_per_second_ = 0, dispatch_seconds_ = 0, launch_seconds_ = 0;
};

}  // namespace fth::opencl
