// The pool's job slot is reused, so nothing of a job is ever freed under a late worker: a worker touches the job's fields only after it claimed
// an index of it, and a job with a claimed index cannot end.

#include "core/device/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "core/base/check.h"
#include "core/base/relax.h"
#include "core/profile/recorder.h"

namespace fth {
namespace {

// Long enough to bridge the serial code between two ops of a decode step, short enough that a thread whose core is wanted elsewhere loses
// nothing that a scheduler would notice.
constexpr std::chrono::microseconds kSpin{10};

// Spins until done() or until kSpin is over. A pause costs 10 to 50 ns depending on the CPU, hence the clock beside the count.
template <class Done>
bool spin_until(Done done) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

uint32_t cpus_allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return std::max(1u, std::thread::hardware_concurrency());
  return static_cast<uint32_t>(CPU_COUNT(&set));
}

}  // namespace

struct ThreadPool::Impl {
  // The job. Written by the caller while no index is claimable; read after a claim.
  void (*body)(void*, uint32_t) = nullptr;
  void* arg = nullptr;
  uint32_t n = 0;
  Recorder* recorder = nullptr;
  std::thread::id recording;  // who set it and writes to its first lane: no other thread's parallel_for does

  // Indices left, plus kNone. A claim subtracts 1 and got index n - left if what it saw was above kNone. Threads that come too late push it
  // below kNone, each at most twice a job, so it never reaches 0. The caller's release store pairs with the claim's acquire.
  static constexpr uint64_t kNone = uint64_t{1} << 32;
  alignas(64) std::atomic<uint64_t> left{kNone};
  alignas(64) std::atomic<uint32_t> unfinished{0};  // indices whose body has not returned; the last one wakes the caller
  alignas(64) std::atomic<uint32_t> epoch{0};       // one more for each job, and for the end; idle workers wait for it to change
  std::atomic<bool> stop{false};

  bool spin = true;
  std::mutex caller;     // one parallel_for at a time
  uint64_t n_loops = 0;  // under `caller`
  std::vector<std::thread> workers;

  // Whether a thread that ran `ran` indices while `taken` were taken in all had better leave the rest, `rest` >= 1 of them, to the others: they would be done
  // with all of it before this thread with one (a slow core of a hybrid processor, or one that another process shares). What they took, less the one that
  // each may be at, over what this one ran is how much faster they are; expected from now on, in their time for an index: rest / others + 1 - 1 / (2 others).
  // The one that ran most never leaves, as it needs others that ran more: every index has its thread.
  bool leaves_rest(uint64_t ran, uint64_t taken, uint64_t rest) const {
    const uint64_t others = workers.size(), theirs = taken - ran;
    return theirs > others && 2 * (theirs - others) > ran * (2 * rest + 2 * others - 1);
  }

  // Runs indices until none is left for this thread; returns how many.
  uint32_t drain(uint32_t thread) {
    uint32_t ran = 0;
    int64_t begin = -1;
    uint64_t first = 0;  // what the first claim saw
    for (uint64_t now; (now = left.load(std::memory_order_relaxed)) > kNone;) {
      if (ran > 0 && leaves_rest(ran, first - now, now - kNone)) break;
      const uint64_t seen = left.fetch_sub(1, std::memory_order_acq_rel);
      if (seen <= kNone) break;
      if (ran == 0) {
        first = seen;
        if (thread > 0 && recorder != nullptr) begin = Recorder::now();
      }
      body(arg, n - static_cast<uint32_t>(seen - kNone));
      ++ran;
    }
    if (begin >= 0) recorder->loop(thread, EventKind::busy, begin, Recorder::now());  // before finish(): the job cannot end meanwhile
    return ran;
  }

  // seq_cst, here and on `epoch`: a notify looks for sleepers after the change, a sleeper looks for the change after it has said that it sleeps.
  bool finish(uint32_t ran) { return ran > 0 && unfinished.fetch_sub(ran, std::memory_order_seq_cst) == ran; }

