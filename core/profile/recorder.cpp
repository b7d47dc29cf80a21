// Clocks and counters of the recorder; adding an event is inline.
#include "core/profile/recorder.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace fth {
namespace {

constexpr int64_t kCountersEvery = 10'000'000;

}  // namespace

Recorder::Recorder(const RecorderShape& shape) : n_threads_(std::max(1u, shape.n_threads)), devices_(shape.devices) {
  const auto lane = [&](std::string name, size_t capacity) { lanes_.push_back(std::make_unique<Lane>(std::move(name), capacity)); };
  lane("engine", shape.events_per_lane);
  for (uint32_t i = 1; i < n_threads_; ++i) lane("worker " + std::to_string(i), shape.events_per_lane);
  for (const std::string& name : devices_) lane(name, shape.events_per_lane);
  lane("storage", shape.events_per_lane);
  lane("counters", shape.events_per_lane);
  statm_ = ::open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
}

Recorder::~Recorder() {
  if (statm_ >= 0) ::close(statm_);
}

int64_t Recorder::cpu_now() const {
  timespec t{};
  if (!cpu_clocks_ || ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) != 0) return -1;
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

void Recorder::set_cpu_clocks(bool on) {
  cpu_clocks_ = on;
  if (!on) return;
  cpu_cost_ = INT64_MAX;
  for (int i = 0; i < 16; ++i) {
    const int64_t begin = cpu_now();
    cpu_cost_ = std::min(cpu_cost_, cpu_now() - begin);
  }
}

int64_t Recorder::cpu_since(int64_t begin_ns) const { return begin_ns < 0 ? -1 : std::max<int64_t>(cpu_now() - begin_ns - cpu_cost_, 0); }

void Recorder::set_segment(const char* name, int64_t layer, int64_t bucket) {
  segment_.name = name;
  segment_.layer = static_cast<int32_t>(layer);
  segment_.bucket = static_cast<int16_t>(bucket);
}

void Recorder::loop(uint32_t thread, EventKind kind, int64_t begin_ns, int64_t end_ns) {
  Event e = segment_;
  e.kind = kind;
  e.begin_ns = begin_ns;
  e.end_ns = end_ns;
  lanes_[thread]->add(e);
}

void Recorder::sample_counters() {
  const int64_t at = now();
  if (counters_at_ != 0 && at - counters_at_ < kCountersEvery) return;
  counters_at_ = at;
  Event e;
  e.kind = EventKind::counter;
  e.begin_ns = e.end_ns = at;
  char text[64] = {};
  if (statm_ >= 0 && ::pread(statm_, text, sizeof text - 1, 0) > 0) {
    char* second = nullptr;
    (void)std::strtoull(text, &second, 10);
    e.name = "memory";
    e.bytes = std::strtoull(second, nullptr, 10) * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    counters().add(e);
  }
  rusage usage{};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return;
  e.name = "minor faults";
  e.bytes = static_cast<uint64_t>(usage.ru_minflt);
  counters().add(e);
  e.name = "major faults";
  e.bytes = static_cast<uint64_t>(usage.ru_majflt);
  counters().add(e);
}

void Recorder::clear() {
  for (const auto& lane : lanes_) lane->clear();
}

uint64_t Recorder::dropped() const {
  uint64_t n = 0;
  for (const auto& lane : lanes_) n += lane->dropped();
  return n;
}

}  // namespace fth
