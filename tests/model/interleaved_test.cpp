// The interleaved order against its definition, value by value, and the way back.
#include "core/model/interleaved.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace fth {
namespace {

// Scale bits and code of (row, column) by each order's definition.
struct Element {
  uint16_t scale;
  int code;
  bool operator==(const Element&) const = default;
};
Element element(const std::byte* scale, const std::byte* codes, int64_t j) {
  Element x{};
  std::memcpy(&x.scale, scale, 2);
  x.code = j < 16 ? std::to_integer<int>(codes[j]) & 15 : std::to_integer<int>(codes[j - 16]) >> 4;
  return x;
}
Element row_major_at(int64_t cols, const std::vector<std::byte>& m, int64_t r, int64_t c) {
  const std::byte* const block = m.data() + (r * (cols / 32) + c / 32) * 18;
  return element(block, block + 2, c % 32);
}
Element interleaved_at(int64_t cols, const std::vector<std::byte>& m, int64_t r, int64_t c) {
  const std::byte* const group = m.data() + (r / 16 * (cols / 32) + c / 32) * 288;
  std::byte codes[16];
  for (int64_t i = 0; i < 16; ++i) codes[i] = group[32 + i / 4 * 64 + r % 16 * 4 + i % 4];
  return element(group + r % 16 * 2, codes, c % 32);
}

TEST(Interleaved, HoldsEveryScaleAndCodeAndComesBack) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 32}, {16, 96}, {48, 32}, {160, 64}, {768, 1536}}) {
    std::mt19937 rng(static_cast<uint32_t>(rows * 1000 + cols));
    std::vector<std::byte> src(static_cast<size_t>(rows) * row_bytes(DType::q4_0, cols));
    for (std::byte& b : src) b = static_cast<std::byte>(rng());
    std::vector<std::byte> moved(src.size() + 1, std::byte{0x5a}), back(src.size() + 1, std::byte{0x5a});
    ASSERT_TRUE(to_interleaved(DType::q4_0, rows, cols, src.data(), moved.data()));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) ASSERT_EQ(row_major_at(cols, src, r, c), interleaved_at(cols, moved, r, c)) << r << "," << c;
    ASSERT_TRUE(from_interleaved(DType::q4_0, rows, cols, moved.data(), back.data()));
    EXPECT_EQ(std::memcmp(src.data(), back.data(), src.size()), 0);
    EXPECT_EQ(moved.back(), std::byte{0x5a});
    EXPECT_EQ(back.back(), std::byte{0x5a});

    // Panels by themselves are those of the whole.
    const size_t panel = 16 * row_bytes(DType::q4_0, cols), last = src.size() - panel;
    std::vector<std::byte> alone(panel);
    ASSERT_TRUE(to_interleaved(DType::q4_0, 16, cols, src.data() + last, alone.data()));
    EXPECT_EQ(std::memcmp(alone.data(), moved.data() + last, panel), 0);
  }
}

TEST(Interleaved, RefusesWhatHasNoSuchOrder) {
  std::byte none{};
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{0, 32}, {16, 0}, {-16, 32}, {17, 32}, {8, 32}, {16, 48}}) {
    const Result<> to = to_interleaved(DType::q4_0, rows, cols, &none, &none),
                   from = from_interleaved(DType::q4_0, rows, cols, &none, &none);
    ASSERT_FALSE(to || from);
    EXPECT_EQ(to.error().code, Code::invalid_argument);
    EXPECT_EQ(from.error().code, Code::invalid_argument);
    EXPECT_NE(to.error().message.find(std::to_string(rows) + " rows by " + std::to_string(cols)), std::string::npos);
  }
  for (const DType type : {DType::f32, DType::f16, DType::q8_0, DType::q4_1, DType::q6_k, DType::q4_k}) {
    const Result<> r = to_interleaved(type, 16, 256, &none, &none);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().code, Code::unimplemented);
  }
}

}  // namespace
}  // namespace fth
