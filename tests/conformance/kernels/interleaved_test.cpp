// Products over interleaved matrices: the bits of the row-major product of the same table, and not a byte outside of what a call names.
#include <algorithm>
#include <limits>

#include "tests/conformance/kernels/fixture.h"

namespace fth::cpu {
namespace {

constexpr float kSentinel = -12345.678f;

constexpr DType kOrdered[] = {DType::q8_0, DType::q4_0, DType::q4_1, DType::q6_k};

// A matrix in both orders, the interleaved one made from its definition, code by code; it ends at a forbidden page.
struct Matrices {
  DType type;
  int64_t n, k;
  Guarded rows, panels;

  Matrices(DType t, int64_t n_, int64_t k_)
      : type(t), n(n_), k(k_), rows(row_bytes(t, k_) * static_cast<uint64_t>(n_)), panels(rows.size()) {}

  void randomise(Rng& rng) {
    for (int64_t r = 0; r < n; ++r) random_row(type, k, 0.02f, rng, row(r));
    move();
  }
  uint8_t* row(int64_t r) { return rows.data() + static_cast<uint64_t>(r) * row_bytes(type, k); }

  void move() {
    std::fill_n(panels.data(), panels.size(), uint8_t{0});
    const int64_t block = traits(type).block, bytes = traits(type).block_bytes;
    for (int64_t r = 0; r < n; ++r)
      for (int64_t b = 0; b < k / block; ++b) {
        const uint8_t* const from = row(r) + b * bytes;
        uint8_t* const to = panels.data() + r / 16 * 16 * static_cast<int64_t>(row_bytes(type, k)) + b * 16 * bytes;
        const int64_t lane = r % 16;
        if (type == DType::q8_0) {
          std::memcpy(to + 2 * lane, from, 2);
          for (int64_t j = 0; j < 32; ++j) to[32 + j / 4 * 64 + lane * 4 + j % 4] = from[2 + j];
          continue;
        }
        if (type != DType::q6_k) {
          const int64_t head = bytes - 16;  // a scale, and q4_1's minimum
          for (int64_t i = 0; i < head; i += 2) std::memcpy(to + 16 * i + 2 * lane, from + i, 2);
          for (int64_t j = 0; j < 16; ++j) to[16 * head + j / 4 * 64 + lane * 4 + j % 4] = from[head + j];
          continue;
        }
        std::memcpy(to + 2 * lane, from + 208, 2);
        for (int64_t s = 0; s < 16; ++s) to[32 + s * 16 + lane] = from[192 + s];
        for (int64_t c = 0; c < 256; ++c) {
          const int64_t h = c / 128, g = c % 128 / 32, l = c % 32;  // of the file's block, as in value_at()
          const int low = g < 2 ? from[64 * h + 32 * (g % 2) + l] & 15 : from[64 * h + 32 * (g % 2) + l] >> 4;
          const int high = from[128 + 32 * h + l] >> (2 * g) & 3;
          const int64_t half = l / 16, i = l % 16 / 4, j = l % 4;
          uint8_t& nibbles = to[288 + c / 32 * 256 + i * 64 + lane * 4 + j];
          uint8_t& pairs = to[2336 + c / 32 * 128 + half * 64 + lane * 4 + j];
          nibbles = static_cast<uint8_t>(nibbles | low << (4 * half));
          pairs = static_cast<uint8_t>(pairs | high << (2 * i));
        }
      }
  }
};

class Interleaved : public KernelTest {
 protected:
  void expect_same(Matrices& m, int64_t first, int64_t n, int64_t n_cols, const std::vector<float>& x) const {
    const uint64_t step = q8_row_bytes(m.k) + 3, row = row_bytes(m.type, m.k);
    const auto type = static_cast<size_t>(m.type);
    Guarded act(step * static_cast<uint64_t>(n_cols) - 3), want(static_cast<size_t>(m.n * n_cols) * 4);
    for (int64_t c = 0; c < n_cols; ++c) table().quantize_q8(m.k, x.data() + c * m.k, act.data() + static_cast<uint64_t>(c) * step);
    table().matmul[type]({m.rows.data(), row, act.data(), step, want.floats(), m.n, m.k, m.n, n_cols, nullptr});
    Guarded got(static_cast<size_t>((n + 5) * n_cols - 5) * 4);
    std::fill_n(got.floats(), got.size() / 4, kSentinel);
    table().matmul_interleaved[type](
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

TEST_P(Interleaved, ThoseTypesAndNoOthers) {
  for (const DType type : kTypes)
    EXPECT_EQ(table().matmul_interleaved[static_cast<size_t>(type)] != nullptr,
              std::find(std::begin(kOrdered), std::end(kOrdered), type) != std::end(kOrdered))
        << type_name(type);
}

TEST_P(Interleaved, GivesTheBitsOfTheRowMajorProduct) {
  for (const DType type : kOrdered)
    for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 32}, {48, 96}, {32, 2048}, {16, 2304}, {768, 512}, {80, 4160}}) {
      if (k % traits(type).block != 0) continue;
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

TEST_P(Interleaved, HoldsTheExtremesOfTheCodes) {
  for (const DType type : kOrdered)
    for (const int fill : {0x00, 0x7f, 0x80, 0x88, 0xf0, 0xff})
      for (const float sign : {1.0f, -1.0f})
        for (const int64_t n_cols : {int64_t{1}, int64_t{2}, int64_t{4}}) {
          Matrices m(type, 32, 512);
          std::memset(m.rows.data(), fill, m.rows.size());
          for (size_t b = 0; b < m.rows.size(); b += traits(type).block_bytes)
            for (const size_t at : {type == DType::q6_k ? size_t{208} : size_t{0}, type == DType::q4_1 ? size_t{2} : size_t{208}})
              if (at < traits(type).block_bytes) write_as(m.rows.data() + b + at, f32_to_f16(0.5f));
          m.move();
          expect_same(m, 0, 32, n_cols, std::vector<float>(static_cast<size_t>(512 * n_cols), sign));
        }
}

TEST_P(Interleaved, TakesSpecialNumbers) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (const DType type : kOrdered)
    for (const int64_t n_cols : {int64_t{1}, int64_t{2}, int64_t{4}})
      for (const float special : {0.0f, -0.0f, 1e-45f, 1e-30f, 1e30f, kInf, -kInf, kNan}) {
        Rng rng(7);
        Matrices m(type, 32, 256);
        m.randomise(rng);
        write_as(m.row(17) + (type == DType::q6_k ? 208 : traits(type).block_bytes), f32_to_f16(kInf));
        m.move();
        std::vector<float> x = rng.normals(256 * n_cols);
        x[40] = special;
        expect_same(m, 0, 32, n_cols, x);
      }
}

}  // namespace
}  // namespace fth::cpu
