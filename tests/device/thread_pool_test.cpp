// The pool's promises: every index once, no lost wake-up, a barrier of microseconds, and no collapse when another process wants the cores.

#include "core/device/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

namespace fth {
namespace {

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point start) { return std::chrono::duration<double, std::micro>(Clock::now() - start).count(); }

template <class F>
void run(ThreadPool& pool, uint32_t n, F f) {
  pool.parallel_for(
      n, [](void* arg, uint32_t i) { (*static_cast<F*>(arg))(i); }, &f);
}

uint32_t cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? static_cast<uint32_t>(CPU_COUNT(&set)) : 2;
}

TEST(ThreadPool, RunsEveryIndexOnce) {
  for (uint32_t threads : {1u, 2u, 3u, 8u}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.n_threads(), threads);
    for (uint32_t n : {0u, 1u, 2u, 3u, 7u, 64u, 1000u}) {
      std::vector<int> count(n, 0);  // plain ints: the pool itself must order these writes before the return
      run(pool, n, [&](uint32_t i) { ++count[i]; });
      EXPECT_TRUE(std::all_of(count.begin(), count.end(), [](int c) { return c == 1; })) << threads << " threads, n " << n;
    }
  }
}

TEST(ThreadPool, ManySmallJobsWithPausesLoseNoWakeUp) {
  // Pauses from nothing to well past the spin, so that workers are met spinning, falling asleep and asleep.
  for (uint32_t threads : {2u, 4u}) {
    ThreadPool pool(threads);
    std::mt19937 random(7);
    uint64_t expected = 0;
    std::atomic<uint64_t> sum{0};
    for (int job = 0; job < 4000; ++job) {
      const uint32_t n = static_cast<uint32_t>(random() % 9);
      run(pool, n, [&](uint32_t i) { sum.fetch_add(i + 1, std::memory_order_relaxed); });
      expected += n * (n + 1) / 2;
      ASSERT_EQ(sum.load(), expected) << "job " << job;
      const auto pause = std::chrono::microseconds(random() % 40);
      if (random() % 4 == 0) {
        for (const auto start = Clock::now(); Clock::now() - start < pause;) {
        }
      }
    }
  }
}

TEST(ThreadPool, MakesAndEndsPoolsQuickly) {
  for (int i = 0; i < 200; ++i) {
    ThreadPool pool(3);
    std::atomic<int> ran{0};
    if (i % 2 == 0) run(pool, 5, [&](uint32_t) { ++ran; });
    EXPECT_EQ(ran.load(), i % 2 == 0 ? 5 : 0);
  }
}

TEST(ThreadPool, SecondCallerWaits) {
  ThreadPool pool(2);
  std::atomic<int> inside{0}, ran{0};
  std::atomic<bool> overlapped{false};
  const auto caller = [&] {
    for (int i = 0; i < 200; ++i) {
      std::atomic<int> mine{0};
      run(pool, 4, [&](uint32_t) {
        ++mine;
        ++ran;
      });
      if (mine != 4) overlapped = true;
    }
    ++inside;
  };
  std::thread other(caller);
  caller();
  other.join();
  EXPECT_EQ(inside.load(), 2);
  EXPECT_EQ(ran.load(), 2 * 200 * 4);
  EXPECT_FALSE(overlapped.load());
}

TEST(ThreadPool, UnevenWorkIsTakenAsThreadsComeFree) {
  ThreadPool pool(2);
  // One index sleeps; the other thread must take all the others meanwhile.
  std::atomic<int> others_done{0};
  int seen_at_end = 0;
  run(pool, 50, [&](uint32_t i) {
    if (i != 0) {
      ++others_done;
      return;
    }
    const auto start = Clock::now();
    while (others_done.load() < 49 && us_since(start) < 5e6) std::this_thread::yield();
    seen_at_end = others_done.load();
  });
  EXPECT_EQ(seen_at_end, 49);
}

// In counted time, so that what else runs on the machine does not matter: an index on the worker lasts as long as eight on the caller. The worker must not
// take one of the last, which the caller would then wait for.
TEST(ThreadPool, ASlowThreadLeavesTheLastIndicesToTheOthers) {
  constexpr int kSlow = 8;
  ThreadPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  int by_worker = 0, worst = 0;
  for (int n = 48; n < 80; ++n) {
    std::atomic<int> credit{0}, done{0},
        started{0};  // caller's indices until the worker's ends; indices done by the caller; started by the worker
    bool gone = false;
    run(pool, static_cast<uint32_t>(n), [&](uint32_t) {
      const auto start = Clock::now();
      if (std::this_thread::get_id() == caller) {
        // Nothing tells that the worker has left. If it was only held up it looks slower still.
        while (!gone && credit.load() == 0 && us_since(start) < 50e3) std::this_thread::yield();
        if (credit.load() > 0) {
          --credit;
        } else {
          gone = true;
        }
        ++done;
        return;
      }
      ++started;
      credit = kSlow;
      while (credit.load() > 0 && done.load() + started.load() < n && us_since(start) < 10e6) std::this_thread::yield();
      worst = std::max(worst, credit.exchange(0));
      ++by_worker;
    });
    EXPECT_EQ(done + started, n);
  }
  std::printf("%d indices on the slow thread, which was waited for %d indices long at most\n", by_worker, worst);
  EXPECT_GE(by_worker, 32 * 3);  // of 5 to 8 in each loop: it works
  EXPECT_LE(worst, 3);           // 7 if it takes whatever is left
}

