// Products over interleaved matrices: the bits of the row-major product of the same table, and not a byte outside of what a call names.
#include <algorithm>
#include <limits>

#include "tests/conformance/kernels/fixture.h"

namespace fth::cpu {
namespace {

constexpr DType kOrdered[] = {DType::q4_0, DType::q4_1};

constexpr float kSentinel = -12345.678f;

// A matrix in both orders, the interleaved one made from its definition, byte by byte; it ends at a forbidden page.
struct Matrices {
  DType type;
  int64_t n, k, block;  // bytes of a block
  Guarded rows, panels;

  Matrices(DType type_, int64_t n_, int64_t k_)
      : type(type_),
        n(n_),
        k(k_),
        block(type_ == DType::q4_1 ? 20 : 18),
        rows(row_bytes(type_, k_) * static_cast<uint64_t>(n_)),
        panels(rows.size()) {}

  void randomise(Rng& rng) {
    for (int64_t r = 0; r < n; ++r) random_row(type, k, 0.02f, rng, row(r));
    move();
  }
  uint8_t* row(int64_t r) { return rows.data() + r * (k / 32 * block); }
  void move() {
    for (int64_t r = 0; r < n; ++r)
      for (int64_t g = 0; g < k / 32; ++g) {
        const uint8_t* const from = row(r) + g * block;
        uint8_t* const group = panels.data() + r / 16 * 16 * (k / 32 * block) + g * 16 * block;
        const int64_t head = block - 16;
        for (int64_t i = 0; i < head; i += 2) std::memcpy(group + 16 * i + 2 * (r % 16), from + i, 2);
        for (int64_t j = 0; j < 16; ++j) group[16 * head + j / 4 * 64 + r % 16 * 4 + j % 4] = from[head + j];
      }
  }
};

class Interleaved : public KernelTest {
 protected:
  void expect_same(Matrices& m, int64_t first, int64_t n, int64_t n_cols, const std::vector<float>& x) const {
    const uint64_t step = q8_row_bytes(m.k) + 3, row = row_bytes(m.type, m.k);
    Guarded act(step * static_cast<uint64_t>(n_cols) - 3), want(static_cast<size_t>(m.n * n_cols) * 4);
    for (int64_t c = 0; c < n_cols; ++c) table().quantize_q8(m.k, x.data() + c * m.k, act.data() + static_cast<uint64_t>(c) * step);
    table().matmul[static_cast<size_t>(m.type)]({m.rows.data(), row, act.data(), step, want.floats(), m.n, m.k, m.n, n_cols, nullptr});
    Guarded got(static_cast<size_t>((n + 5) * n_cols - 5) * 4);
    std::fill_n(got.floats(), got.size() / 4, kSentinel);
    table().matmul_interleaved[static_cast<size_t>(m.type)](
        {m.panels.data() + static_cast<uint64_t>(first) * row, row, act.data(), step, got.floats(), n + 5, m.k, n, n_cols, nullptr});
    EXPECT_TRUE(got.front_intact());
    for (int64_t c = 0; c < n_cols; ++c)
      for (int64_t i = 0; i < n + (c + 1 < n_cols ? 5 : 0); ++i) {
        const float w = i < n ? read_as<float>(want.data() + (c * m.n + first + i) * 4) : kSentinel;
        const float g = read_as<float>(got.data() + (c * (n + 5) + i) * 4);
        ASSERT_TRUE(std::isnan(w) ? std::isnan(g) : bits_of(w) == bits_of(g))
            << type_name(m.type) << " n=" << m.n << " k=" << m.k << " rows " << first << "+" << n << " columns " << n_cols << " at " << i
            << "," << c << ": " << g << ", row-major " << w;
      }
  }
};
INSTANTIATE_TEST_SUITE_P(Tables, Interleaved, testing::Range<size_t>(0, n_tables()), table_name);

TEST_P(Interleaved, ThoseTypesAndNoOther) {
  for (const DType type : kTypes)
    EXPECT_EQ(table().matmul_interleaved[static_cast<size_t>(type)] != nullptr, type == DType::q4_0 || type == DType::q4_1)
        << type_name(type);
}

TEST_P(Interleaved, GivesTheBitsOfTheRowMajorProduct) {
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 32}, {48, 96}, {32, 2048}, {16, 2112}, {768, 512}, {80, 4160}}) {
    for (const DType type : kOrdered) {
      Rng rng(static_cast<uint64_t>(n * 31 + k));
      Matrices m(type, n, k);
      m.randomise(rng);
      for (const int64_t n_cols : {1, 2, 3, 4, 5, 9, 130}) {
        if (n * k * n_cols > 2000000) continue;
        const std::vector<float> x = rng.normals(k * n_cols);
        expect_same(m, 0, n, n_cols, x);
        const int64_t some = 16 * (1 + rng.below(n / 16)), first = 16 * rng.below((n - some) / 16 + 1);
        expect_same(m, first, some, n_cols, x);
      }
    }
  }
}

TEST_P(Interleaved, HoldsTheExtremesOfTheCodes) {
  for (const DType type : kOrdered)
    for (const int fill : {0x00, 0x7f, 0x88, 0xf0, 0xff})
      for (const float sign : {1.0f, -1.0f})
        for (const int64_t n_cols : {int64_t{1}, int64_t{2}, int64_t{4}}) {
          Matrices m(type, 32, 96);
          std::memset(m.rows.data(), fill, m.rows.size());
          for (size_t b = 0; b < m.rows.size(); b += static_cast<size_t>(m.block))
            for (int64_t i = 0; i < m.block - 16; i += 2) write_as(m.rows.data() + static_cast<int64_t>(b) + i, f32_to_f16(0.5f));
          m.move();
          expect_same(m, 0, 32, n_cols, std::vector<float>(static_cast<size_t>(96 * n_cols), sign));
        }
}

TEST_P(Interleaved, TakesSpecialNumbers) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (const DType type : kOrdered)
    for (const int64_t n_cols : {int64_t{1}, int64_t{2}, int64_t{4}})
      for (const float special : {0.0f, -0.0f, 1e-45f, 1e-30f, 1e30f, kInf, -kInf, kNan}) {
        Rng rng(7);
        Matrices m(type, 32, 96);
        m.randomise(rng);
        write_as(m.row(17) + m.block, f32_to_f16(kInf));
        m.move();
        std::vector<float> x = rng.normals(96 * n_cols);
        x[40] = special;
        expect_same(m, 0, 32, n_cols, x);
      }
}

}  // namespace
}  // namespace fth::cpu
