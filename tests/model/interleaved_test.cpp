// The interleaved order against its definition, value by value, and the way back.
#include "core/model/interleaved.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace fth {
namespace {

// Bits of scale and minimum, and code, of (row, column) by each order's definition.
struct Element {
  uint16_t scale, minimum;
  int code;
  bool operator==(const Element&) const = default;
};
Element element(const std::byte* scale, const std::byte* minimum, const std::byte* codes, int64_t j) {
  Element x{};
  std::memcpy(&x.scale, scale, 2);
  if (minimum != nullptr) std::memcpy(&x.minimum, minimum, 2);
  x.code = j < 16 ? std::to_integer<int>(codes[j]) & 15 : std::to_integer<int>(codes[j - 16]) >> 4;
  return x;
}
int64_t block_of(DType type) { return type == DType::q4_1 ? 20 : 18; }
Element row_major_at(DType type, int64_t cols, const std::vector<std::byte>& m, int64_t r, int64_t c) {
  const std::byte* const block = m.data() + (r * (cols / 32) + c / 32) * block_of(type);
  return type == DType::q4_1 ? element(block, block + 2, block + 4, c % 32) : element(block, nullptr, block + 2, c % 32);
}
Element interleaved_at(DType type, int64_t cols, const std::vector<std::byte>& m, int64_t r, int64_t c) {
  const std::byte* const group = m.data() + (r / 16 * (cols / 32) + c / 32) * 16 * block_of(type);
  std::byte codes[16];
  for (int64_t i = 0; i < 16; ++i) codes[i] = group[(type == DType::q4_1 ? 64 : 32) + i / 4 * 64 + r % 16 * 4 + i % 4];
  return element(group + r % 16 * 2, type == DType::q4_1 ? group + 32 + r % 16 * 2 : nullptr, codes, c % 32);
}

TEST(Interleaved, HoldsEveryScaleAndCodeAndComesBack) {
  for (const DType type : {DType::q4_0, DType::q4_1})
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{16, 32}, {16, 96}, {48, 32}, {160, 64}, {768, 1536}}) {
      std::mt19937 rng(static_cast<uint32_t>(rows * 1000 + cols));
      std::vector<std::byte> src(static_cast<size_t>(rows) * row_bytes(type, cols));
      for (std::byte& b : src) b = static_cast<std::byte>(rng());
      std::vector<std::byte> moved(src.size() + 1, std::byte{0x5a}), back(src.size() + 1, std::byte{0x5a});
      ASSERT_TRUE(to_interleaved(type, rows, cols, src.data(), moved.data()));
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          ASSERT_EQ(row_major_at(type, cols, src, r, c), interleaved_at(type, cols, moved, r, c)) << r << "," << c;
      ASSERT_TRUE(from_interleaved(type, rows, cols, moved.data(), back.data()));
      EXPECT_EQ(std::memcmp(src.data(), back.data(), src.size()), 0);
      EXPECT_EQ(moved.back(), std::byte{0x5a});
      EXPECT_EQ(back.back(), std::byte{0x5a});

      // Panels by themselves are those of the whole.
      const size_t panel = 16 * row_bytes(type, cols), last = src.size() - panel;
      std::vector<std::byte> alone(panel);
      ASSERT_TRUE(to_interleaved(type, 16, cols, src.data() + last, alone.data()));
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
  for (const DType type : {DType::f32, DType::f16, DType::q8_0, DType::q6_k, DType::q4_k}) {
    const Result<> r = to_interleaved(type, 16, 256, &none, &none);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().code, Code::unimplemented);
  }
}

}  // namespace
}  // namespace fth
