// Mode leaks: what is made through the boundary and freed again, many times over, leaves nothing in the process. Needs nothing of the backend but the boundary.
//
// Counted are bytes of the heap, mapped memory, open files, threads, memory that the device says is free, and what the plugin logs as an error (a validation
// layer names objects that outlive their device). A first use may keep something (caches, pools, code that a driver compiled); a leak keeps something every
// time. So each loop has turns that are not counted, then three windows of as many, and what is judged is the least growth of the three.

#include <malloc.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>

#include "tests/conformance/suite.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FTH_SANITIZED_HEAP
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FTH_SANITIZED_HEAP
#endif
#ifdef FTH_SANITIZED_HEAP
extern "C" size_t __sanitizer_get_current_allocated_bytes();  // of the runtime; g++ comes without its header
constexpr double kLeastBlock = 1;                             // counted as asked for
#else
constexpr double kLeastBlock = 24;
#endif

namespace fth::conformance {
namespace {

constexpr int kWindows = 4;                         // the first is not counted
constexpr uint64_t kBufferBytes = (1u << 20) + 13;  // no whole word, and large enough to be seen whatever a driver rounds to

int64_t heap_bytes() {
#ifdef FTH_SANITIZED_HEAP
  return static_cast<int64_t>(__sanitizer_get_current_allocated_bytes());
#else
  const struct mallinfo2 m = mallinfo2();
  return static_cast<int64_t>(m.uordblks + m.hblkhd);
#endif
}

int64_t mapped_bytes() {
#ifdef FTH_SANITIZED_HEAP
  return 0;  // the sanitizer maps as it likes, and sees leaks by itself
#else
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  return pages * 4096;
#endif
}

int64_t entries(const char* folder) {
  std::error_code ignored;
  return std::distance(std::filesystem::directory_iterator(folder, ignored), std::filesystem::directory_iterator{});
}

struct Count {
  const char* what;
  double limit;  // a turn may keep less than this
};
// A leaked object of any kind is a block of the heap or more; a heap that is not always laid out alike maps and unmaps some pages.
constexpr std::array<Count, 5> kCounts = {
    {{"bytes of heap", kLeastBlock}, {"mapped bytes", 32768}, {"open files", 0.5}, {"threads", 0.5}, {"bytes of the device", 65536}}};
using Counts = std::array<int64_t, kCounts.size()>;

Result<Counts> count(const Device& device) {
  Counts c{heap_bytes(), mapped_bytes(), entries("/proc/self/fd"), entries("/proc/self/task"), 0};
  if (device.reads_host_memory()) return c;  // free memory of the machine, which others use too
  FTH_ASSIGN_OR_RETURN(const fth_device_info info, device.info_now());
  c[4] = -static_cast<int64_t>(info.free_bytes);
  return c;
}

struct Loop {
  std::string name;
  int turns;
  std::function<Result<>()> once;
  bool opens_devices = false;
};

// What each turn kept, by kCounts.
Result<std::array<double, kCounts.size()>> kept(const Device& device, const Loop& loop) {
  std::array<double, kCounts.size()> least{};
  Counts before{};
  for (int window = 0; window < kWindows; ++window) {
    for (int i = 0; i < loop.turns; ++i) FTH_RETURN_IF_ERROR(loop.once());
    FTH_ASSIGN_OR_RETURN(const Counts now, count(device));
    for (size_t k = 0; k < now.size() && window > 0; ++k) {
      const double grown = static_cast<double>(now[k] - before[k]) / loop.turns;
      least[k] = window == 1 ? grown : std::min(least[k], grown);
    }
    before = now;
  }
  return least;
}

template <class T>
Result<> outcome(const Result<T>& r) {
  if (r) return {};
  return tl::unexpected<Error>(r.error());
}

// What grows with every turn, in words; empty where nothing does. heap_allowed: bytes of heap that each turn may keep.
std::string what_grows(const Backend& backend, const Loop& loop, double heap_allowed) {
  const int errors = backend.errors();
  const auto grown = kept(backend.device(), loop);
  std::string what = grown ? "" : grown.error().message;
  for (size_t k = 0; grown && k < kCounts.size(); ++k) {
    if ((*grown)[k] < std::max(kCounts[k].limit, k == 0 ? heap_allowed : 0)) continue;
    char text[96];
    std::snprintf(text, sizeof text, "%s%.1f %s each time", what.empty() ? "keeps " : ", ", (*grown)[k], kCounts[k].what);
    what += text;
  }
  if (const int n = backend.errors() - errors; n > 0) what += (what.empty() ? "" : ", ") + std::to_string(n) + " errors logged";
  return what;
}

// A call that must fail, and does so without leaving anything.
Result<> refused(const Result<>& r, const char* what) {
  if (!r) return {};
  return fail(Code::internal, std::string(what) + " is accepted");
}

}  // namespace

int run_leaks(const Backend& backend, const SuiteOptions& options, std::span<const Case> cases) {
  const Device& device = backend.device();
  std::vector<Loop> loops;
  std::vector<Problem> problems;
  int n_refused = 0;
  for (const Case& c : cases) {
    if (!glob_match(options.filter, c.text)) continue;
    Result<Problem> p = build(c);
    const Result<fth_estimate> e = p ? device.estimate(p->segment().segment) : Result<fth_estimate>(tl::unexpected<Error>(p.error()));
    if (!e && e.error().code != Code::unimplemented) {
      std::printf("FAIL %s\n     %s\n", c.text.c_str(), e.error().message.c_str());
      return 1;
    }
    n_refused += !e;
    if (e) problems.push_back(*std::move(p));
  }
  const auto open_and_run = [&]() -> Result<> {
    FTH_ASSIGN_OR_RETURN(const Device other, Device::open(device.api(), options.backend.device, options.backend.options.c_str()));
    if (!problems.empty()) FTH_RETURN_IF_ERROR(outcome(run_once(other, problems.front())));
    return {};
  };
  loops.push_back({"a device opened, used, closed", 6, open_and_run, true});
  loops.push_back({"an option that nobody knows", 32, [&] {
                     return refused(outcome(Device::open(device.api(), options.backend.device, "no_such_option=1")), "no_such_option=1");
                   }});
  std::vector<std::byte> bytes(kBufferBytes, std::byte{1});
  loops.push_back({"a buffer written, read, freed", 32, [&]() -> Result<> {
                     FTH_ASSIGN_OR_RETURN(const Buffer b, device.alloc(kBufferBytes));
                     FTH_RETURN_IF_ERROR(b.write(0, bytes.data(), kBufferBytes));
                     FTH_RETURN_IF_ERROR(refused(b.write(kBufferBytes, bytes.data(), 1), "a write past the end"));
                     return b.read(0, bytes.data(), kBufferBytes);
                   }});
  loops.push_back({"a buffer larger than any memory", 32, [&] { return refused(outcome(device.alloc(uint64_t{1} << 60)), "2^60 bytes"); }});
  if (device.reads_host_memory())
    loops.push_back({"host memory lent and taken back", 64, [&] { return outcome(device.import_host(bytes.data(), 1 << 20)); }});
  std::vector<Prepared> prepared;
  for (const Problem& p : problems) {
    loops.push_back({"compiled, run, released: " + p.name, 16, [&] { return outcome(run_once(device, p)); }});
    loops.push_back({"estimated, compiled with a binding too many: " + p.name, 32, [&]() -> Result<> {
                       const Problem::Segment s = p.segment();
                       FTH_RETURN_IF_ERROR(outcome(device.estimate(s.segment)));
                       const auto weights = std::count_if(p.tensors.begin(), p.tensors.end(),
                                                          [](const Tensor& t) { return t.desc.role == FTH_ROLE_WEIGHT; });
                       const std::vector<fth_binding> too_many(static_cast<size_t>(weights) + 1);
                       return refused(outcome(device.compile(s.segment, too_many)), "a binding too many");
                     }});
    Result<Prepared> ready = Prepared::make(device, p);
    if (!ready) {
      std::printf("FAIL %s\n     %s\n", p.name.c_str(), ready.error().message.c_str());
      return 1;
    }
    prepared.push_back(*std::move(ready));
  }
  for (size_t i = 0; i < prepared.size(); ++i)
    loops.push_back({"run again: " + problems[i].name, 64, [&prepared, i] { return prepared[i].run(); }});

  int leaks = 0;
  for (const Loop& loop : loops) {
    std::string what;
    // The heap's own caches of small blocks count as in use (CTest turns them off): what grew for that reason does not grow again.
    for (int tries = 0; tries < 3; ++tries) {
      what = what_grows(backend, loop, loop.opens_devices ? options.device_keeps : 0);
      if (what.empty()) break;
    }
    std::printf("%s %4d x %s%s%s\n", what.empty() ? "ok  " : "LEAK", kWindows * loop.turns, loop.name.c_str(),
                what.empty() ? "" : "\n     ", what.c_str());
    std::fflush(stdout);
    leaks += !what.empty();
  }
  std::printf("%zu loops, %d leak; %zu segments run, %d refused by the device\n", loops.size(), leaks, problems.size(), n_refused);
  return leaks > 0 ? 1 : 0;
}

}  // namespace fth::conformance
