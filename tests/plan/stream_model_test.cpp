// Predictions of streamed runs on numbers whose answer is known.
#include "core/plan/stream_model.h"

#include <gtest/gtest.h>

#include <cmath>

namespace fth {
namespace {

// 4 layers; attention 300 us, four experts of 100 us; 1 ms beside; experts of 2 MB.
StreamCosts costs() {
  StreamCosts c;
  c.layers.assign(4, {300e-6, 400e-6});
  c.other_s = 1e-3;
  c.top_k = 4;
  c.expert_bytes = 2'000'000;
  return c;
}

TEST(StreamModel, TakesItsCostsFromThePlan) {
  Plan plan;
  const auto place = [&](SegmentKind kind, int64_t layer, double seconds) {
    Placement p;
    p.kind = kind, p.layer = layer, p.seconds = seconds;
    plan.placements.push_back(p);
    plan.seconds_per_token += seconds;
  };
  place(SegmentKind::embed, -1, 1e-6);
  for (int64_t l = 0; l < 2; ++l)
    place(SegmentKind::router, l, 2e-6), place(SegmentKind::attention, l, 30e-6), place(SegmentKind::experts, l, 50e-6);
  place(SegmentKind::head, -1, 100e-6);
  plan.seconds_per_token += 7e-6;  // copies
  const StreamCosts c = stream_costs(plan, 2, 4, 123);
  ASSERT_EQ(c.layers.size(), 2u);
  EXPECT_DOUBLE_EQ(c.layers[1].attention_s, 30e-6);
  EXPECT_DOUBLE_EQ(c.layers[1].experts_s, 50e-6);
  EXPECT_NEAR(c.other_s, 112e-6, 1e-12);
  EXPECT_EQ(c.expert_bytes, 123u);
}

TEST(StreamModel, WithEveryExpertAtHandItIsThePlansOwnPrediction) {
  for (const auto& misses : {std::vector<std::vector<double>>(), independent_misses(4, 4, 1.0)}) {
    const StreamPrediction p = predict_decode(costs(), misses, {1e9, 1e-3});
    EXPECT_NEAR(p.seconds(), 1e-3 + 4 * 700e-6, 1e-12);
    EXPECT_EQ(p.hit_rate, 1);
    EXPECT_EQ(p.bytes, 0);
    EXPECT_EQ(p.io_s, 0);
    EXPECT_EQ(p.stall_s, 0);
    EXPECT_EQ(p.bound, Bound::compute);
  }
}

TEST(StreamModel, ALayerTakesItsComputingOrItsReadsAndOneExpert) {
  // Every token misses two of a layer's experts: 4 MB at 4 GB/s are 1 ms, then 0.1 ms for the last; the layer alone takes 0.7 ms.
  const std::vector<std::vector<double>> two(4, {0, 0, 1, 0, 0});
  const StreamPrediction p = predict_decode(costs(), two, {4e9, 0});
  EXPECT_NEAR(p.hit_rate, 0.5, 1e-12);
  EXPECT_NEAR(p.bytes, 4 * 4e6, 1e-3);
  EXPECT_NEAR(p.io_s, 4e-3, 1e-12);
  EXPECT_NEAR(p.stall_s, 4 * 0.4e-3, 1e-12);
  EXPECT_NEAR(p.bound_seconds(), 4e-3, 1e-12);
  EXPECT_EQ(p.bound, Bound::storage);
  // The wait before the first bytes is paid once in a layer.
  EXPECT_NEAR(predict_decode(costs(), two, {4e9, 0.2e-3}).stall_s, 4 * 0.6e-3, 1e-12);
  // Ten times as fast: hidden.
  const StreamPrediction fast = predict_decode(costs(), two, {40e9, 0});
  EXPECT_EQ(fast.stall_s, 0);
  EXPECT_EQ(fast.bound, Bound::compute);
  EXPECT_TRUE(std::isinf(predict_decode(costs(), two, {0, 0}).seconds()));
}

TEST(StreamModel, UniformPopularityHasAKnownAnswer) {
  // A quarter of the experts resident, all alike: each of four is a miss with 3/4, so 3 are missed on average, and all four with (3/4)^4.
  const auto misses = independent_misses(4, 4, 0.25);
  double sum = 0, mean = 0;
  for (size_t m = 0; m < misses[0].size(); ++m) sum += misses[0][m], mean += static_cast<double>(m) * misses[0][m];
  EXPECT_NEAR(sum, 1, 1e-12);
  EXPECT_NEAR(mean, 3, 1e-12);
  EXPECT_NEAR(misses[0][4], 81.0 / 256, 1e-12);
  const StreamPrediction p = predict_decode(costs(), misses, {1e9, 0});
  EXPECT_NEAR(p.hit_rate, 0.25, 1e-12);
  EXPECT_NEAR(p.bytes, 4 * 3 * 2e6, 1e-3);
  EXPECT_NEAR(p.io_s, 24e-3, 1e-12);
  // Storage takes 2 ms for each missed expert and 0.1 ms of computing follows: 0.7 ms if nothing is missed.
  double expected = 1e-3;
  for (size_t m = 0; m < misses[0].size(); ++m) expected += 4 * misses[0][m] * (m == 0 ? 0.7e-3 : 2e-3 * static_cast<double>(m) + 0.1e-3);
  EXPECT_NEAR(p.seconds(), expected, 1e-12);
}

TEST(StreamModel, MoreHitsAndFasterStorageNeverCost) {
  double before = 1e9;
  for (double hit = 0; hit <= 1.0; hit += 0.05) {
    const double seconds = predict_decode(costs(), independent_misses(4, 4, hit), {1e9, 1e-4}).seconds();
    EXPECT_LE(seconds, before + 1e-15) << hit;
    before = seconds;
  }
  before = 1e9;
  for (double speed = 1e8; speed < 1e11; speed *= 1.3) {
    const double seconds = predict_decode(costs(), independent_misses(4, 4, 0.6), {speed, 1e-4}).seconds();
    EXPECT_LE(seconds, before + 1e-15) << speed;
    before = seconds;
  }
}

TEST(StreamModel, DenseLayersMissNothing) {
  StreamCosts c = costs();
  c.layers[0] = {500e-6, 0};
  auto misses = independent_misses(4, 4, 0.5);
  misses[0].clear();
  const StreamPrediction p = predict_decode(c, misses, {1e9, 0});
  EXPECT_NEAR(p.hit_rate, 0.5, 1e-12);
  EXPECT_NEAR(p.bytes, 3 * 2 * 2e6, 1e-3);
}

TEST(StreamModel, PromptsReadEachExpertOncePerStep) {
  const std::vector<double> uniform(32, 4.0 / 32);
  EXPECT_NEAR(distinct_experts(uniform, 1), 4, 1e-12);
  EXPECT_NEAR(distinct_experts(uniform, 512), 32, 1e-9);
  const StorageSpeed storage{1e9, 0};
  // 512 tokens at once, 4 layers, all 32 experts of 2 MB: 256 ms of reading, 100 ms of computing.
  EXPECT_NEAR(predict_prompt_seconds({512, 512, 0.1, 4, 20, 2'000'000}, uniform, storage), 0.256, 1e-6);
  // In four steps: the first reads what it uses, the others what did not stay; computing is hidden behind it.
  const double used = 4 * distinct_experts(uniform, 128);
  EXPECT_NEAR(predict_prompt_seconds({512, 128, 0.025, 4, 20, 2'000'000}, uniform, storage), (used + 3 * (used - 20)) * 2e-3, 1e-9);
  // Resident: computing only.
  EXPECT_NEAR(predict_prompt_seconds({512, 128, 0.025, 4, 0, 2'000'000}, uniform, storage), 0.1, 1e-12);
  // Two steps at once, of three: a pair of 10 ms each and one alone.
  EXPECT_NEAR(predict_prompt_seconds({384, 128, 0.025, 4, 0, 2'000'000, 0.01}, uniform, storage), 0.045, 1e-12);
  EXPECT_NEAR(predict_prompt_seconds({128, 128, 0.025, 4, 0, 2'000'000, 0.01}, uniform, storage), 0.025, 1e-12);
  // More slots or faster storage never cost.
  double before = 1e9;
  for (int64_t slots = 1; slots < 140; ++slots) {
    const double seconds = predict_prompt_seconds({512, 32, 0.01, 4, slots, 2'000'000}, uniform, storage);
    EXPECT_LE(seconds, before);
    before = seconds;
  }
}

TEST(StreamModel, TheUbatchIsTheLargestThatIsNotClearlySlower) {
  const auto choice = [](int64_t ubatch, bool fits, double prompt, double decode) {
    return UbatchChoice{ubatch, fits, 10, prompt, decode};
  };
  EXPECT_EQ(choose_ubatch(std::vector{choice(512, true, 1, 10), choice(128, true, 2, 10)}), 0u);
  EXPECT_EQ(choose_ubatch(std::vector{choice(512, true, 1, 10), choice(128, true, 1, 9.9)}), 0u);  // within the estimates' error
  EXPECT_EQ(choose_ubatch(std::vector{choice(512, true, 1, 20), choice(128, true, 2, 10), choice(32, true, 8, 9)}), 1u);
  EXPECT_EQ(choose_ubatch(std::vector{choice(512, false, 0, 0), choice(128, false, 0, 0), choice(32, true, 8, 9)}), 2u);
  EXPECT_EQ(choose_ubatch(std::vector{choice(512, false, 0, 0)}), 1u);
}

}  // namespace
}  // namespace fth
