#pragma once
// Facts about this machine and process, read from /proc and /sys. Unreadable ones are empty or 0.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

namespace fth::cli {

std::string cpu_model();
uint64_t l3_bytes();  // of one L3 cache, or the last level there is
uint64_t peak_rss();  // bytes, of this process
struct PageFaults {
  int64_t minor = 0, major = 0;  // major: the page had to be read
};
PageFaults page_faults();  // of this process so far

struct Memory {
  uint64_t total = 0, available = 0;     // /proc/meminfo
  std::optional<uint64_t> cgroup_limit;  // the tightest of the process's cgroup and its parents, v1 or v2
  uint64_t cgroup_used = 0;              // of that cgroup
  uint64_t free_for_us() const;          // the smaller of available and what the cgroup leaves
};
Memory read_memory();

// The first line of a small file in /proc or /sys; empty when there is none.
std::string first_line(const std::filesystem::path& path);
std::filesystem::path program_folder();
// $XDG_CACHE_HOME/forethought, else ~/.cache/forethought; empty when neither is an absolute path. Need not exist.
std::filesystem::path cache_folder();

}  // namespace fth::cli
