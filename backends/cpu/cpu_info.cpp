// Reads /proc; absent files leave the answer empty, they are not errors.

#include "backends/cpu/cpu_info.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <fstream>
#include <string_view>

namespace fth::cpu {
namespace {

// The value of a "key : value" line, or empty.
std::string line_value(std::string_view path, std::string_view key) {
  std::ifstream file{std::string(path)};
  for (std::string line; std::getline(file, line);) {
    if (!std::string_view(line).starts_with(key)) continue;
    const size_t colon = line.find(':');
    const size_t start = colon == std::string::npos ? colon : line.find_first_not_of(" \t", colon + 1);
    if (start != std::string::npos) return line.substr(start);
  }
  return {};
}

}  // namespace

std::string cpu_model() {
  for (const char* key : {"model name", "Model", "Hardware"})  // x86, then what ARM kernels have
    if (std::string model = line_value("/proc/cpuinfo", key); !model.empty()) return model;
  utsname system{};
  return uname(&system) == 0 ? std::string(system.machine) : std::string("cpu");
}

MemoryBytes memory_bytes() {
  MemoryBytes m;
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) m.total = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page);
  if (const std::string kib = line_value("/proc/meminfo", "MemAvailable"); !kib.empty())
    m.available = std::strtoull(kib.c_str(), nullptr, 10) * 1024;
  return m;
}

}  // namespace fth::cpu
