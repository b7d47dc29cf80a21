// The conversions against the compiler's own _Float16, every f16 value and the f32 values where rounding decides.

#include "core/base/half.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

namespace fth {
namespace {

uint32_t bits(float f) { return std::bit_cast<uint32_t>(f); }

#if defined(__FLT16_MANT_DIG__) || defined(__aarch64__)
float native_to_f32(uint16_t h) { return static_cast<float>(std::bit_cast<_Float16>(h)); }
uint16_t native_to_f16(float f) { return std::bit_cast<uint16_t>(static_cast<_Float16>(f)); }

TEST(Half, EveryF16ToF32) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const uint16_t v = static_cast<uint16_t>(h);
    const float ours = f16_to_f32(v), theirs = native_to_f32(v);
    if (std::isnan(theirs)) {
      ASSERT_TRUE(std::isnan(ours)) << h;
    } else {
      ASSERT_EQ(bits(ours), bits(theirs)) << h;
    }
  }
}

void expect_same(float f) {
  const uint16_t ours = f32_to_f16(f), theirs = native_to_f16(f);
  if (std::isnan(f)) {
    ASSERT_TRUE((ours & 0x7c00u) == 0x7c00u && (ours & 0x3ffu) != 0) << std::hex << bits(f);
    ASSERT_EQ(ours & 0x8000u, theirs & 0x8000u);
  } else {
    ASSERT_EQ(ours, theirs) << std::hex << bits(f);
  }
}

// Each f16 value, the midpoint to the next one, and one f32 step to either side of both: every rounding decision there is.
TEST(Half, F32ToF16AtEveryBoundary) {
  for (uint32_t h = 0; h < 0x7c00; ++h) {
    const float a = f16_to_f32(static_cast<uint16_t>(h));
    const float b = h + 1 < 0x7c00 ? f16_to_f32(static_cast<uint16_t>(h + 1)) : 65536.0f;
    const float middle = a + (b - a) * 0.5f;  // exact: f32 has 13 more bits
    for (const float f : {a, middle})
      for (const float g : {std::nextafter(f, -1e30f), f, std::nextafter(f, 1e30f)}) {
        expect_same(g);
        expect_same(-g);
      }
  }
}

TEST(Half, F32ToF16OfRandomBits) {
  std::mt19937 random(1);
  for (int i = 0; i < 2'000'000; ++i) expect_same(std::bit_cast<float>(static_cast<uint32_t>(random())));
  for (const uint32_t u : {0u, 0x80000000u, 1u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0x7fffffffu, 0x33000000u, 0x33000001u,
                           0x477fefffu, 0x477ff000u})
    expect_same(std::bit_cast<float>(u));
}
#endif

TEST(Half, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t h = 0; h < 65536; ++h) {
    const uint16_t v = static_cast<uint16_t>(h);
    if (std::isnan(f16_to_f32(v))) {
      ASSERT_TRUE(std::isnan(f16_to_f32(f32_to_f16(f16_to_f32(v)))));
    } else {
      ASSERT_EQ(f32_to_f16(f16_to_f32(v)), v);
    }
  }
}

// The definition, in double: the nearer of the two neighbours, the even one on a tie.
TEST(Half, Bf16RoundsToNearestEven) {
  std::mt19937 random(2);
  for (int i = 0; i < 1'000'000; ++i) {
    const float f = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const uint16_t v = f32_to_bf16(f);
    if (std::isnan(f)) {
      ASSERT_TRUE(std::isnan(bf16_to_f32(v)));
      continue;
    }
    const uint16_t down = static_cast<uint16_t>(bits(f) >> 16), up = static_cast<uint16_t>(down + 1);  // towards and away from zero
    if (std::isinf(bf16_to_f32(down)) || std::isinf(bf16_to_f32(up))) continue;
    const double to_down = std::abs(double{f} - bf16_to_f32(down)), to_up = std::abs(double{bf16_to_f32(up)} - f);
    const uint16_t expected = to_down < to_up ? down : to_up < to_down ? up : (down & 1u) == 0 ? down : up;
    ASSERT_EQ(v, expected) << std::hex << bits(f);
  }
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x7f7fffffu)), 0x7f80u);  // the largest f32 rounds to infinity
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80u);
}

}  // namespace
}  // namespace fth
