#pragma once
// The parts of usable_cores() that need no file system: text of the kernel's files in, numbers out.

#include <hwloc.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/device/registry.h"

namespace fth::cores {

// CPUs' worth of time, from the text of a cgroup v2 cpu.max ("150000 100000" -> 1.5). Empty: no limit ("max ..."), or not understood.
std::optional<double> parse_cpu_max(std::string_view text);
// The same from v1's cpu.cfs_quota_us and cpu.cfs_period_us; a quota of -1 is no limit.
std::optional<double> parse_cfs(std::string_view quota_us, std::string_view period_us);

// One cgroup whose limit applies to this process: a folder, and which files it has.
struct QuotaFolder {
  std::string path;
  bool v2 = false;
  bool operator==(const QuotaFolder&) const = default;
};
// From the text of /proc/self/cgroup: the process's own group and every group above it (each one limits), under the usual mount points.
std::vector<QuotaFolder> quota_folders(std::string_view proc_self_cgroup);

// The nearest number to the quota, at least 1, at most n_cores. With 2 threads on 1.5 CPUs the kernel stops both for a quarter of each period, which is
// still more work done than 1 thread does that is never stopped (docs/benchmarks.md); on 1.25 CPUs it is not worth the pauses.
uint32_t limit_by_quota(uint32_t n_cores, std::optional<double> quota);

// Physical cores with at least one CPU in `allowed`, by kind, the fastest first. Empty if the topology knows no cores. With no word about kinds, one kind.
std::vector<CoreKind> core_kinds(hwloc_topology_t topology, hwloc_const_cpuset_t allowed);
// A loop has about eight indices for each thread. A core below a quarter of the speed would take one or two of them, and be waited for at each loop's end.
inline constexpr double kSlowestUsed = 0.25;

}  // namespace fth::cores
