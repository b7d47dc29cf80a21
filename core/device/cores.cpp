// How many cores this process may use: hwloc for the topology, the affinity mask, and the CPU quota of its cgroups.

#include "core/device/cores.h"

#include <hwloc/glibc-sched.h>
#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <thread>

#include "core/device/registry.h"

namespace fth {
namespace cores {
namespace {

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.back() == '\n' || s.back() == ' ')) s.remove_suffix(1);
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  return s;
}

std::optional<int64_t> parse_int(std::string_view s) {
  s = trim(s);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error != std::errc{} || end != s.data() + s.size()) return std::nullopt;
  return value;
}

std::optional<std::string> read_small_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::string text(64 * 1024, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

bool has_item(std::string_view comma_list, std::string_view item) {
  while (!comma_list.empty()) {
    const std::string_view first = comma_list.substr(0, comma_list.find(','));
    if (first == item) return true;
    comma_list.remove_prefix(std::min(comma_list.size(), first.size() + 1));
  }
  return false;
}

std::optional<double> quota_of(const QuotaFolder& folder) {
  if (folder.v2) {
    const auto text = read_small_file(folder.path + "/cpu.max");
    return text ? parse_cpu_max(*text) : std::nullopt;
  }
  const auto quota = read_small_file(folder.path + "/cpu.cfs_quota_us");
  const auto period = read_small_file(folder.path + "/cpu.cfs_period_us");
  return quota && period ? parse_cfs(*quota, *period) : std::nullopt;
}

}  // namespace

std::optional<double> parse_cfs(std::string_view quota_us, std::string_view period_us) {
  const auto quota = parse_int(quota_us), period = parse_int(period_us);
  if (!quota || !period || *quota <= 0 || *period <= 0) return std::nullopt;
  return static_cast<double>(*quota) / static_cast<double>(*period);
}

std::optional<double> parse_cpu_max(std::string_view text) {
  text = trim(text);
  const size_t space = text.find(' ');
  if (space == std::string_view::npos) return std::nullopt;
  return parse_cfs(text.substr(0, space), text.substr(space + 1));  // "max" is no number, hence no limit
}

std::vector<QuotaFolder> quota_folders(std::string_view text) {
  std::vector<QuotaFolder> folders;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const size_t a = line.find(':'), b = a == std::string_view::npos ? a : line.find(':', a + 1);
    if (b == std::string_view::npos) continue;
    const std::string_view controllers = line.substr(a + 1, b - a - 1);
    const bool v2 = line.substr(0, a) == "0" && controllers.empty();
    if (!v2 && !has_item(controllers, "cpu")) continue;
    std::vector<std::string> mounts = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
    if (!v2) mounts = {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/" + std::string(controllers)};
    // Up to the root, which is also what a container sees of a group whose real path lies outside of its mount.
    for (const std::string& mount : mounts) {
      std::string_view path = line.substr(b + 1);
      if (path.find("/..") != std::string_view::npos) path = "/";
      for (int depth = 0; depth < 64; ++depth) {
        while (path.ends_with('/')) path.remove_suffix(1);
        const QuotaFolder folder{mount + std::string(path), v2};
        if (std::find(folders.begin(), folders.end(), folder) == folders.end()) folders.push_back(folder);
        if (path.empty()) break;
        path = path.substr(0, path.rfind('/') == std::string_view::npos ? 0 : path.rfind('/'));
      }
    }
  }
  return folders;
}

uint32_t limit_by_quota(uint32_t n_cores, std::optional<double> quota) {
  n_cores = std::max(1u, n_cores);
  if (!quota || *quota >= n_cores) return n_cores;
  return std::max(1u, static_cast<uint32_t>(std::floor(*quota + 0.5)));
}

std::vector<CoreKind> core_kinds(hwloc_topology_t topology, hwloc_const_cpuset_t allowed) {
  struct Kind {
    CoreKind of;
    int64_t rank, capacity, mhz;
  };
  std::vector<Kind> kinds;
  for (hwloc_obj_t core = nullptr; (core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core)) != nullptr;) {
    if (!hwloc_bitmap_intersects(core->cpuset, allowed)) continue;
    const int64_t rank = hwloc_cpukinds_get_by_cpuset(topology, core->cpuset, 0);  // hwloc has the slowest first; -1: of no kind
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& k) { return k.rank == rank; });
    if (kind == kinds.end()) kind = kinds.insert(kind, Kind{.of = {}, .rank = rank, .capacity = 0, .mhz = 0});
    ++kind->of.n_cores;
  }
  bool capacities = true, frequencies = true;
  int64_t most_capacity = 0, most_mhz = 0;
  for (Kind& kind : kinds) {
    unsigned n_infos = 0;
    hwloc_info_s* infos = nullptr;
    if (kind.rank >= 0 && hwloc_cpukinds_get_info(topology, static_cast<unsigned>(kind.rank), nullptr, nullptr, &n_infos, &infos, 0) == 0)
      for (const hwloc_info_s& info : std::span(infos, n_infos)) {
        const int64_t value = std::clamp<int64_t>(parse_int(info.value).value_or(0), 0, 1'000'000);
        if (std::string_view(info.name) == "LinuxCapacity") kind.capacity = value;
        if (std::string_view(info.name) == "FrequencyMaxMHz") kind.mhz = value;
      }
    capacities = capacities && kind.capacity > 0;
    frequencies = frequencies && kind.mhz > 0;
    most_capacity = std::max(most_capacity, kind.capacity);
    most_mhz = std::max(most_mhz, kind.mhz);
  }
  std::vector<CoreKind> result;
  for (Kind& kind : kinds) {
    if (capacities) kind.of.speed = static_cast<double>(kind.capacity) / static_cast<double>(most_capacity);
    if (!capacities && frequencies) kind.of.speed = static_cast<double>(kind.mhz) / static_cast<double>(most_mhz);
    kind.of.max_mhz = static_cast<uint32_t>(kind.mhz);
    kind.of.used = kind.of.speed == 0 || kind.of.speed >= kSlowestUsed;
    result.push_back(kind.of);
  }
  std::stable_sort(result.begin(), result.end(), [](const CoreKind& a, const CoreKind& b) { return a.speed > b.speed; });
  return result;
}

}  // namespace cores

