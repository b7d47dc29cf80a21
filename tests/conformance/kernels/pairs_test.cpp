// Products of live pairs: the bits of the whole product where a pair is wanted, and nothing written elsewhere. Tables without them are checked to have none of
// the three functions.
#include <algorithm>
#include <limits>

#include "tests/conformance/kernels/fixture.h"

namespace fth::cpu {
namespace {

constexpr float kSentinel = -12345.678f;

class Pairs : public KernelTest {
 protected:
  bool any() const {
    return std::any_of(std::begin(table().matmul_pairs), std::end(table().matmul_pairs), [](auto f) { return f != nullptr; });
  }

  void expect_same(DType type, int64_t k, int64_t n_rows, int64_t n_cols, double share, Rng& rng) const {
    Guarded weights(row_bytes(type, k) * static_cast<uint64_t>(n_rows));
    for (int64_t r = 0; r < n_rows; ++r) random_row(type, k, 0.02f, rng, weights.data() + static_cast<uint64_t>(r) * row_bytes(type, k));
    const uint64_t step = q8_row_bytes(k) + 7;
    // Paired rows stand in another order than the columns.
    Guarded act(q8_row_bytes(k) * static_cast<uint64_t>(n_cols)), paired(step * static_cast<uint64_t>(n_cols) - 7);
    std::vector<int32_t> act_rows(static_cast<size_t>(n_cols));
    for (int64_t c = 0; c < n_cols; ++c) {
      const std::vector<float> x = rng.normals(k);
      uint8_t* const row = act.data() + static_cast<uint64_t>(c) * q8_row_bytes(k);
      table().quantize_q8(k, x.data(), row);
      act_rows[static_cast<size_t>(c)] = static_cast<int32_t>(n_cols - 1 - c);
      table().pair_q8(k, row, paired.data() + static_cast<uint64_t>(n_cols - 1 - c) * step);
    }
    Guarded want(static_cast<size_t>(n_rows * n_cols) * 4), got(static_cast<size_t>((n_rows + 5) * n_cols - 5) * 4);
    std::fill_n(got.floats(), got.size() / 4, kSentinel);
    table().matmul[static_cast<size_t>(type)](
        {weights.data(), row_bytes(type, k), act.data(), q8_row_bytes(k), want.floats(), n_rows, k, n_rows, n_cols, nullptr});
    std::vector<uint64_t> columns(static_cast<size_t>(n_rows));
    for (uint64_t& bits : columns)
      for (int64_t c = 0; c < n_cols; ++c) bits |= static_cast<uint64_t>(rng.uniform(0, 1) < share) << c;
    table().matmul_pairs[static_cast<size_t>(type)](
        {weights.data(), row_bytes(type, k), paired.data(), step, act_rows.data(), got.floats(), n_rows + 5, k, n_rows, columns.data()});
    EXPECT_TRUE(got.front_intact());
    for (int64_t c = 0; c < n_cols; ++c)
      for (int64_t r = 0; r < n_rows + (c + 1 < n_cols ? 5 : 0); ++r) {
        const bool wanted = r < n_rows && (columns[static_cast<size_t>(r)] >> c & 1) != 0;
        ASSERT_EQ(bits_of(read_as<float>(got.data() + (c * (n_rows + 5) + r) * 4)),
                  bits_of(wanted ? read_as<float>(want.data() + (c * n_rows + r) * 4) : kSentinel))
            << type_name(type) << " k " << k << ", " << n_rows << " rows, " << n_cols << " columns, at " << r << "," << c;
      }
  }
};
INSTANTIATE_TEST_SUITE_P(Tables, Pairs, testing::Range<size_t>(0, n_tables()), table_name);

TEST_P(Pairs, AllOrNoneOfTheFunctions) {
  EXPECT_EQ(table().pair_q8 != nullptr, any());
  EXPECT_EQ(table().live_pairs != nullptr, any());
}

TEST_P(Pairs, GiveTheBitsOfTheWholeProduct) {
  if (!any()) GTEST_SKIP() << table().name << " computes all pairs as quickly";
  Rng rng(11);
  for (const DType type : kTypes) {
    if (!table().matmul_pairs[static_cast<size_t>(type)]) continue;
    for (const int64_t k : {64, 192, 256, 320, 1536})
      for (const int64_t n_cols : {1, 3, 4, 5, 8, 13, 64})
        for (const double share : {0.0, 0.1, 0.5, 1.0}) {
          if (k == 1536 && n_cols % 13 != 0) continue;
          expect_same(type, k, k == 1536 ? kPairRows : 1 + rng.below(40), n_cols, share, rng);
        }
    expect_same(type, 512, kPairRows, kPairColumns, 0.3, rng);
  }
}

TEST_P(Pairs, FindTheLivingOnes) {
  if (!any()) GTEST_SKIP() << table().name << " computes all pairs as quickly";
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Rng rng(12);
  for (const int64_t n_rows : {1, 3, 4, 127, 128})
    for (const int64_t n_cols : {1, 31, 33, 64}) {
      const int64_t stride = n_rows + 3;
      Guarded gate(static_cast<size_t>((n_cols - 1) * stride + n_rows) * 4), columns(static_cast<size_t>(n_rows) * 8);
      for (size_t i = 0; i < gate.size() / 4; ++i)
        gate.floats()[i] = i % 7 == 0 ? 0.0f : i % 11 == 0 ? -0.0f : i % 13 == 0 ? nan : static_cast<float>(rng.uniform(-1, 1));
      const int64_t n = table().live_pairs(n_rows, n_cols, gate.floats(), stride, reinterpret_cast<uint64_t*>(columns.data()));
      int64_t want_n = 0;
      for (int64_t r = 0; r < n_rows; ++r) {
        uint64_t want = 0;
        for (int64_t c = 0; c < n_cols; ++c) {
          std::vector<uint8_t> alive(1);
          table().mark_alive(1, gate.floats() + c * stride + r, alive.data());
          want |= static_cast<uint64_t>(alive[0]) << c;
          want_n += alive[0];
        }
        EXPECT_EQ(read_as<uint64_t>(columns.data() + r * 8), want) << r;
      }
      EXPECT_EQ(n, want_n);
      EXPECT_TRUE(columns.front_intact());
    }
}

}  // namespace
}  // namespace fth::cpu
