#pragma once
// Segments of a device compiled in a thread of their own, while the host's CPU runs them in its stead (EngineOptions::start_on_cpu). Private to this folder.
//
// A device is used by one thread at a time: while the worker is at work it has the devices whose segments it compiles, and nothing is submitted to them;
// who must call one in the meantime (memory of a session) takes lock() and waits for one compilation at most.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <future>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/device/device.h"

namespace fth {

struct Compiled;

class BackgroundCompiler {
 public:
  struct Job {
    size_t index = 0;                           // the caller's name for the segment
    std::unique_ptr<Compiled> compiled;         // gets its executable, its workspace's size and its weights' buffers
    std::vector<std::span<std::byte>> weights;  // in tensor order; they outlive the engine's devices
    const Device* device = nullptr;
    uint64_t workspace_limit = 0;
    Result<> outcome;
    double seconds = 0;  // that compiling it took
  };
  BackgroundCompiler();
  ~BackgroundCompiler();  // waits for the compilation that is under way, and leaves the others

  // Whether the segment was added at some time, done or not.
  bool knows(size_t index) const { return known_.contains(index); }
  void add(Job job);
  bool busy() const { return worker_.valid(); }
  // Begins with what was added, unless the worker is at work.
  void start();
  // What the worker has finished, once it has finished all of it; empty before. wait: until then.
  std::vector<Job> take(bool wait);
  double seconds() const;  // since start()
  void forget();           // all that was added, done or not; waits for the compilation that is under way
  [[nodiscard]] std::unique_lock<std::mutex> lock() { return std::unique_lock(devices_); }

 private:
  std::mutex devices_;              // held for each compilation
  std::atomic<bool> ends_ = false;  // nobody waits for the rest
  std::set<size_t> known_;
  std::vector<Job> waiting_;
  std::chrono::steady_clock::time_point begin_;
  std::future<std::vector<Job>> worker_;  // last: its destructor waits, and the worker uses the mutex
};

}  // namespace fth
