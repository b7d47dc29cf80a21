#pragma once
// What happened when, for `forethought profile` and `--trace`: events of fixed size in lanes that are allocated before anything runs. A lane has one
// writer and no lock; whoever records holds a Recorder pointer, null when nothing is recorded. Events are read when no step runs.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace fth {

enum class EventKind : uint8_t {
  step,     // one pass over the layers: a token, or the tokens of a prefill step. id: its first position
  segment,  // one run of a segment, from submit until its results are there
  queue,    // the same on its device's lane, for devices other than the host's CPU. id: 0 if by the device's own clock, else -1
  busy,     // a thread of the pool, other than the engine's, at work in a parallel loop of the segment
  wait,  // the engine's thread done with its part of the loop, others not yet; with a device other than 0: it waits for a segment that was left running there
  copy,  // an activation moved between memories
  route,    // choosing experts from the router's logits
  request,  // asking the expert store for a layer's experts
  stall,    // waiting for storage
  read,     // one expert read from storage, from its first read's submission until its last has come. id: the expert
  sample,   // choosing the next token
  counter,  // bytes: the value at begin_ns
  beside,  // on its device's lane, a segment left running while the engine's thread did something else, until waited for. id 1: it ended then, its time is exact
};

struct Event {
  const char* name = "";             // static storage: "attention", "decode", "memory"
  int64_t begin_ns = 0, end_ns = 0;  // of the steady clock
  int64_t cpu_ns = -1;               // CPU time that all threads of the process took meanwhile; -1: not measured
  uint64_t bytes = 0;                // read or moved
  uint64_t flops = 0;  // two for each multiplication and addition of products, attention and experts; experts counted as if dense
  int32_t layer = -1, id = -1;
  int32_t rows = 0;  // tokens
  int16_t bucket = 0;
  EventKind kind = EventKind::step;
  uint8_t device = 0;  // index into Recorder::devices()
};
static_assert(sizeof(Event) == 64);

class alignas(64) Lane {
 public:
  Lane(std::string name, size_t capacity)
      : name_(std::move(name)), capacity_(capacity), storage_(std::make_unique_for_overwrite<std::byte[]>(capacity * sizeof(Event))) {}
  // The lane's one writer. A full lane keeps what it has and counts what it drops.
  void add(const Event& e) {
    if (n_ < capacity_)
      new (storage_.get() + sizeof(Event) * n_++) Event(e);
    else
      ++dropped_;
  }
  const std::string& name() const { return name_; }
  std::span<const Event> events() const { return {reinterpret_cast<const Event*>(storage_.get()), n_}; }
  uint64_t dropped() const { return dropped_; }
  void clear() { n_ = dropped_ = 0; }

 private:
  std::string name_;
  size_t capacity_ = 0, n_ = 0;
  uint64_t dropped_ = 0;
  std::unique_ptr<std::byte[]> storage_;  // raw: pages that hold no event are never touched
};

struct RecorderShape {
  uint32_t n_threads = 1;            // of the pool, the engine's thread included
  std::vector<std::string> devices;  // names, as the registry has them
  size_t events_per_lane = size_t{1} << 17;
};

class Recorder {
 public:
  explicit Recorder(const RecorderShape& shape);
  ~Recorder();
  Recorder(const Recorder&) = delete;
  Recorder& operator=(const Recorder&) = delete;

  using Clock = std::chrono::steady_clock;
  static int64_t ns(Clock::time_point t) { return std::chrono::duration_cast<std::chrono::nanoseconds>(t.time_since_epoch()).count(); }
  static int64_t now() { return ns(Clock::now()); }

  // The engine's thread alone.
  Lane& engine() { return *lanes_[0]; }
  Lane& device(size_t d) { return *lanes_[n_threads_ + d]; }
  Lane& storage() { return *lanes_[n_threads_ + devices_.size()]; }
  Lane& counters() { return *lanes_[n_threads_ + devices_.size() + 1]; }
  // What loop() names its events after. Not while a parallel loop runs.
  void set_segment(const char* name, int64_t layer, int64_t bucket);
  // Whether CPU time is taken with each segment and step: two system calls each, about 2 us, too much for a timing.
  void set_cpu_clocks(bool on);
  int64_t cpu_now() const;                    // -1 when they are off
  int64_t cpu_since(int64_t begin_ns) const;  // CPU time since a cpu_now(), less what asking takes; -1 when that was -1
  // Resident memory and page faults of the process; at most every 10 ms, because the system takes microseconds to say them.
  void sample_counters();
  void clear();

  // A thread's part in a parallel loop that has not returned: kind is busy on thread 1 and later, wait on thread 0, the loop's caller.
  void loop(uint32_t thread, EventKind kind, int64_t begin_ns, int64_t end_ns);

  uint32_t n_threads() const { return n_threads_; }
  const std::vector<std::string>& devices() const { return devices_; }
  const Lane& engine() const { return *lanes_[0]; }
  const Lane& worker(uint32_t thread) const { return *lanes_[thread]; }
  const Lane& device(size_t d) const { return *lanes_[n_threads_ + d]; }
  const Lane& storage() const { return *lanes_[n_threads_ + devices_.size()]; }
  const Lane& counters() const { return *lanes_[n_threads_ + devices_.size() + 1]; }
  uint64_t dropped() const;  // events that found their lane full

 private:
  uint32_t n_threads_;
  std::vector<std::string> devices_;
  std::vector<std::unique_ptr<Lane>> lanes_;  // engine, workers, devices, storage, counters
  Event segment_;
  bool cpu_clocks_ = false;
  int64_t cpu_cost_ = 0;
  int64_t counters_at_ = 0;
  int statm_ = -1;  // /proc/self/statm, kept open
};

// Notes its own life on the engine's lane; nothing without a recorder.
class Scope {
 public:
  Scope(Recorder* recorder, EventKind kind, const char* name) : recorder_(recorder) {
    if (recorder_ == nullptr) return;
    event_.kind = kind;
    event_.name = name;
    event_.begin_ns = Recorder::now();
  }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() {
    if (recorder_ == nullptr) return;
    event_.end_ns = Recorder::now();
    recorder_->engine().add(event_);
  }

 private:
  Recorder* recorder_;
  Event event_;
};

}  // namespace fth
