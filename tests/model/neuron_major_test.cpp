// The neuron-major order against its definition, value by value, and the way back.
#include "core/model/neuron_major.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

namespace fth {
namespace {

std::vector<std::byte> random_matrix(DType type, int64_t e, int64_t f) {
  std::mt19937 rng(static_cast<uint32_t>(e * 1000 + f));
  std::vector<std::byte> m(static_cast<size_t>(e) * row_bytes(type, f));
  for (std::byte& b : m) b = static_cast<std::byte>(rng());
  return m;
}

// Scale bits and code of (output e, neuron f) by the format's definition.
struct Element {
  uint16_t scale;
  int code;
  bool operator==(const Element&) const = default;
};
Element row_major_at(DType type, int64_t f_all, const std::vector<std::byte>& m, int64_t e, int64_t f) {
  const std::byte* block =
      m.data() + static_cast<uint64_t>(e) * row_bytes(type, f_all) + static_cast<uint64_t>(f / 32) * traits(type).block_bytes;
  Element x{};
  std::memcpy(&x.scale, block, 2);
  const int64_t j = f % 32;
  if (type == DType::q8_0)
    x.code = static_cast<int8_t>(block[2 + j]);
  else
    x.code = j < 16 ? std::to_integer<int>(block[2 + j]) & 15 : std::to_integer<int>(block[2 + j - 16]) >> 4;
  return x;
}
Element neuron_major_at(DType type, int64_t e_all, const std::vector<std::byte>& m, int64_t e, int64_t f) {
  const std::byte* group = m.data() + f / 32 * e_all * traits(type).block_bytes;
  Element x{};
  std::memcpy(&x.scale, group + 2 * e, 2);
  const std::byte* neurons = group + 2 * e_all;
  if (type == DType::q8_0) {
    x.code = static_cast<int8_t>(neurons[f % 32 * e_all + e]);
  } else {
    const std::byte* sixteen = neurons + f % 32 * (e_all / 2) + e / 32 * 16;
    x.code = e % 32 < 16 ? std::to_integer<int>(sixteen[e % 32]) & 15 : std::to_integer<int>(sixteen[e % 32 - 16]) >> 4;
  }
  return x;
}

TEST(NeuronMajor, HoldsEveryScaleAndCodeAndComesBack) {
  for (const DType type : {DType::q4_0, DType::q8_0})
    for (const auto& [e, f] : {std::pair<int64_t, int64_t>{32, 32}, {32, 96}, {96, 32}, {160, 64}, {1536, 768}}) {
      const std::vector<std::byte> src = random_matrix(type, e, f);
      std::vector<std::byte> moved(src.size() + 1, std::byte{0x5a}), back(src.size() + 1, std::byte{0x5a});
      ASSERT_TRUE(to_neuron_major(type, e, f, src.data(), moved.data()));
      for (int64_t i = 0; i < e; ++i)
        for (int64_t j = 0; j < f; ++j)
          ASSERT_EQ(row_major_at(type, f, src, i, j), neuron_major_at(type, e, moved, i, j)) << name(type) << " " << i << "," << j;
      ASSERT_TRUE(from_neuron_major(type, e, f, moved.data(), back.data()));
      EXPECT_EQ(std::memcmp(src.data(), back.data(), src.size()), 0);
      EXPECT_EQ(moved.back(), std::byte{0x5a});
      EXPECT_EQ(back.back(), std::byte{0x5a});
    }
}

TEST(NeuronMajor, RefusesWhatHasNoSuchOrder) {
  std::byte none{};
  for (const auto& [e, f] : {std::pair<int64_t, int64_t>{0, 32}, {32, 0}, {-32, 32}, {33, 32}, {32, 48}, {16, 32}}) {
    const Result<> to = to_neuron_major(DType::q4_0, e, f, &none, &none), from = from_neuron_major(DType::q8_0, e, f, &none, &none);
    ASSERT_FALSE(to || from);
    EXPECT_EQ(to.error().code, Code::invalid_argument);
    EXPECT_EQ(from.error().code, Code::invalid_argument);
    EXPECT_NE(to.error().message.find(std::to_string(e) + " outputs by " + std::to_string(f)), std::string::npos);
  }
  for (const DType type : {DType::f32, DType::f16, DType::q4_1, DType::q6_k, DType::q4_k}) {
    const Result<> r = to_neuron_major(type, 32, 32, &none, &none);
    ASSERT_FALSE(r);
    EXPECT_EQ(r.error().code, Code::unimplemented);
  }
}

}  // namespace
}  // namespace fth
