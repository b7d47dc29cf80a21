// The interleaved order against its definition, value by value, and the way back.
#include "core/model/interleaved.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <tuple>
#include <vector>

namespace fth {
namespace {

// What makes the value of (row, column): a super-scale's bits, an integer scale, a code; by each order's definition.
struct Element {
  uint16_t scale;
  int sub_scale, code;  // sub_scale: of q4_1, the minimum's bits
  bool operator==(const Element&) const = default;
};
int byte(const std::byte* p, int64_t i) { return std::to_integer<int>(p[i]); }
Element make(const std::byte* scale, int sub_scale, int code) {
  Element x{0, sub_scale, code};
  std::memcpy(&x.scale, scale, 2);
  return x;
}
Element row_major_at(DType type, int64_t cols, const std::vector<std::byte>& m, int64_t r, int64_t c) {
  const DTypeTraits& t = traits(type);
  const std::byte* const p =
      m.data() + static_cast<uint64_t>(r) * row_bytes(type, cols) + static_cast<uint64_t>(c) / t.block * t.block_bytes;
  if (type == DType::q4_1) return make(p, byte(p, 2) | byte(p, 3) << 8, c % 32 < 16 ? byte(p, 4 + c % 32) & 15 : byte(p, 4 + c % 16) >> 4);
  if (type == DType::q4_0) return make(p, 0, c % 32 < 16 ? byte(p, 2 + c % 32) & 15 : byte(p, 2 + c % 16) >> 4);
  if (type == DType::q8_0) return make(p, 0, byte(p, 2 + c % 32));
  const int64_t h = c % 256 / 128, g = c % 128 / 32, l = c % 32;
  const int low = byte(p, 64 * h + 32 * (g % 2) + l), high = byte(p, 128 + 32 * h + l) >> (2 * g) & 3;
  return make(p + 208, byte(p, 192 + c % 256 / 16), (g < 2 ? low & 15 : low >> 4) | high << 4);
}
Element interleaved_at(DType type, int64_t cols, const std::vector<std::byte>& m, int64_t r, int64_t c) {
  const DTypeTraits& t = traits(type);
  const std::byte* const p =
      m.data() + static_cast<uint64_t>(r / 16 * 16) * row_bytes(type, cols) + static_cast<uint64_t>(c) / t.block * t.block_bytes * 16;
  const int64_t lane = r % 16, half = c % 32 / 16, i = c % 16 / 4, in_word = i * 64 + lane * 4 + c % 4, g = c % 256 / 32;
  const auto nibble = [&](int64_t at) { return byte(p, at + in_word) >> (4 * half) & 15; };
  if (type == DType::q4_1) return make(p + 2 * lane, byte(p, 32 + 2 * lane) | byte(p, 33 + 2 * lane) << 8, nibble(64));
  if (type == DType::q4_0) return make(p + 2 * lane, 0, nibble(32));
  if (type == DType::q8_0) return make(p + 2 * lane, 0, byte(p, 32 + c % 32 / 4 * 64 + lane * 4 + c % 4));
  const int high = byte(p, 2336 + g * 128 + half * 64 + lane * 4 + c % 4) >> (2 * i) & 3;
  return make(p + 2 * lane, byte(p, 32 + c % 256 / 16 * 16 + lane), nibble(288 + g * 256) | high << 4);
}

TEST(Interleaved, HoldsEveryScaleAndCodeAndComesBack) {
  for (const auto& [type, rows, cols] : {std::tuple<DType, int64_t, int64_t>{DType::q4_0, 16, 32},
                                         {DType::q4_0, 16, 96},
                                         {DType::q4_0, 48, 32},
                                         {DType::q4_0, 768, 1536},
                                         {DType::q4_1, 16, 96},
                                         {DType::q4_1, 192, 576},
                                         {DType::q8_0, 16, 32},
                                         {DType::q8_0, 48, 96},
                                         {DType::q8_0, 192, 576},
                                         {DType::q6_k, 16, 256},
                                         {DType::q6_k, 48, 768},
                                         {DType::q6_k, 96, 1536}}) {
    std::mt19937 rng(static_cast<uint32_t>(rows * 1000 + cols));
    std::vector<std::byte> src(static_cast<size_t>(rows) * row_bytes(type, cols));
    for (std::byte& b : src) b = static_cast<std::byte>(rng());
    std::vector<std::byte> moved(src.size() + 1, std::byte{0x5a}), back(src.size() + 1, std::byte{0x5a});
    ASSERT_TRUE(to_interleaved(type, rows, cols, src.data(), moved.data()));
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        ASSERT_EQ(row_major_at(type, cols, src, r, c), interleaved_at(type, cols, moved, r, c)) << name(type) << " " << r << "," << c;
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
  EXPECT_EQ(check_interleaved(DType::q6_k, 16, 320).error().code, Code::invalid_argument);
  for (const DType type : {DType::f32, DType::f16, DType::q4_k}) {
    const Result<> r = to_interleaved(type, 16, 256, &none, &none);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().code, Code::unimplemented);
  }
}

}  // namespace
}  // namespace fth