TEST(ThreadPool, WorkersAreNamed) {
  ThreadPool pool(2);
  std::atomic<bool> named{false};
  const auto start = Clock::now();
  while (!named && us_since(start) < 10e6) {
    run(pool, 64, [&](uint32_t) {
      std::string name;
      std::ifstream("/proc/thread-self/comm") >> name;
      if (name == "fth-worker") named = true;
    });
  }
  EXPECT_TRUE(named.load());
}

TEST(ThreadPool, ThreadsStayOnTheCpusThatAreNamed) {
  cpu_set_t before;
  CPU_ZERO(&before);
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  std::vector<int> allowed;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<size_t>(cpu), &before)) allowed.push_back(cpu);
  if (allowed.size() < 2) GTEST_SKIP() << "one CPU";
  // In a thread of its own: the caller's mask changes for good.
  std::thread([&] {
    const std::vector<int> cpus = {allowed[1], allowed[0]};
    ThreadPool pool(2, cpus);
    std::atomic<bool> worker_seen{false}, elsewhere{false};
    const std::thread::id caller = std::this_thread::get_id();
    for (const auto start = Clock::now(); !worker_seen && us_since(start) < 10e6;) {
      run(pool, 64, [&](uint32_t) {
        if (std::this_thread::get_id() == caller) return;
        if (sched_getcpu() != cpus[1]) elsewhere = true;
        worker_seen = true;
      });
    }
    EXPECT_TRUE(worker_seen.load());
    EXPECT_FALSE(elsewhere.load());
    cpu_set_t mine;
    CPU_ZERO(&mine);
    ASSERT_EQ(sched_getaffinity(0, sizeof mine, &mine), 0);
    EXPECT_EQ(CPU_COUNT(&mine), 2);
  }).join();
}

// Median microseconds of one parallel_for with trivial bodies, one index per thread.
double median_barrier_us(ThreadPool& pool, int jobs) {
  std::vector<double> us(static_cast<size_t>(jobs));
  for (double& t : us) {
    const auto start = Clock::now();
    run(pool, pool.n_threads(), [](uint32_t) {});
    t = us_since(start);
  }
  std::nth_element(us.begin(), us.begin() + jobs / 2, us.end());
  return us[static_cast<size_t>(jobs / 2)];
}

TEST(ThreadPool, BarrierCostsMicroseconds) {
  ThreadPool pool(std::min(4u, cores()));
  median_barrier_us(pool, 1000);
  const double us = median_barrier_us(pool, 20000);
  std::printf("barrier of %u threads: median %.2f us\n", pool.n_threads(), us);
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  EXPECT_LT(us, 1000.0);
#else
  EXPECT_LT(us, 50.0);
#endif
}

TEST(ThreadPool, WakingSleepersCostsMicroseconds) {
  ThreadPool pool(std::min(4u, cores()));
  std::vector<double> us(500);
  for (double& t : us) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));  // well past the spin
    const auto start = Clock::now();
    run(pool, pool.n_threads(), [](uint32_t) {});
    t = us_since(start);
  }
  std::nth_element(us.begin(), us.begin() + 250, us.end());
  std::printf("barrier of %u threads, workers asleep: median %.2f us\n", pool.n_threads(), us[250]);
  EXPECT_LT(us[250], 2000.0);
}

// Per-job microseconds of `jobs` parallel_fors of about 20 us of work on each thread.
double job_us(ThreadPool& pool, int jobs) {
  const auto start = Clock::now();
  for (int j = 0; j < jobs; ++j)
    run(pool, 4 * pool.n_threads(), [](uint32_t) {
      for (const auto begin = Clock::now(); us_since(begin) < 5.0;) {
      }
    });
  return us_since(start) / jobs;
}

TEST(ThreadPool, DoesNotCollapseBesideBusyThreads) {
  const uint32_t n = std::min(4u, cores());
  ThreadPool pool(n);
  const double alone = job_us(pool, 500);
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  for (int cpu = 0; cpu < CPU_SETSIZE && busy.size() < n; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    busy.emplace_back([&stop, cpu] {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      sched_setaffinity(0, sizeof one, &one);
      while (!stop.load(std::memory_order_relaxed)) {
      }
    });
  }
  const double beside = job_us(pool, 500);
  stop = true;
  for (std::thread& t : busy) t.join();
  std::printf("one job: %.1f us alone, %.1f us beside a busy thread on each of %u cores (%.1fx)\n", alone, beside, n, beside / alone);
  // Half of each core is gone, so 2x is fair; a pool that only spins loses a scheduler slice (3 to 4 ms) at most barriers, 100x and more.
  EXPECT_LT(beside, 30 * std::max(alone, 20.0));
}

}  // namespace
}  // namespace fth
