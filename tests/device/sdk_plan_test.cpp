// plugins/sdk/plan.h: places in a workspace, checks of a submit, angles.

#include "plugins/sdk/plan.h"

#include <gtest/gtest.h>

#include <random>

namespace fth::sdk {
namespace {

TEST(PlaceTemps, ValuesThatLiveAtOnceDoNotOverlap) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<Value> values(1 + random() % 40);
    uint64_t all = 0;
    for (Value& v : values) {
      v.bytes = 1 + random() % 5000;
      if (random() % 8 == 0) continue;  // never used
      if (random() % 8 == 0) v.role = FTH_ROLE_INPUT;
      v.used_at(static_cast<uint32_t>(random() % 30));
      v.used_at(static_cast<uint32_t>(random() % 30));
      all += align_up(v.bytes, 64);
    }
    const uint64_t bytes = place_temps(values, 64);
    EXPECT_LE(bytes, all);
    for (const Value& a : values) {
      if (a.role != FTH_ROLE_TEMP || a.first > a.last) continue;
      EXPECT_EQ(a.offset % 64, 0u);
      EXPECT_LE(a.offset + a.bytes, bytes);
      for (const Value& b : values) {
        if (&a == &b || b.role != FTH_ROLE_TEMP || b.first > b.last || a.first > b.last || b.first > a.last) continue;
        EXPECT_TRUE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset);
      }
    }
  }
}

TEST(PlaceTemps, AChainTakesTheTwoLargestNeighbours) {
  std::vector<Value> values(4);
  for (uint32_t i = 0; i < 4; ++i) {
    values[i].bytes = 64 * (i + 1);
    values[i].used_at(i);
    values[i].used_at(i + 1);
  }
  EXPECT_EQ(place_temps(values, 64), 64u * (3 + 4));
}

TEST(RopeTables, EqualRopesShareAndWholeTurnsDropOut) {
  RopeTables ropes;
  const RopeOp one{.x = 0, .factors = kNoValue, .y = 1, .heads = 2, .head_dim = 8, .half = 4, .adjacent = false, .base = 1e4, .scale = 1};
  RopeOp other = one;
  other.base = 1e6;
  EXPECT_EQ(ropes.table_of(one).first, 0u);
  EXPECT_EQ(ropes.table_of(other).first, 4u);
  EXPECT_EQ(ropes.table_of(one).first, 0u);
  EXPECT_EQ(ropes.n_entries, 8u);
  const float factors[] = {1, 1, 1, 0};
  EXPECT_EQ(ropes.tables[0].frequencies(factors).error().code, Code::invalid_argument);
  // Pair 0 turns a radian per position: 2^64 / 2 pi.
  const float ones[] = {1, 1, 1, 1};
  EXPECT_NEAR(static_cast<double>((*ropes.tables[0].frequencies(ones))[0]), 18446744073709551616.0 / 6.283185307179586, 1e4);
  const RopeTable turns{.half = 1, .base = 2, .scale = 2 * 3.14159265358979311600};  // a turn, but for the rounding of pi
  const uint64_t rest = (*turns.frequencies(ones))[0];
  EXPECT_LT(std::min(rest, -rest), uint64_t{1} << 12);
}

TEST(BindingRules, ScalarsAndCountsAreChecked) {
  const BindingRules rules{.name = "s", .n_tokens = 4, .max_end = 10, .n_bindings = 2, .workspace_bytes = 8};
  const fth_binding bindings[3] = {};
  const auto code = [&](size_t n, int64_t tokens, int64_t pos) {
    const int64_t scalars[FTH_SCALAR_COUNT] = {tokens, pos, 0};
    const Result<> r = rules.check_submit({bindings, n}, scalars);
    return r ? 0 : static_cast<int>(r.error().code);
  };
  EXPECT_EQ(code(3, 4, 6), 0);
  EXPECT_EQ(code(3, 4, 7), static_cast<int>(Code::out_of_range));
  EXPECT_EQ(code(3, 1, INT64_MAX), static_cast<int>(Code::out_of_range));
  EXPECT_EQ(code(3, 1, -1), static_cast<int>(Code::invalid_argument));
  EXPECT_EQ(code(3, 0, 0), static_cast<int>(Code::invalid_argument));
  EXPECT_EQ(code(3, 5, 0), static_cast<int>(Code::invalid_argument));
  EXPECT_EQ(code(2, 1, 0), static_cast<int>(Code::invalid_argument));
  EXPECT_EQ(static_cast<int>(rules.check_submit({bindings, 3}, nullptr).error().code), static_cast<int>(Code::invalid_argument));
}

}  // namespace
}  // namespace fth::sdk
