// Sampling: what each option keeps, the distribution of what is drawn, reproducibility, refusals.
#include "core/text/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <numeric>
#include <random>
#include <set>

namespace fth {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<int> histogram(const SamplerOptions& options, const std::vector<float>& logits, int draws) {
  Sampler sampler = *Sampler::make(options);
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits).value())];
  return counts;
}

std::set<int32_t> drawn(const SamplerOptions& options, const std::vector<float>& logits) {
  const std::vector<int> counts = histogram(options, logits, 4000);
  std::set<int32_t> ids;
  for (size_t id = 0; id < counts.size(); ++id)
    if (counts[id] > 0) ids.insert(static_cast<int32_t>(id));
  return ids;
}

std::vector<float> log_of(std::vector<float> probabilities) {
  for (float& p : probabilities) p = std::log(p);
  return probabilities;
}

std::vector<float> random_logits(size_t n, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::vector<float> logits(n);
  for (float& l : logits) l = spread * (static_cast<float>(random() >> 8) * 0x1p-24f - 0.5f);
  return logits;
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdOfEquals) {
  Sampler s = *Sampler::make({});
  EXPECT_EQ(s.sample(std::vector<float>{1, 3, 2}).value(), 1);
  EXPECT_EQ(s.sample(std::vector<float>{-kInf, 3, 3, 3}).value(), 1);
  EXPECT_EQ(s.sample(std::vector<float>{0.0f, -0.0f}).value(), 0);
  EXPECT_EQ(s.sample(std::vector<float>{-0.0f, 0.0f}).value(), 0) << "zeros are equal";
  EXPECT_EQ(s.sample(std::vector<float>{-kInf, -1e30f}).value(), 1);
}

// Pearson's chi-squared; 27.9 is the 0.1 % point for 9 degrees of freedom, and the seed is fixed.
TEST(Sampler, DrawsTheSoftmax) {
  const std::vector<float> logits{0, 0.5f, -1, 2, 1.5f, -0.25f, 0.75f, -2, 1, 0.1f};
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    constexpr int kDraws = 200000;
    const auto counts = histogram({.temperature = temperature, .seed = 42}, logits, kDraws);
    double total = 0, chi2 = 0;
    for (const float l : logits) total += std::exp(l / temperature);
    for (size_t i = 0; i < logits.size(); ++i) {
      const double expected = kDraws * std::exp(logits[i] / temperature) / total;
      chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    EXPECT_LT(chi2, 27.9) << temperature;
  }
}

TEST(Sampler, TopKKeepsTheBestAndLowerIdsOnTies) {
  EXPECT_THAT(drawn({.temperature = 1, .top_k = 2}, {0, 1, 2, 3}), ElementsAre(2, 3));
  EXPECT_THAT(drawn({.temperature = 1, .top_k = 2}, {1, 1, 1, 1}), ElementsAre(0, 1));
  EXPECT_THAT(drawn({.temperature = 1, .top_k = 1}, {0, 5, 5}), ElementsAre(1));
  EXPECT_THAT(drawn({.temperature = 1, .top_k = 99}, {1, 1, 1}), ElementsAre(0, 1, 2));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  const auto logits = log_of({0.1f, 0.4f, 0.2f, 0.3f});
  EXPECT_THAT(drawn({.temperature = 1, .top_p = 0.39f}, logits), ElementsAre(1));
  EXPECT_THAT(drawn({.temperature = 1, .top_p = 0.5f}, logits), ElementsAre(1, 3));
  EXPECT_THAT(drawn({.temperature = 1, .top_p = 0.75f}, logits), ElementsAre(1, 2, 3));
  EXPECT_THAT(drawn({.temperature = 1, .top_p = 1e-6f}, logits), ElementsAre(1)) << "never none";
  EXPECT_THAT(drawn({.temperature = 1, .top_k = 2, .top_p = 0.5f}, logits), ElementsAre(1)) << "of what top_k left: 4/7";
  EXPECT_THAT(drawn({.temperature = 100, .top_p = 0.39f}, logits), ElementsAre(1)) << "temperature comes after";
}

TEST(Sampler, MinPKeepsWhatIsNearTheBest) {
  const auto logits = log_of({0.1f, 0.4f, 0.2f, 0.3f});
  EXPECT_THAT(drawn({.temperature = 1, .min_p = 0.45f}, logits), ElementsAre(1, 2, 3));
  EXPECT_THAT(drawn({.temperature = 1, .min_p = 0.6f}, logits), ElementsAre(1, 3));
  EXPECT_THAT(drawn({.temperature = 50, .min_p = 0.99f}, logits), ElementsAre(1));
}

