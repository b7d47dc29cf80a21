#pragma once
// The one pool of worker threads. CPU-like backends run on it through fth_host::parallel_for, so that they never fight for cores.
// Waiting spins for a few microseconds and then blocks (futex through std::atomic::wait): an engine that only spins collapses when another
// process holds a core (measured by others: 6.4 -> 1.0 tok/s at 2 threads).

#include <cstdint>
#include <memory>
#include <span>

namespace fth {

class Recorder;

class ThreadPool {
 public:
  // n_threads >= 1 counts the calling thread: n_threads - 1 workers are started, or as many as the system allows: n_threads() says.
  // cpus: where they may run, by the system's numbers: worker i stays on cpus[i % cpus.size()], the calling thread and what it starts later
  // (readers) on any of them. Empty: the scheduler places them. Each must be in the process's affinity mask (parse_cpus looks).
  explicit ThreadPool(uint32_t n_threads, std::span<const int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  uint32_t n_threads() const;

  // Runs body(arg, i) once for each i in [0, n), on the workers and the caller; returns when all are done. Indices are taken in ascending order, one at a time
  // as threads come free, so a thread that lost its core costs its share and no more. Callable from any one thread at a time (a second caller
  // waits); not from inside a body.
  void parallel_for(uint32_t n, void (*body)(void* arg, uint32_t i), void* arg);

  // Calls of parallel_for that woke the workers, since the start: each is a barrier. From the thread that calls parallel_for.
  uint64_t n_loops() const;

  // Where threads note when they were at work; null: nowhere. From the thread that calls parallel_for, between calls; the recorder lives until it is
  // replaced, and has a lane for each thread.
  void set_recorder(Recorder* recorder);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fth
