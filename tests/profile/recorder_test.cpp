// Lanes keep what they have room for; the pool's threads note when they worked, and only then.
#include "core/profile/recorder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <thread>

#include "core/device/thread_pool.h"

namespace fth {
namespace {

TEST(Lane, KeepsWhatItHasRoomForAndCountsTheRest) {
  Lane lane("engine", 3);
  Event e;
  for (int32_t i = 0; i < 5; ++i) {
    e.id = i;
    lane.add(e);
  }
  ASSERT_EQ(lane.events().size(), 3u);
  for (int32_t i = 0; i < 3; ++i) EXPECT_EQ(lane.events()[static_cast<size_t>(i)].id, i);
  EXPECT_EQ(lane.dropped(), 2u);
  lane.clear();
  EXPECT_TRUE(lane.events().empty());
  EXPECT_EQ(lane.dropped(), 0u);
}

TEST(Recorder, HasALaneForEachThreadAndDevice) {
  Recorder r({3, {"cpu", "vulkan:0"}, 4});
  EXPECT_EQ(r.n_threads(), 3u);
  std::set<const Lane*> lanes = {&r.engine(), &r.storage(), &r.counters(), &r.device(0), &r.device(1)};
  const Recorder& c = r;
  EXPECT_EQ(&c.worker(0), &c.engine());
  lanes.insert({&c.worker(1), &c.worker(2)});
  EXPECT_EQ(lanes.size(), 7u);
  for (int i = 0; i < 6; ++i) r.engine().add({});
  r.device(1).add({});
  EXPECT_EQ(r.dropped(), 2u);
}

TEST(Recorder, ScopeNotesItsLife) {
  Recorder r({1, {}, 4});
  const int64_t before = Recorder::now();
  { const Scope scope(&r, EventKind::sample, "sample"); }
  { const Scope scope(nullptr, EventKind::sample, "sample"); }
  ASSERT_EQ(r.engine().events().size(), 1u);
  const Event& e = r.engine().events()[0];
  EXPECT_STREQ(e.name, "sample");
  EXPECT_LE(before, e.begin_ns);
  EXPECT_LE(e.begin_ns, e.end_ns);
  EXPECT_LE(e.end_ns, Recorder::now());
}

TEST(Recorder, CpuClocksOnlyWhenAskedFor) {
  Recorder r({1, {}, 4});
  EXPECT_EQ(r.cpu_now(), -1);
  r.set_cpu_clocks(true);
  const int64_t before = r.cpu_now();
  EXPECT_GE(before, 0);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  while (std::chrono::steady_clock::now() < end) {
  }
  EXPECT_GT(r.cpu_now(), before);
}

TEST(Recorder, CountersAreSampledNotTooOften) {
  Recorder r({1, {}, 64});
  for (int i = 0; i < 10; ++i) r.sample_counters();
  const size_t once = r.counters().events().size();
  EXPECT_EQ(once, 3u) << "memory, minor faults, major faults";
  EXPECT_STREQ(r.counters().events()[0].name, "memory");
  EXPECT_GT(r.counters().events()[0].bytes, uint64_t{1} << 20);
  std::this_thread::sleep_for(std::chrono::milliseconds(12));
  r.sample_counters();
  EXPECT_EQ(r.counters().events().size(), 2 * once);
}

// Bodies that wait for each other: every thread of the pool has to take part.
struct Meet {
  std::atomic<uint32_t> arrived{0};
  uint32_t n = 0;
  static void body(void* self, uint32_t) {
    auto& m = *static_cast<Meet*>(self);
    m.arrived.fetch_add(1);
    while (m.arrived.load() < m.n) std::this_thread::yield();
  }
};

TEST(Recorder, EachThreadOfThePoolNotesItsPart) {
  ThreadPool pool(3);
  ASSERT_EQ(pool.n_threads(), 3u);
  Recorder r({3, {}, 64});
  pool.set_recorder(&r);
  r.set_segment("attention", 7, 8);
  const int64_t before = Recorder::now();
  Meet meet;
  meet.n = 3;
  pool.parallel_for(3, Meet::body, &meet);
  const int64_t after = Recorder::now();
  const Recorder& read = r;
  for (uint32_t t = 1; t < 3; ++t) {
    ASSERT_EQ(read.worker(t).events().size(), 1u) << "thread " << t;
    const Event& e = read.worker(t).events()[0];
    EXPECT_EQ(e.kind, EventKind::busy);
    EXPECT_STREQ(e.name, "attention");
    EXPECT_EQ(e.layer, 7);
    EXPECT_EQ(e.bucket, 8);
    EXPECT_LE(before, e.begin_ns);
    EXPECT_LT(e.begin_ns, e.end_ns);
    EXPECT_LE(e.end_ns, after);
  }
  for (const Event& e : r.engine().events()) EXPECT_EQ(e.kind, EventKind::wait) << "the caller notes only that it waited, if it did";
  pool.set_recorder(nullptr);
  meet.arrived = 0;
  pool.parallel_for(3, Meet::body, &meet);
  EXPECT_EQ(read.worker(1).events().size(), 1u) << "nothing is noted without a recorder";
}

TEST(Recorder, TheCallerNotesItsWait) {
  ThreadPool pool(2);
  Recorder r({2, {}, 64});
  pool.set_recorder(&r);
  r.set_segment("head", -1, 1);
  // Whoever has the second index sleeps; the caller waits when that is the other thread.
  struct Two {
    std::atomic<uint32_t> arrived{0};
    std::thread::id caller;
    bool other_slept = false;
  } two;
  two.caller = std::this_thread::get_id();
  pool.parallel_for(
      2,
      [](void* arg, uint32_t) {
        auto& t = *static_cast<Two*>(arg);
        t.arrived.fetch_add(1);
        while (t.arrived.load() < 2) std::this_thread::yield();
        if (std::this_thread::get_id() == t.caller) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        t.other_slept = true;
      },
      &two);
  pool.set_recorder(nullptr);
  ASSERT_TRUE(two.other_slept);
  ASSERT_EQ(r.engine().events().size(), 1u);
  const Event& e = r.engine().events()[0];
  EXPECT_EQ(e.kind, EventKind::wait);
  EXPECT_STREQ(e.name, "head");
  EXPECT_GT(e.end_ns - e.begin_ns, 2'000'000);
}

TEST(Recorder, ManyShortLoops) {
  ThreadPool pool(4);
  Recorder r({pool.n_threads(), {}, 1 << 14});
  pool.set_recorder(&r);
  std::atomic<uint64_t> sum{0};
  constexpr uint32_t kLoops = 2000, kItems = 16;
  for (uint32_t i = 0; i < kLoops; ++i) {
    r.set_segment(i % 2 == 0 ? "router" : "head", i, 1);
    pool.parallel_for(
        kItems, [](void* arg, uint32_t) { static_cast<std::atomic<uint64_t>*>(arg)->fetch_add(1); }, &sum);
  }
  pool.set_recorder(nullptr);
  EXPECT_EQ(sum.load(), uint64_t{kLoops} * kItems);
  EXPECT_EQ(r.dropped(), 0u);
  const Recorder& read = r;
  for (uint32_t t = 0; t < r.n_threads(); ++t) {
    int64_t end = 0;
    int32_t loop = -1;
    for (const Event& e : read.worker(t).events()) {
      EXPECT_GE(e.begin_ns, end) << "parts of one thread do not overlap";
      EXPECT_STREQ(e.name, e.layer % 2 == 0 ? "router" : "head");
      EXPECT_GT(e.layer, loop) << "one part of each loop at most, in their order";
      EXPECT_EQ(e.kind, t == 0 ? EventKind::wait : EventKind::busy);
      end = e.end_ns;
      loop = e.layer;
    }
  }
}

TEST(Recorder, AnotherThreadsLoopsStayOutOfTheEnginesLane) {
  ThreadPool pool(2);
  Recorder r({2, {}, 64});
  pool.set_recorder(&r);
  Meet meet;
  meet.n = 2;
  std::thread other([&] { pool.parallel_for(2, Meet::body, &meet); });
  other.join();
  pool.set_recorder(nullptr);
  EXPECT_TRUE(r.engine().events().empty());
  const Recorder& read = r;
  EXPECT_EQ(read.worker(1).events().size(), 1u);
}

}  // namespace
}  // namespace fth