// The bounded selection against sorting everything.
TEST(Sampler, TopPOverALargeVocabulary) {
  for (const float spread : {0.01f, 4.0f, 30.0f}) {
    for (const float top_p : {0.1f, 0.7f, 0.999f}) {
      const auto logits = random_logits(20011, 9, spread);
      std::vector<int32_t> order(logits.size());
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
      double total = 0, sum = 0;
      for (const float l : logits) total += std::exp(static_cast<double>(l));
      std::vector<bool> allowed(logits.size());
      for (size_t i = 0; i < order.size() && sum < (top_p + 1e-9) * total; ++i) {
        allowed[static_cast<size_t>(order[i])] = true;
        sum += std::exp(static_cast<double>(logits[static_cast<size_t>(order[i])]));
      }
      Sampler s = *Sampler::make({.temperature = 3, .top_p = top_p, .seed = 1});
      for (int i = 0; i < 10; ++i) EXPECT_TRUE(allowed[static_cast<size_t>(s.sample(logits).value())]) << spread << " " << top_p;
    }
  }
}

TEST(Sampler, ImpossibleTokensAreNeverDrawn) {
  EXPECT_THAT(drawn({.temperature = 1}, {-kInf, 0, -kInf, 0}), ElementsAre(1, 3));
  EXPECT_THAT(drawn({.temperature = 1, .top_k = 3}, {-kInf, 0, -kInf, 0}), ElementsAre(1, 3));
  EXPECT_THAT(drawn({.temperature = 1e-30f}, {1, 1.001f, 0}), ElementsAre(1));
  EXPECT_THAT(drawn({.temperature = 1e30f, .top_p = 0.9999f}, {-1e30f, 1, 0}), ElementsAre(1, 2));
}

TEST(Sampler, RepeatedIdsBecomeLessLikely) {
  Sampler s = *Sampler::make({.repeat_penalty = 2, .repeat_last = 2});
  const std::vector<float> logits{3, 2, -1};
  s.accept(0);
  s.accept(0);
  EXPECT_EQ(s.sample(logits).value(), 1) << "3 / 2 once, not twice, and below 2";
  const std::vector<float> negative{-1, -1.5f};
  EXPECT_EQ(s.sample(negative).value(), 1) << "-1 * 2";
  s.accept(1);
  s.accept(1);
  EXPECT_EQ(s.sample(logits).value(), 0) << "the last two only";
  s.accept(-3);
  s.accept(1000000);
  EXPECT_EQ(s.sample(logits).value(), 0) << "ids outside the vocabulary are nothing";
  for (int i = 0; i < 1000; ++i) s.accept(i % 2);
  EXPECT_EQ(s.sample(logits).value(), 0);

  Sampler extreme = *Sampler::make({.repeat_penalty = 1e-38f});
  extreme.accept(0);
  EXPECT_TRUE(extreme.sample(std::vector<float>{1e10f, 0})) << "a finite logit stays finite";
  Sampler off = *Sampler::make({.repeat_penalty = 9, .repeat_last = 0});
  off.accept(0);
  EXPECT_EQ(off.sample(logits).value(), 0);
}

