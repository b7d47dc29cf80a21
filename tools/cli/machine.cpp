// /proc and /sys, both cgroup versions.

#include "tools/cli/machine.h"

#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <vector>

namespace fth::cli {

namespace {

std::optional<uint64_t> read_number(const std::string& line) {
  uint64_t n = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), n);
  return error == std::errc{} ? std::optional(n) : std::nullopt;
}

// "Key:   123 kB" in /proc/meminfo and /proc/self/status, in bytes.
uint64_t proc_bytes(const char* path, std::string_view key) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const size_t at = line.find_first_of("0123456789");
    return at == std::string::npos ? 0 : read_number(line.substr(at)).value_or(0) * 1024;
  }
  return 0;
}

struct CgroupFiles {
  std::filesystem::path root, folder;
  const char *limit, *used;
};

std::vector<CgroupFiles> cgroup_files() {
  std::vector<CgroupFiles> out;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // "0::/a/b" or "7:memory:/a/b"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = ',' + line.substr(first + 1, second - first - 1) + ',';
    const std::string path = line.substr(std::min(second + 2, line.size()));
    const std::filesystem::path v1 = "/sys/fs/cgroup/memory", v2 = "/sys/fs/cgroup";
    if (line.starts_with("0::")) out.push_back({v2, v2 / path, "memory.max", "memory.current"});
    if (controllers.find(",memory,") != std::string::npos) out.push_back({v1, v1 / path, "memory.limit_in_bytes", "memory.usage_in_bytes"});
  }
  return out;
}

}  // namespace

std::string first_line(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  while (!line.empty() && (line.back() == '\0' || line.back() == ' ')) line.pop_back();
  return line;
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with("model name") && !line.starts_with("Model")) continue;
    const size_t at = line.find(": ");
    if (at != std::string::npos) return line.substr(at + 2);
  }
  const std::string board = first_line("/proc/device-tree/model");  // Arm boards
  return board.empty() ? "unknown CPU" : board;
}

uint64_t l3_bytes() {
  uint64_t best = 0;
  int64_t best_level = 0;
  for (int i = 0; i < 8; ++i) {
    const std::filesystem::path folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i);
    const auto level = read_number(first_line(folder / "level"));
    const std::string size = first_line(folder / "size");  // "32768K"
    const auto n = read_number(size);
    if (!level || !n || static_cast<int64_t>(*level) <= best_level || first_line(folder / "type") == "Instruction") continue;
    best_level = static_cast<int64_t>(*level);
    best = *n * (size.back() == 'M' ? 1024 * 1024 : size.back() == 'K' ? 1024 : 1);
  }
  return best;
}

uint64_t peak_rss() {
  // VmHWM is this program's own; getrusage keeps the maximum of what the process was before exec (a large parent's fork).
  if (const uint64_t bytes = proc_bytes("/proc/self/status", "VmHWM:"); bytes > 0) return bytes;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

PageFaults page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {usage.ru_minflt, usage.ru_majflt};
}

uint64_t Memory::free_for_us() const {
  if (!cgroup_limit) return available;
  return std::min(available, *cgroup_limit > cgroup_used ? *cgroup_limit - cgroup_used : 0);
}

Memory read_memory() {
  Memory out;
  out.total = proc_bytes("/proc/meminfo", "MemTotal:");
  out.available = proc_bytes("/proc/meminfo", "MemAvailable:");
  for (const CgroupFiles& files : cgroup_files()) {
    // Inside a container the path may name what only the host sees: then the mount's root is the process's cgroup.
    std::error_code error;
    auto folder = std::filesystem::exists(files.folder, error) ? files.folder : files.root;
    while (true) {
      const auto limit = read_number(first_line(folder / files.limit));  // "max" is no number
      if (limit && *limit < out.total && (!out.cgroup_limit || *limit < *out.cgroup_limit)) {
        out.cgroup_limit = limit;
        out.cgroup_used = read_number(first_line(folder / files.used)).value_or(0);
      }
      if (folder == files.root || !folder.has_relative_path()) break;
      folder = folder.parent_path();
    }
  }
  return out;
}

std::filesystem::path cache_folder() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  if (cache != nullptr && *cache == '/') return std::filesystem::path(cache) / "forethought";
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home == '/') return std::filesystem::path(home) / ".cache/forethought";
  return {};
}

std::filesystem::path program_folder() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? std::filesystem::path() : program.parent_path();
}

}  // namespace fth::cli
