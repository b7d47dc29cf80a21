// What events add up to, by hand.
#include "core/profile/statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "core/profile/tracks.h"

namespace fth {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;

Event at(EventKind kind, const char* name, int64_t begin_us, int64_t end_us) {
  Event e;
  e.kind = kind;
  e.name = name;
  e.begin_ns = 1000 * begin_us;
  e.end_ns = 1000 * end_us;
  return e;
}

TEST(Percentile, IsTheNearestRank) {
  std::vector<double> v(100);
  std::iota(v.begin(), v.end(), 1.0);
  EXPECT_EQ(percentile(v, 0.50), 50);
  EXPECT_EQ(percentile(v, 0.95), 95);
  EXPECT_EQ(percentile(v, 0.99), 99);
  EXPECT_EQ(percentile(v, 1.0), 100);
  EXPECT_EQ(percentile(v, 0.0), 1);
  EXPECT_EQ(percentile(std::vector<double>{7}, 0.99), 7);
  EXPECT_EQ(percentile({}, 0.5), 0);
}

TEST(Spread, SortsAndSums) {
  const Spread s = spread({3, 1, 2, 10});
  EXPECT_EQ(s.count, 4u);
  EXPECT_EQ(s.p50, 2);
  EXPECT_EQ(s.p99, 10);
  EXPECT_EQ(s.total, 16);
}

TEST(Roofline, IsTheLesserLimit) {
  const Roofline r{100e9, 10e9};
  EXPECT_EQ(r.attainable(1), 10e9);
  EXPECT_EQ(r.attainable(10), 100e9);
  EXPECT_EQ(r.attainable(1000), 100e9);
  EXPECT_EQ(Roofline{}.attainable(1), 0);
}

TEST(SegmentRows, ByDeviceSegmentAndBucket) {
  Recorder r({1, {"cpu", "other"}, 64});
  const auto add = [&](const char* name, uint8_t device, int16_t bucket, int64_t begin, int64_t end, int64_t cpu_ns = -1) {
    Event e = at(EventKind::segment, name, begin, end);
    e.device = device;
    e.bucket = bucket;
    e.bytes = 1000;
    e.flops = 4000;
    e.cpu_ns = cpu_ns;
    r.engine().add(e);
  };
  add("attention", 1, 1, 0, 4);
  add("experts", 0, 1, 4, 6);
  add("attention", 1, 1, 6, 12);
  add("attention", 1, 8, 12, 14);
  add("experts", 0, 1, 20, 24, 6000);  // its CPU time was taken: counts for nothing else
  add("attention", 0, 1, 30, 31);
  const auto rows = segment_rows(r);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_EQ(rows[0].name, "experts");
  EXPECT_EQ(rows[0].time.count, 1u);
  EXPECT_THAT(rows[0].time.total, DoubleNear(2e-6, 1e-12));
  EXPECT_THAT(rows[0].cpu_share, DoubleNear(1.5, 1e-9));
  EXPECT_EQ(rows[1].name, "attention");
  EXPECT_EQ(rows[2].device, 1u);
  EXPECT_EQ(rows[2].time.count, 2u);
  EXPECT_EQ(rows[2].bytes, 2000u);
  EXPECT_EQ(rows[2].cpu_share, 0);
  EXPECT_THAT(rows[2].bytes_per_second(), DoubleNear(2000 / 10e-6, 1));
  EXPECT_THAT(rows[2].flops_per_second(), DoubleNear(8000 / 10e-6, 1));
  EXPECT_EQ(rows[2].intensity(), 4);
  EXPECT_EQ(rows[3].bucket, 8);
  // 0.8 GFLOP/s where 4 FLOP/B x 1 GB/s allow 4.
  EXPECT_THAT(rows[2].roofline_share({100e9, 1e9}), DoubleNear(0.2, 1e-9));
  EXPECT_EQ(rows[2].roofline_share({}), 0);
  SegmentRow copies = rows[2];
  copies.flops = 0;
  EXPECT_THAT(copies.roofline_share({100e9, 1e9}), DoubleNear(0.2, 1e-9)) << "without FLOPs: of the bandwidth";
}

TEST(StepRow, CountsWhatHappenedInItsSteps) {
  Recorder r({1, {"cpu"}, 64});
  const auto step = [&](int64_t begin, int64_t end, int32_t rows, int64_t cpu_ns = -1) {
    Event e = at(EventKind::step, rows == 1 ? "token" : "prompt", begin, end);
    e.rows = rows;
    e.bytes = 7;
    e.cpu_ns = cpu_ns;
    r.engine().add(e);
  };
  const auto other = [&](EventKind kind, int64_t begin, int64_t end, uint64_t bytes = 0) {
    Event e = at(kind, "x", begin, end);
    e.bytes = bytes;
    (kind == EventKind::read ? r.storage() : r.engine()).add(e);
  };
  other(EventKind::copy, 1, 3, 100);
  other(EventKind::stall, 4, 5);
  step(0, 10, 1);
  other(EventKind::copy, 12, 13, 50);  // between steps: nobody's
  other(EventKind::copy, 25, 26, 9);
  step(20, 40, 6);
  step(50, 60, 1);
  other(EventKind::copy, 71, 72, 1);
  step(70, 80, 1, 20'000);
  other(EventKind::read, 2, 6, 10);
  other(EventKind::read, 3, 4, 20);
  other(EventKind::read, 5, 9, 30);
  other(EventKind::read, 51, 53, 40);
  const StepRow decode = step_row(r, Phase::decode), prefill = step_row(r, Phase::prefill);
  EXPECT_EQ(decode.time.count, 2u);
  EXPECT_EQ(decode.tokens, 2);
  EXPECT_EQ(decode.bytes, 14u);
  EXPECT_EQ(decode.copies, 1u);
  EXPECT_EQ(decode.copied_bytes, 100u);
  EXPECT_THAT(decode.copy_seconds, DoubleNear(2e-6, 1e-12));
  EXPECT_THAT(decode.stall_seconds, DoubleNear(1e-6, 1e-12));
  EXPECT_EQ(decode.reads, 4u);
  EXPECT_EQ(decode.read_bytes, 100u);
  EXPECT_THAT(decode.io_seconds, DoubleNear(9e-6, 1e-12)) << "2 to 9 and 51 to 53: reads that overlap count once";
  EXPECT_THAT(decode.cpu_share, DoubleNear(2, 1e-9));
  EXPECT_EQ(prefill.tokens, 6);
  EXPECT_EQ(prefill.copied_bytes, 9u);
  EXPECT_EQ(prefill.reads, 0u);
}

TEST(Tracks, SpansNestAndReadsThatOverlapHaveRows) {
  Recorder r({2, {"cpu", "gpu"}, 64});
  // Noted when they end: inner ones first.
  r.engine().add(at(EventKind::busy, "head", 2, 4));
  r.engine().add(at(EventKind::segment, "head", 2, 4));
  r.engine().add(at(EventKind::stall, "wait", 5, 6));
  r.engine().add(at(EventKind::step, "token", 1, 9));
  r.device(1).add(at(EventKind::queue, "head", 2, 4));
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{1, 5}, {2, 3}, {3, 7}, {5, 8}}) {
    Event e = at(EventKind::read, "read", begin, end);
    e.bytes = 8;
    r.storage().add(e);
  }
  const auto tracks = make_tracks(r);
  std::vector<std::string> names;
  for (const Track& t : tracks) {
    names.push_back(t.name);
    std::vector<int64_t> open;
    int64_t before = 0;
    for (const Event& e : t.events) {
      EXPECT_GE(e.begin_ns, before);
      before = e.begin_ns;
      while (!open.empty() && open.back() <= e.begin_ns) open.pop_back();
      if (!open.empty()) {
        EXPECT_LE(e.end_ns, open.back()) << t.name << ": spans cross";
      }
      open.push_back(e.end_ns);
    }
  }
  EXPECT_THAT(names, ElementsAre("engine", "worker 1", "gpu", "waiting for storage", "read 1", "read 2"));
  EXPECT_EQ(tracks[0].events[0].kind, EventKind::step);
  EXPECT_EQ(tracks[0].events[1].kind, EventKind::segment) << "of two equal spans the segment encloses the loop";
  EXPECT_EQ(tracks[4].events.size() + tracks[5].events.size(), 4u);

  std::vector<uint64_t> flying;
  for (const Event& e : make_counters(r)) flying.push_back(e.bytes);
  EXPECT_THAT(flying, ElementsAre(8, 16, 8, 16, 8, 16, 8, 0)) << "what ends at an instant is gone before what begins then";
}

}  // namespace
}  // namespace fth