TEST(Sampler, SameSeedSameIds) {
  const auto logits = random_logits(5000, 1, 8);
  const SamplerOptions options{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.01f, .repeat_penalty = 1.1f, .seed = 7};
  const auto run = [&](uint64_t seed) {
    SamplerOptions o = options;
    o.seed = seed;
    Sampler s = *Sampler::make(o);
    std::vector<int32_t> ids;
    for (int i = 0; i < 100; ++i) {
      ids.push_back(s.sample(logits).value());
      s.accept(ids.back());
    }
    return ids;
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
}

// Written down once: another machine, compiler or C library gives these too. The draws of xoshiro256** seeded by splitmix64(2026) are
// checked against a separate program.
TEST(Sampler, TheIdsAreTheSameEverywhere) {
  const std::vector<float> flat(1000, 0.0f);
  Sampler s = *Sampler::make({.temperature = 1, .seed = 2026});
  std::vector<int32_t> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(s.sample(flat).value());
  EXPECT_THAT(ids, ElementsAre(573, 283, 812, 893, 812, 788, 833, 828));
}

TEST(Sampler, BrokenLogitsAreDataLoss) {
  for (const float temperature : {0.0f, 1.0f}) {
    Sampler s = *Sampler::make({.temperature = temperature});
    const auto error = [&](std::vector<float> logits) {
      const auto result = s.sample(logits);
      return result ? std::string("none") : std::string(code_name(result.error().code)) + ": " + result.error().message;
    };
    EXPECT_THAT(error({0, kNan, 1}), HasSubstr("data_loss: logit 1 of 3 is NaN"));
    EXPECT_THAT(error({0, 1, kInf}), HasSubstr("data_loss: logit 2 of 3 is infinite"));
    EXPECT_THAT(error({-kInf, -kInf}), HasSubstr("data_loss: all 2 logits are -inf"));
    EXPECT_THAT(error({}), HasSubstr("invalid_argument: sampler: no logits"));
    EXPECT_EQ(error({0, 1}), "none") << "the sampler lives on";
  }
}

TEST(Sampler, OptionsAreChecked) {
  const auto error = [](const SamplerOptions& options) {
    const auto result = Sampler::make(options);
    if (result) return std::string("none");
    EXPECT_EQ(result.error().code, Code::invalid_argument);
    return result.error().message;
  };
  EXPECT_EQ(error({}), "none");
  EXPECT_EQ(error({.temperature = -1}), "temperature is -1; it must be finite and at least 0");
  EXPECT_THAT(error({.temperature = kInf}), HasSubstr("temperature is inf"));
  EXPECT_THAT(error({.temperature = kNan}), HasSubstr("temperature is"));
  EXPECT_EQ(error({.top_k = -1}), "top_k is -1; it must be at least 0 (0: off)");
  EXPECT_EQ(error({.top_p = 0}), "top_p is 0; it must be above 0 and at most 1 (1: off)");
  EXPECT_THAT(error({.top_p = 1.5f}), HasSubstr("top_p is 1.5"));
  EXPECT_THAT(error({.top_p = kNan}), HasSubstr("top_p is"));
  EXPECT_EQ(error({.min_p = 1}), "min_p is 1; it must be at least 0 (0: off) and below 1");
  EXPECT_THAT(error({.min_p = -0.5f}), HasSubstr("min_p is -0.5"));
  EXPECT_THAT(error({.repeat_penalty = 0}), HasSubstr("repeat_penalty is 0; it must be finite and above 0"));
  EXPECT_THAT(error({.repeat_penalty = kInf}), HasSubstr("repeat_penalty is inf"));
  EXPECT_EQ(error({.repeat_last = -1}), "repeat_last is -1; it must be at least 0");
}

TEST(Sampler, SaysHowManyLogitsDecide) {
  const auto wanted = [](const SamplerOptions& o) { return Sampler::make(o)->wanted_logits(); };
  EXPECT_EQ(wanted({}), 1);
  EXPECT_EQ(wanted({.repeat_penalty = 1.1f}), 65);
  EXPECT_EQ(wanted({.repeat_penalty = 0.9f}), 0);
  EXPECT_EQ(wanted({.temperature = 0.8f}), 0);
  EXPECT_EQ(wanted({.temperature = 0.8f, .top_p = 0.9f}), 0);
  EXPECT_EQ(wanted({.temperature = 0.8f, .top_k = 40}), 40);
  EXPECT_EQ(wanted({.temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.1f, .repeat_penalty = 1.2f, .repeat_last = 10}), 50);
}

// What is not among the wanted logits may be -inf: the ids stay the same.
TEST(Sampler, WantedLogitsAreEnough) {
  for (const SamplerOptions& o :
       {SamplerOptions{}, SamplerOptions{.repeat_penalty = 1.3f}, SamplerOptions{.temperature = 0.8f, .top_k = 20, .seed = 3},
        SamplerOptions{.temperature = 1, .top_k = 30, .top_p = 0.9f, .min_p = 0.02f, .repeat_penalty = 1.2f, .seed = 4}}) {
    Sampler whole = *Sampler::make(o), part = *Sampler::make(o);
    for (uint32_t step = 0; step < 200; ++step) {
      auto logits = random_logits(2000, step + 1, 3);
      const int32_t want = *whole.sample(logits);
      std::vector<float> order = logits;
      const auto k = static_cast<std::ptrdiff_t>(part.wanted_logits());
      std::nth_element(order.begin(), order.begin() + k - 1, order.end(), std::greater<>());
      const float least = order[static_cast<size_t>(k - 1)];
      for (float& v : logits)
        if (v < least) v = -std::numeric_limits<float>::infinity();
      ASSERT_EQ(*part.sample(logits), want);
      whole.accept(want), part.accept(want);
    }
  }
}

TEST(Sampler, AStepOverAVocabularyIsShort) {
  const auto logits = random_logits(151936, 4, 20);
  for (const SamplerOptions& options : {SamplerOptions{}, SamplerOptions{.temperature = 0.6f, .top_k = 20, .top_p = 0.95f},
                                        SamplerOptions{.temperature = 0.6f, .top_p = 0.95f}, SamplerOptions{.temperature = 1}}) {
    Sampler s = *Sampler::make(options);
    const std::clock_t start = std::clock();
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(s.sample(logits));
    const double ms = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC * 1e3 / 20;
    std::cout << "temperature " << options.temperature << " top_k " << options.top_k << " top_p " << options.top_p << ": " << ms << " ms\n";
    EXPECT_LT(ms, 200);
  }
}

}  // namespace
}  // namespace fth