  // Until every index is done.
  void wait() {
    const auto done = [&] { return unfinished.load(std::memory_order_acquire) == 0; };
    if (spin && spin_until(done)) return;
    for (uint32_t still = unfinished.load(std::memory_order_acquire); still != 0; still = unfinished.load(std::memory_order_acquire))
      unfinished.wait(still, std::memory_order_seq_cst);
  }

  void work(uint32_t thread) {
    uint32_t seen = 0;
    for (;;) {
      const auto changed = [&] { return epoch.load(std::memory_order_acquire) != seen; };
      if (!(spin ? spin_until(changed) : changed())) epoch.wait(seen, std::memory_order_seq_cst);
      seen = epoch.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_acquire)) return;
      if (finish(drain(thread))) unfinished.notify_one();
    }
  }
};

namespace {

void stay_on(pthread_t thread, std::span<const int> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(static_cast<size_t>(cpu), &set);
  pthread_setaffinity_np(thread, sizeof set, &set);
}

}  // namespace

ThreadPool::ThreadPool(uint32_t n_threads, std::span<const int> cpus) : impl_(std::make_unique<Impl>()) {
  FTH_CHECK(n_threads >= 1, "a pool has at least the calling thread");
  // With more threads than cores a spinning thread holds the core that the thread it waits for needs.
  impl_->spin = n_threads <= (cpus.empty() ? cpus_allowed() : static_cast<uint32_t>(cpus.size()));
  if (!cpus.empty()) stay_on(pthread_self(), cpus);
  // Signals are the program's own threads' business: workers are started with all of them blocked.
  sigset_t all, before;
  sigfillset(&all);
  // But for a fault of the thread's own, such as SIGBUS on a page of a file that was cut: blocked, it ends the process before any handler is asked.
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    impl_->workers.reserve(n_threads - 1);
    for (uint32_t i = 1; i < n_threads; ++i) {
      impl_->workers.emplace_back([impl = impl_.get(), i] { impl->work(i); });
      pthread_setname_np(impl_->workers.back().native_handle(), "fth-worker");
      if (!cpus.empty()) stay_on(impl_->workers.back().native_handle(), cpus.subspan(i % cpus.size(), 1));
    }
  } catch (const std::system_error&) {
    // A process limit on threads: the pool is as large as it could be made, and n_threads() says so.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_release);
  impl_->epoch.fetch_add(1, std::memory_order_seq_cst);
  impl_->epoch.notify_all();
  for (std::thread& worker : impl_->workers) worker.join();
}

uint32_t ThreadPool::n_threads() const { return static_cast<uint32_t>(impl_->workers.size()) + 1; }

uint64_t ThreadPool::n_loops() const {
  const std::lock_guard lock(impl_->caller);
  return impl_->n_loops;
}

void ThreadPool::set_recorder(Recorder* recorder) {
  FTH_CHECK(recorder == nullptr || recorder->n_threads() >= n_threads(), "a recorder has a lane for each thread of the pool");
  const std::lock_guard lock(impl_->caller);
  impl_->recorder = recorder;
  impl_->recording = std::this_thread::get_id();
}

void ThreadPool::parallel_for(uint32_t n, void (*body)(void* arg, uint32_t i), void* arg) {
  Impl& p = *impl_;
  if (n <= 1 || p.workers.empty()) {
    for (uint32_t i = 0; i < n; ++i) body(arg, i);
    return;
  }
  const std::lock_guard lock(p.caller);
  ++p.n_loops;
  p.body = body;
  p.arg = arg;
  p.n = n;
  p.unfinished.store(n, std::memory_order_relaxed);
  p.left.store(Impl::kNone + n, std::memory_order_release);
  p.epoch.fetch_add(1, std::memory_order_seq_cst);
  // Neither call enters the kernel when every worker still spins.
  if (n - 1 >= p.workers.size()) {
    p.epoch.notify_all();
  } else {
    for (uint32_t i = 1; i < n; ++i) p.epoch.notify_one();
  }

  if (p.finish(p.drain(0))) return;
  if (p.recorder == nullptr || p.recording != std::this_thread::get_id()) return p.wait();
  const int64_t begin = Recorder::now();  // costs nothing: there is nothing else to do
  p.wait();
  p.recorder->loop(0, EventKind::wait, begin, Recorder::now());
}

}  // namespace fth
