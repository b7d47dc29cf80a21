// Measuring, and the cache file. The file is one entry per (CPU model, threads, L3 size): a machine image that moves to other hardware measures anew.

#include "tools/cli/machine_profile.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <optional>
#include <thread>
#include <vector>

#include "core/base/bytes.h"
#include "core/device/registry.h"
#include "tools/cli/bandwidth.h"
#include "tools/cli/cache_file.h"
#include "tools/cli/in_child.h"
#include "tools/cli/int8_peak.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"

namespace fth::cli {

namespace {

namespace json = boost::json;
using Clock = std::chrono::steady_clock;
constexpr std::string_view kKey = "machines";
constexpr int64_t kTries = 4;  // a machine that is always busy has no other figures, and no start waits for more

bool plausible(double per_second) { return per_second > 1e8 && per_second < 1e16; }  // bytes or operations

bool same_machine(const json::value& entry, const MachineProfile& machine, uint64_t l3) {
  const json::object* o = entry.if_object();
  if (o == nullptr) return false;
  const json::value *cpu = o->if_contains("cpu"), *threads = o->if_contains("threads"), *cache = o->if_contains("l3_bytes");
  return cpu != nullptr && cpu->is_string() && std::string_view(cpu->get_string()) == machine.cpu && threads != nullptr &&
         threads->is_int64() && threads->get_int64() == static_cast<int64_t>(machine.threads) && cache != nullptr && cache->is_int64() &&
         cache->get_int64() == static_cast<int64_t>(l3);
}

bool store(const std::filesystem::path& path, json::array entries, const MachineProfile& machine, uint64_t l3, bool busy, int64_t tries) {
  for (auto it = entries.begin(); it != entries.end();) it = same_machine(*it, machine, l3) ? entries.erase(it) : it + 1;
  entries.push_back({{"cpu", machine.cpu},
                     {"threads", static_cast<int64_t>(machine.threads)},
                     {"l3_bytes", static_cast<int64_t>(l3)},
                     {"bytes_per_second", machine.bytes_per_second},
                     {"busy", busy},
                     {"tries", tries}});
  return write_entries(path, kKey, entries);
}

// Best pass over `bytes` of memory with n threads, in bytes per second; 0 when the memory cannot be had. Runs in the child.
double measure(uint64_t bytes, uint32_t n) {
  void* const memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 0;
  ::madvise(memory, bytes, MADV_HUGEPAGE);  // as few TLB misses as can be had; refused is fine
  const std::span<uint64_t> words(static_cast<uint64_t*>(memory), bytes / sizeof(uint64_t));
  const size_t share = words.size() / n;
  const auto on_all = [&](auto&& body) {
    std::vector<std::thread> threads;
    for (uint32_t t = 1; t < n; ++t) threads.emplace_back([&body, part = words.subspan(t * share, share)] { body(part); });
    body(words.subspan(0, share));
    for (auto& thread : threads) thread.join();
  };
  on_all([](std::span<uint64_t> part) { std::fill(part.begin(), part.end(), 1); });
  double best = 0;
  uint64_t sums = 0;
  const auto start = Clock::now();
  for (int pass = 0; pass < 3 || (Clock::now() - start < std::chrono::milliseconds(150) && pass < 100); ++pass) {
    std::vector<uint64_t> results(n, 0);
    const auto began = Clock::now();
    on_all([&](std::span<uint64_t> part) { results[static_cast<size_t>(part.data() - words.data()) / share] = sum_words(part); });
    const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
    for (const uint64_t r : results) sums += r;
    best = std::max(best, static_cast<double>(share * n * sizeof(uint64_t)) / seconds);
  }
  return sums == 0 ? 0 : best;  // the sums are used, so the loads are real
}

// Multiply-adds per second of n threads, best of several passes. Runs in the child.
double measure_int8(uint32_t n) {
  const Int8Loop& loop = int8_loop();
  constexpr int64_t kRounds = 1 << 20;
  double best = 0;
  std::vector<int32_t> results(n, 0);
  const auto start = Clock::now();
  for (int pass = 0; pass < 3 || Clock::now() - start < std::chrono::milliseconds(300); ++pass) {
    const auto began = Clock::now();
    std::vector<std::thread> threads;
    for (uint32_t t = 1; t < n; ++t) threads.emplace_back([&loop, &result = results[t]] { result = loop.run(kRounds); });
    results[0] = loop.run(kRounds);
    for (auto& thread : threads) thread.join();
    const double seconds = std::chrono::duration<double>(Clock::now() - began).count();
    best = std::max(best, static_cast<double>(loop.ops_per_round * kRounds * n) / seconds);
  }
  // The results are used, so the products are made.
  return std::all_of(results.begin(), results.end(), [](int32_t r) { return r == 0; }) ? 0 : best;
}

// A speed, measured in a process of its own.
template <class Measure>
std::optional<double> measured_speed(const Measure& measure, std::string& why_not) {
  const auto figure = in_child(measure, why_not);
  if (figure && plausible(*figure)) return figure;
  if (figure) why_not = "the measuring process found no figure";  // no memory
  return std::nullopt;
}

}  // namespace

MachineProfile machine_profile(uint32_t n_threads, Measure measure_when) {
  MachineProfile out;
  out.cpu = cpu_model();
  out.threads = n_threads > 0 ? n_threads : usable_cores();
  const uint64_t l3 = l3_bytes();
  const bool busy = machine_is_busy();
  const auto path = cache_file("machine.json");
  const json::array entries = read_entries(path, kKey);
  double known = 0;
  int64_t tries = 1;  // on a busy machine, this one included
  if (measure_when != Measure::anew) {
    for (const auto& entry : entries) {
      if (!same_machine(entry, out, l3)) continue;
      const json::value* figure = entry.get_object().if_contains("bytes_per_second");
      if (figure == nullptr || !figure->is_double() || !plausible(figure->get_double())) continue;
      const json::value* was_busy = entry.get_object().if_contains("busy");
      const bool doubtful = was_busy != nullptr && was_busy->is_bool() && was_busy->get_bool();
      if (doubtful) {
        known = std::max(known, figure->get_double());
        const json::value* n = entry.get_object().if_contains("tries");
        if (n != nullptr && n->is_int64() && n->get_int64() > 0) tries = std::min(n->get_int64(), kTries) + 1;
        if (!busy || tries <= kTries) continue;
      }
      out.bytes_per_second = figure->get_double();
      out.note = "measured before, kept in " + path.string();
      return out;
    }
  }
  // Four times the last-level cache, so that it answers from memory; not more than touching it is worth on machines with huge shared caches.
  const uint64_t bytes = std::clamp<uint64_t>(4 * l3, 256 * kMiB, kGiB);
  if (const uint64_t free = read_memory().free_for_us(); free < 4 * bytes) {
    out.note = "memory bandwidth not measured: " + format_bytes(free) + " free, measuring wants " + format_bytes(4 * bytes);
    return out;
  }
  std::string why_not;
  const auto figure = measured_speed([&] { return measure(bytes, out.threads); }, why_not);
  if (!figure) {
    out.note = "memory bandwidth not measured: " + why_not;
    return out;
  }
  out.bytes_per_second = std::max(known, *figure);
  const bool stored = store(path, entries, out, l3, busy, tries);
  out.note = busy ? "measured now on a busy machine" : "measured now";
  out.note += stored ? ", kept in " + path.string() : "; it cannot be kept, set XDG_CACHE_HOME to a folder that can be written";
  return out;
}

Int8Peak int8_peak(uint32_t n_threads) {
  Int8Peak out;
  const auto figure = measured_speed([n = n_threads > 0 ? n_threads : usable_cores()] { return measure_int8(n); }, out.how);
  if (figure) out = {*figure, std::string(int8_loop().name)};
  return out;
}

}  // namespace fth::cli
