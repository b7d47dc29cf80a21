#pragma once
// Finds backends: those linked in, then plugins (libfth_*.so) next to the program, in the installed directory and in the caller's list.
// Nothing is searched in the working directory. What does not load is listed with its reason, never dropped silently.

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"
#include "core/device/device.h"
#include "core/device/thread_pool.h"

namespace fth {

// The backends linked into this program; defined in backends/builtin.cpp.
std::span<const fth_backend_query_fn> builtin_backends();

struct BackendReport;

// What is known of a device beyond its own word for it. Speeds are 0 where nobody measured them.
struct DeviceCheck {
  std::string refusal;                                           // empty, or why the planner must not choose it: "slower than the CPU: ..."
  bool wrong = false;                                            // it computes wrong: refused even when it is named
  double write_bytes_per_second = 0, read_bytes_per_second = 0;  // copies to it and from it
};

// Options for the devices of one backend, as its documentation names them.
struct DeviceOptions {
  std::string backend;            // "vulkan"
  std::optional<uint32_t> index;  // one device of it; none: each
  std::string options;            // "pipeline_cache=FILE"
  bool asked_for = false;         // by a person: a backend that does not know them is an error. Others are left out then
};

struct RegistryOptions {
  uint32_t n_threads = 0;     // of the pool; 0 = one per physical core allowed to this process (affinity, cgroup quota)
  std::vector<int> cpus;      // where the pool's threads stay, one each (parse_cpus). Empty: the scheduler places them
  bool builtin_only = false;  // --cpu-only: no plugin file is even opened
  bool named_only = false;    // of the plugins only plugin_paths: no default folder is searched
  // Extra directories or files, before the default ones; absolute. A file named here is loaded even if a backend of its name is there already.
  std::vector<std::filesystem::path> plugin_paths;
  std::string cpu_options;  // "isa=avx2,bytes_per_second=1.6e10" for the linked-in cpu backend
  std::vector<DeviceOptions> device_options;
  // Asked before a plugin file is loaded, while the registry opens and on its thread: empty, or why it must not be. Null: all may be.
  std::function<std::string(const std::filesystem::path& file)> admit;
  // Asked of every device of a plugin, likewise; index counts the devices of its backend. Null: nothing is known of them.
  std::function<DeviceCheck(const BackendReport& backend, uint32_t index, const Device& device)> check;
  void (*log)(void* self, int32_t level, const char* message) = nullptr;  // null: dropped
  void* log_self = nullptr;
};

// What was looked for, and what came of it. One per linked-in backend, plugin file, and device.
struct BackendReport {
  std::string name;   // "cpu", or the file's stem when it did not load
  std::string path;   // empty for a linked-in backend
  std::string build;  // the backend's build string
  bool loaded = false;
  std::string reason;  // why it was not loaded, or has no device: "built for ABI 2.0, this program serves 1.0"
};

struct DeviceEntry {
  Device device;
  size_t backend = 0;   // index into backends()
  uint32_t index = 0;   // of the backend's devices
  std::string refusal;  // empty, or why the planner must not choose it ("software device", "self-test failed: ...")
  DeviceCheck check;
};

class Registry {
 public:
  // Never fails because of a plugin; fails only when no device at all could be opened, or with invalid_argument for cpu_options and for device_options that a person
  // asked for.
  // Device names are unique: where two are equal the later one is renamed, "cpu" to "cpu-plugin", "vulkan:0" to "vulkan-plugin:0".
  static Result<std::unique_ptr<Registry>> open(const RegistryOptions& options);
  ~Registry();

  ThreadPool& pool();
  std::span<const BackendReport> backends() const;
  std::span<DeviceEntry> devices();
  std::span<const DeviceEntry> devices() const;
  std::span<const std::filesystem::path> searched() const;  // directories, in order, whether or not they exist
  // "cpu", "vulkan:0". not_found names the devices that exist.
  Result<size_t> find(const std::string& name) const;

 private:
  struct Impl;
  explicit Registry(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// One kind of the physical cores that this process may use: hybrid processors have two or more.
struct CoreKind {
  uint32_t n_cores = 0;
  uint32_t max_mhz = 0;  // 0: not known
  double speed = 0;      // relative to the fastest kind's, by what the system says (capacity, else frequency); 0: not known
  bool used = true;      // false: so slow that what it takes of a loop outlasts the others
};
struct UsableCores {
  uint32_t n_threads = 1;       // by default: one for each core that is used, within the quota
  std::vector<CoreKind> kinds;  // the fastest first; empty where the system does not tell
  std::optional<double> quota;  // CPUs' worth of time that the cgroups leave
};
// By the affinity mask and the cgroups' quota (v1 and v2).
UsableCores find_cores();
// "8 cores: 4 at 2400 MHz, 4 at 1800 MHz (about 0.52 of the fastest); 6 threads by default, within a CPU quota of 6.50"
std::string describe(const UsableCores& cores);
// find_cores().n_threads.
uint32_t usable_cores();
// "0-3,8": CPU numbers in the order given. invalid_argument for a text that is none, a number that is named twice, or a CPU that this process may not use.
Result<std::vector<int>> parse_cpus(std::string_view list);

}  // namespace fth
