// The arithmetic of choosing a device for experts: rows to expect, times between the measured ones, who wins.

#include "core/engine/expert_choice.h"

#include <gtest/gtest.h>

namespace fth {
namespace {

TEST(ExpertChoice, RowsOfAnExpertThatIsUsed) {
  EXPECT_DOUBLE_EQ(rows_per_expert(1, 64, 6), 1);
  EXPECT_NEAR(rows_per_expert(512, 64, 6), 48, 1e-6);  // every expert is used
  EXPECT_GT(rows_per_expert(8, 64, 6), 1);
  EXPECT_LT(rows_per_expert(8, 64, 6), 2);
  EXPECT_DOUBLE_EQ(rows_per_expert(32, 4, 4), 32);
}

TEST(ExpertChoice, TimesLieOnLines) {
  const std::vector<ExpertTimes> times{{1, {10, 30}}, {4, {40, 33}}, {8, {80, 37}}};
  EXPECT_DOUBLE_EQ(seconds_for_rows(times, 0, 1), 10);
  EXPECT_DOUBLE_EQ(seconds_for_rows(times, 0, 2.5), 25);
  EXPECT_DOUBLE_EQ(seconds_for_rows(times, 1, 6), 35);
  EXPECT_DOUBLE_EQ(seconds_for_rows(times, 0, 16), 160);
}

TEST(ExpertChoice, PlansTakeTheTimeOfTheChosenDevice) {
  ExpertChoice choice;
  EXPECT_DOUBLE_EQ(choice.time_ratio(1), 1);
  choice.buckets = {{1, 1, {10, 30}, 0}, {8, 2, {10, 8}, 1}, {512, 48, {100, 25}, 1}};
  EXPECT_DOUBLE_EQ(choice.time_ratio(1), 1);
  EXPECT_DOUBLE_EQ(choice.time_ratio(8), 0.8);
  EXPECT_DOUBLE_EQ(choice.time_ratio(128), 0.25);
}

TEST(ExpertChoice, LeavingTheFirstHasToBeWorthIt) {
  EXPECT_EQ(quickest(std::vector<double>{10, 30}), 0u);
  EXPECT_EQ(quickest(std::vector<double>{10, 9.8}), 0u);
  EXPECT_EQ(quickest(std::vector<double>{10, 9}), 1u);
  EXPECT_EQ(quickest(std::vector<double>{10, 9, 5}), 2u);
}

}  // namespace
}  // namespace fth
