#pragma once
// From options to an open engine: which model, the measured bandwidth, the log of the devices, the progress bar.

#include <deque>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "core/engine/engine.h"
#include "tools/cli/device_checks.h"
#include "tools/cli/flags.h"
#include "tools/cli/gather.h"
#include "tools/cli/head_cache.h"
#include "tools/cli/machine_profile.h"
#include "tools/cli/segment_runs.h"
#include "tools/cli/storage_profile.h"

namespace fth::cli {

// What backends say while they are found and opened. Errors and warnings go to standard error at once, the rest is kept for -v and reports.
class Log {
 public:
  explicit Log(const CommonFlags& common) : verbose_(common.verbose), quiet_(common.quiet) {}
  static void receive(void* self, int32_t level, const char* message);  // RegistryOptions.log; from any thread
  std::vector<std::string> lines() const;

 private:
  mutable std::mutex mutex_;
  std::deque<std::string> lines_;
  bool verbose_, quiet_;
};

// -m, then FORETHOUGHT_MODEL, then the bundled model. not_found when there is none of them.
Result<std::filesystem::path> find_model(const std::string& given);
// "3.5GB/s", bytes per second.
Result<double> parse_speed(std::string_view option, std::string_view speed);
Result<std::vector<Override>> parse_overrides(const std::vector<std::string>& given);
// --threads, else one for each CPU of --cpus; 0: neither is given, or what is given will be refused.
uint32_t threads_asked(const DeviceFlags& flags);
// `log` and `checks` must outlive the registry; with null checks no device is tested.
Result<RegistryOptions> registry_options(const DeviceFlags& flags, const MachineProfile& profile, Log& log, DeviceChecks* checks = nullptr);

struct Opened {
  std::unique_ptr<Log> log;  // first: the engine's devices write to it until they are gone
  std::unique_ptr<DeviceChecks> checks;
  std::unique_ptr<SegmentRuns> runs;
  MachineProfile profile;
  std::filesystem::path model;
  GatherCrossover gather;  // of its experts
  StorageProfile storage;  // of the model's disk; measured when experts may have to be streamed
  std::unique_ptr<Engine> engine;
  std::unique_ptr<HeadCache> head;
};

enum class Depth { plan_only, weights };
// Measures the machine first if that has not been done, in a child process: call before any thread exists. The model's disk is measured when experts are streamed.
// With `known` the processor and its memory are not measured.
Result<Opened> open_engine(const EngineFlags& flags, const CommonFlags& common, Depth depth = Depth::weights,
                           Measure measure = Measure::once, const MachineProfile* known = nullptr);

}  // namespace fth::cli
