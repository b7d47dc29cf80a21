// Router logits to experts, weights and groups: ties, saturation, both gatings, and every row accounted for once.
#include "core/engine/routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>

namespace fth {
namespace {

Config config(int64_t n_expert, int64_t top_k, Gating gating) {
  Config c;
  c.n_expert = n_expert;
  c.top_k = top_k;
  c.gating = gating;
  return c;
}

Routing route(const Config& c, const std::vector<float>& z, int64_t n) {
  Routing r;
  EXPECT_TRUE(choose_experts(c, z, n, &r));
  EXPECT_TRUE(weigh_and_group(c, z, n, &r));
  return r;
}

TEST(Routing, EqualLogitsGoToTheLowerIndex) {
  const Routing r = route(config(5, 3, Gating::sigmoid), {1, 2, 2, 1, 1}, 1);
  EXPECT_EQ(r.ids, (std::vector<int32_t>{1, 2, 0}));
}

TEST(Routing, ChoosesOnLogitsWhereSigmoidsSaturate) {
  // All three sigmoids are 1 in f32; the order must still be that of the logits.
  const Routing r = route(config(3, 2, Gating::sigmoid), {40, 80, 60}, 1);
  EXPECT_EQ(r.ids, (std::vector<int32_t>{1, 2}));
  EXPECT_FLOAT_EQ(r.gates[0], 0.5f);
}

TEST(Routing, SigmoidWeightsAreDividedByTheSumOfTheChosen) {
  const Routing r = route(config(3, 2, Gating::sigmoid), {0, 1, -1}, 1);
  const double a = 1 / (1 + std::exp(-1.0)), b = 0.5;
  EXPECT_NEAR(r.gates[0], a / (a + b), 1e-7);
  EXPECT_NEAR(r.gates[1], b / (a + b), 1e-7);
}

TEST(Routing, SoftmaxOverTheChosenSurvivesHugeLogits) {
  const Routing r = route(config(3, 2, Gating::softmax), {3000, 2999, -3000}, 1);
  EXPECT_NEAR(r.gates[0], 1 / (1 + std::exp(-1.0)), 1e-6);
}

TEST(Routing, TinySigmoidsAreClampedAsInTheReference) {
  const Routing r = route(config(2, 1, Gating::sigmoid), {-30, -40}, 1);
  EXPECT_NEAR(r.gates[0], std::exp(-30.0) / 0x1p-14, 1e-10);
}

TEST(Routing, NotANumberIsAnError) {
  Routing r;
  const std::vector<float> z{1, std::numeric_limits<float>::quiet_NaN(), 2};
  const auto done = choose_experts(config(3, 2, Gating::sigmoid), z, 1, &r);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::data_loss);
}

TEST(Routing, AForcedExpertMustExist) {
  Routing r;
  const std::vector<float> z{1, 2, 3};
  ASSERT_TRUE(choose_experts(config(3, 2, Gating::sigmoid), z, 1, &r));
  r.ids[0] = 3;
  EXPECT_EQ(weigh_and_group(config(3, 2, Gating::sigmoid), z, 1, &r).error().code, Code::invalid_argument);
}

TEST(Routing, EveryPairIsInExactlyTheGroupOfItsExpert) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  for (const int64_t n : {1, 2, 7, 64}) {
    const Config c = config(16, 4, Gating::sigmoid);
    std::vector<float> z(static_cast<size_t>(n * 16));
    for (float& v : z) v = normal(rng);
    const Routing r = route(c, z, n);
    std::set<int32_t> seen;
    ASSERT_EQ(r.slot_begin.size(), r.experts.size() + 1);
    for (size_t s = 0; s < r.experts.size(); ++s) {
      EXPECT_LT(r.slot_begin[s], r.slot_begin[s + 1]) << "an expert without tokens has no slot";
      for (int32_t i = r.slot_begin[s]; i < r.slot_begin[s + 1]; ++i) {
        const int32_t row = r.rows[static_cast<size_t>(i)];
        EXPECT_EQ(r.ids[static_cast<size_t>(row)], r.experts[s]);
        EXPECT_TRUE(seen.insert(row).second);
      }
    }
    EXPECT_EQ(seen.size(), static_cast<size_t>(n * 4));
  }
}

}  // namespace
}  // namespace fth