Result<std::vector<int>> parse_cpus(std::string_view list) {
  const auto wrong = [&](const std::string& why) {
    return fail(Code::invalid_argument, "CPUs \"" + std::string(list) + "\": " + why +
                                            "; write numbers and ranges of the CPUs in this process's affinity mask, such as 0-3,8");
  };
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (sched_getaffinity(0, sizeof mask, &mask) != 0) return wrong("the affinity mask of this process cannot be read");
  std::vector<int> cpus;
  for (std::string_view rest = list; !rest.empty() || cpus.empty();) {
    const size_t end = std::min(rest.find(','), rest.size());
    const std::string_view item = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const size_t dash = item.find('-');
    const auto first = cores::parse_int(item.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : cores::parse_int(item.substr(dash + 1));
    if (!first || !last || *first < 0 || *last < *first || *last >= CPU_SETSIZE)
      return wrong("\"" + std::string(item) + "\" is not a CPU or a range of them");
    for (int cpu = static_cast<int>(*first); cpu <= static_cast<int>(*last); ++cpu) {
      if (!CPU_ISSET(static_cast<size_t>(cpu), &mask)) return wrong("CPU " + std::to_string(cpu) + " is not for this process");
      if (std::find(cpus.begin(), cpus.end(), cpu) != cpus.end()) return wrong("CPU " + std::to_string(cpu) + " is named twice");
      cpus.push_back(cpu);
    }
  }
  return cpus;
}

UsableCores find_cores() {
  UsableCores found;
  cpu_set_t mask;
  CPU_ZERO(&mask);
  // A machine with more CPUs than a cpu_set_t has room for refuses the call: then every core counts as allowed.
  const bool masked = sched_getaffinity(0, sizeof mask, &mask) == 0;
  uint32_t n = 0;
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) == 0) {
    hwloc_topology_set_all_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(topology, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (hwloc_topology_load(topology) == 0) {
      const hwloc_bitmap_t allowed = hwloc_bitmap_alloc();
      if (masked) {
        hwloc_cpuset_from_glibc_sched_affinity(topology, allowed, &mask, sizeof mask);
      } else {
        hwloc_bitmap_copy(allowed, hwloc_topology_get_allowed_cpuset(topology));
      }
      found.kinds = cores::core_kinds(topology, allowed);
      hwloc_bitmap_free(allowed);
    }
    hwloc_topology_destroy(topology);
  }
  for (const CoreKind& kind : found.kinds) n += kind.used ? kind.n_cores : 0;
  if (n == 0) n = masked ? static_cast<uint32_t>(CPU_COUNT(&mask)) : std::thread::hardware_concurrency();

  const auto groups = cores::read_small_file("/proc/self/cgroup");
  for (const cores::QuotaFolder& folder : cores::quota_folders(groups.value_or("")))
    if (const auto q = cores::quota_of(folder)) found.quota = std::min(q.value(), found.quota.value_or(q.value()));
  found.n_threads = cores::limit_by_quota(n, found.quota);
  return found;
}

uint32_t usable_cores() { return find_cores().n_threads; }

std::string describe(const UsableCores& cores) {
  uint32_t n = 0;
  std::string list;
  char text[96];
  for (const CoreKind& kind : cores.kinds) {
    n += kind.n_cores;
    if (cores.kinds.size() == 1) break;
    std::snprintf(text, sizeof text, "%s%u", list.empty() ? ": " : ", ", kind.n_cores);
    list += text;
    if (kind.max_mhz > 0) list += " at " + std::to_string(kind.max_mhz) + " MHz";
    std::snprintf(text, sizeof text, " (about %.2f of the fastest%s)", kind.speed, kind.used ? "" : ": not used by default");
    if (kind.speed > 0 && kind.speed < 1) list += text;
  }
  std::string out = cores.kinds.empty() ? "cores not known" : std::to_string(n) + (n == 1 ? " core" : " cores") + list;
  out += "; " + std::to_string(cores.n_threads) + (cores.n_threads == 1 ? " thread" : " threads") + " by default";
  if (!cores.quota) return out;
  std::snprintf(text, sizeof text, ", within a CPU quota of %.2f", *cores.quota);
  return out + text;
}

}  // namespace fth
