// Products over neuron-major matrices, of all neurons and of lists of live ones: the bits of the row-major product of the same table, and not a byte outside of
// what a call names.
#include <algorithm>
#include <limits>

#include "tests/conformance/kernels/fixture.h"

namespace fth::cpu {
namespace {

constexpr float kSentinel = -12345.678f;
constexpr DType kOrdered[] = {DType::q4_0, DType::q8_0};

// E outputs of k neurons in both orders, the neuron-major one made from its definition, code by code; it ends at a forbidden page.
struct Matrices {
  DType type;
  int64_t e, k;
  Guarded rows, neurons;

  Matrices(DType t, int64_t e_, int64_t k_)
      : type(t), e(e_), k(k_), rows(row_bytes(t, k_) * static_cast<uint64_t>(e_)), neurons(rows.size()) {}

  void randomise(Rng& rng) {
    for (int64_t r = 0; r < e; ++r) random_row(type, k, 0.02f, rng, row(r));
    move();
  }
  uint8_t* row(int64_t r) { return rows.data() + static_cast<uint64_t>(r) * row_bytes(type, k); }

  void move() {
    const int64_t block = traits(type).block_bytes;
    std::fill_n(neurons.data(), neurons.size(), uint8_t{0});
    for (int64_t r = 0; r < e; ++r)
      for (int64_t j = 0; j < k; ++j) {
        const uint8_t* from = row(r) + j / 32 * block;
        uint8_t* group = neurons.data() + j / 32 * e * block;
        std::memcpy(group + 2 * r, from, 2);
        uint8_t* codes = group + 2 * e;
        if (type == DType::q8_0) {
          codes[j % 32 * e + r] = from[2 + j % 32];
        } else {
          const int code = j % 32 < 16 ? from[2 + j % 32] & 15 : from[2 + j % 32 - 16] >> 4;
          uint8_t& byte = codes[j % 32 * (e / 2) + r / 32 * 16 + r % 16];
          byte = static_cast<uint8_t>(byte | (r % 32 < 16 ? code : code << 4));
        }
      }
  }
};

struct Activations {
  uint64_t step;
  Guarded rows;
  Activations(const KernelTable& table, int64_t k, int64_t n_cols, const std::vector<float>& x)
      : step(q8_row_bytes(k) + 3), rows(step * static_cast<uint64_t>(n_cols) - 3) {
    for (int64_t c = 0; c < n_cols; ++c) table.quantize_q8(k, x.data() + c * k, rows.data() + static_cast<uint64_t>(c) * step);
  }
};

// What ReGLU leaves: a share of zeros, whole groups of them among the others.
std::vector<float> hidden(int64_t k, int64_t n_cols, double dead, Rng& rng) {
  std::vector<float> x = rng.normals(k * n_cols);
  for (size_t i = 0; i < x.size(); ++i)
    if (rng.uniform(0, 1) < dead) x[i] = 0.0f;
  for (int64_t g = 0; g < k * n_cols / 32; ++g)
    if (dead > 0 && rng.below(5) == 0) std::fill_n(x.begin() + g * 32, 32, 0.0f);
  return x;
}

class ByNeuron : public KernelTest {
 protected:
  Guarded row_major(Matrices& m, const Activations& a, int64_t n_cols) const {
    Guarded dst(static_cast<size_t>(m.e * n_cols) * 4);
    table().matmul[static_cast<size_t>(m.type)](
        {m.rows.data(), row_bytes(m.type, m.k), a.rows.data(), a.step, dst.floats(), m.e, m.k, m.e, n_cols, nullptr});
    return dst;
  }
  // Outputs [first, first + n) into columns of n + 5 floats.
  Guarded by_neuron(const Matrices& m, const Activations& a, int64_t first, int64_t n, int64_t n_cols) const {
    Guarded dst(static_cast<size_t>((n + 5) * n_cols - 5) * 4);
    std::fill_n(dst.floats(), dst.size() / 4, kSentinel);
    table().matmul_by_neuron[static_cast<size_t>(m.type)](
        {m.neurons.data(), m.e, first, n, a.rows.data(), a.step, dst.floats(), n + 5, m.k, n_cols});
    EXPECT_TRUE(dst.front_intact());
    return dst;
  }
  // The same by lists, where the table has them for the type.
  bool lists(DType type) const { return table().matmul_live[static_cast<size_t>(type)] != nullptr; }
  Guarded by_lists(const Matrices& m, const Activations& a, int64_t first, int64_t n, int64_t n_cols) const {
    std::vector<LiveGroup> groups(static_cast<size_t>(n_cols * m.k / 32));
    for (int64_t c = 0; c < n_cols; ++c) {
      const uint8_t* const row = a.rows.data() + static_cast<uint64_t>(c) * a.step;
      const int64_t live = m.k - std::count(row, row + m.k, uint8_t{0});
      EXPECT_EQ(table().list_live(m.k, row, groups.data() + c * m.k / 32), live);
    }
    Guarded dst(static_cast<size_t>((n + 5) * n_cols - 5) * 4);
    std::fill_n(dst.floats(), dst.size() / 4, kSentinel);
    // The columns go to rows in the opposite order, and are brought back.
    std::vector<int32_t> rows(static_cast<size_t>(n_cols));
    for (int64_t c = 0; c < n_cols; ++c) rows[static_cast<size_t>(c)] = static_cast<int32_t>(n_cols - 1 - c);
    table().matmul_live[static_cast<size_t>(m.type)](
        {m.neurons.data(), m.e, first, n, groups.data(), dst.floats(), rows.data(), n + 5, m.k, n_cols});
    for (int64_t c = 0; c < n_cols / 2; ++c)
      for (int64_t i = 0; i < n; ++i) std::swap(dst.floats()[c * (n + 5) + i], dst.floats()[(n_cols - 1 - c) * (n + 5) + i]);
    EXPECT_TRUE(dst.front_intact());
    return dst;
  }
  void expect_same(Matrices& m, const Activations& a, int64_t first, int64_t n, int64_t n_cols) const {
    const Guarded want = row_major(m, a, n_cols);
    expect_equal(want, by_neuron(m, a, first, n, n_cols), m, first, n, n_cols);
    if (lists(m.type)) expect_equal(want, by_lists(m, a, first, n, n_cols), m, first, n, n_cols);
  }
  static void expect_equal(const Guarded& want, const Guarded& got, const Matrices& m, int64_t first, int64_t n, int64_t n_cols) {
    for (int64_t c = 0; c < n_cols; ++c)
      for (int64_t i = 0; i < n + (c + 1 < n_cols ? 5 : 0); ++i)
        ASSERT_EQ(bits_of(read_as<float>(got.data() + (c * (n + 5) + i) * 4)),
                  bits_of(i < n ? read_as<float>(want.data() + (c * m.e + first + i) * 4) : kSentinel))
            << type_name(m.type) << " e=" << m.e << " k=" << m.k << " outputs " << first << "+" << n << " columns " << n_cols << " at " << i
            << "," << c;
  }
};
INSTANTIATE_TEST_SUITE_P(Tables, ByNeuron, testing::Range<size_t>(0, n_tables()), table_name);

TEST_P(ByNeuron, ThoseTypesAndNoOthers) {
  for (const DType type : kTypes)
    EXPECT_EQ(table().matmul_by_neuron[static_cast<size_t>(type)] != nullptr, type == DType::q4_0 || type == DType::q8_0)
        << type_name(type);
  const auto any = std::any_of(std::begin(kTypes), std::end(kTypes), [&](DType type) { return lists(type); });
  EXPECT_EQ(table().list_live != nullptr, any);
}

TEST_P(ByNeuron, GivesTheBitsOfTheRowMajorProduct) {
  for (const DType type : kOrdered)
    for (const auto& [e, k] : {std::pair<int64_t, int64_t>{32, 32}, {64, 96}, {96, 64}, {160, 256}, {352, 32}, {1536, 768}, {64, 2112}})
      for (const double dead : {0.0, 0.5, 0.9, 1.0}) {
        Rng rng(static_cast<uint64_t>(e * 31 + k));
        Matrices m(type, e, k);
        m.randomise(rng);
        for (const int64_t n_cols : {1, 2, 3, 4, 5, 9}) {
          if (e * k > 100000 && n_cols > 3) continue;
          const Activations a(table(), k, n_cols, hidden(k, n_cols, dead, rng));
          expect_same(m, a, 0, e, n_cols);
          const int64_t n = 32 * (1 + rng.below(e / 32)), first = 32 * rng.below((e - n) / 32 + 1);
          expect_same(m, a, first, n, n_cols);
        }
      }
}

TEST_P(ByNeuron, HoldsTheExtremesOfTheCodes) {
  for (const DType type : kOrdered)
    for (const int fill : {0x00, 0x7f, 0x80, 0x88, 0xff})
      for (const float sign : {1.0f, -1.0f})
        for (const int64_t n_cols : {int64_t{1}, int64_t{4}}) {
          Matrices m(type, 96, 96);
          std::memset(m.rows.data(), fill, m.rows.size());
          for (size_t b = 0; b < m.rows.size(); b += traits(type).block_bytes) write_as(m.rows.data() + b, f32_to_f16(0.5f));
          m.move();
          std::vector<float> x(static_cast<size_t>(96 * n_cols), sign);
          for (size_t i = 0; i < x.size(); i += 7) x[i] = fill == 0x88 ? -sign : sign;
          expect_same(m, Activations(table(), 96, n_cols, x), 0, 96, n_cols);
        }
}

// 17 neurons of code 15 and activation 127 are the most whose sum fits 16 bits.
TEST_P(ByNeuron, HoldsSumsAtTheEdgeOf16Bits) {
  Matrices m(DType::q4_0, 160, 32);
  std::memset(m.rows.data(), 0xff, m.rows.size());
  for (size_t b = 0; b < m.rows.size(); b += traits(m.type).block_bytes) write_as(m.rows.data() + b, f32_to_f16(0.5f));
  m.move();
  for (const float sign : {1.0f, -1.0f})
    for (const size_t n : {1u, 16u, 17u, 18u, 31u, 32u}) {
      std::vector<float> x(32, 0.0f);
      for (size_t i = 0; i < n; ++i) x[31 - i] = sign;
      expect_same(m, Activations(table(), 32, 1, x), 0, 160, 1);
    }
}

// Groups of which no neuron is alive still pass on what their scales hold, and activations that are no numbers what they are.
TEST_P(ByNeuron, TakesSpecialNumbers) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for (const DType type : kOrdered)
    for (const int64_t n_cols : {int64_t{1}, int64_t{4}}) {
      Rng rng(7);
      Matrices m(type, 64, 96);
      m.randomise(rng);
      for (const float special : {0.0f, -0.0f, 1e-45f, 1e-30f, 1e30f, kInf, -kInf, kNan}) {
        std::vector<float> x = hidden(96, n_cols, 0.5, rng);
        x[40] = special;
        const Activations a(table(), 96, n_cols, x);
        const Guarded want = row_major(m, a, n_cols);
        const auto expect = [&](const Guarded& got) {
          for (int64_t i = 0; i < 64 * n_cols; ++i) {
            const float w = read_as<float>(want.data() + i * 4), g = read_as<float>(got.data() + (i / 64 * 69 + i % 64) * 4);
            EXPECT_TRUE(std::isnan(w) ? std::isnan(g) : bits_of(w) == bits_of(g)) << type_name(type) << " " << special << " at " << i;
          }
        };
        expect(by_neuron(m, a, 0, 64, n_cols));
        if (lists(type)) expect(by_lists(m, a, 0, 64, n_cols));
      }
      write_as(m.row(3) + traits(type).block_bytes, f32_to_f16(kInf));
      m.move();
      std::vector<float> x(static_cast<size_t>(96 * n_cols), 0.0f);
      const Activations a(table(), 96, n_cols, x);
      const Guarded got = by_neuron(m, a, 0, 64, n_cols),
                    listed = lists(type) ? by_lists(m, a, 0, 64, n_cols) : by_neuron(m, a, 0, 64, n_cols);
      for (int64_t c = 0; c < n_cols; ++c) {
        EXPECT_TRUE(std::isnan(read_as<float>(got.data() + (c * 69 + 3) * 4)));
        EXPECT_TRUE(std::isnan(read_as<float>(listed.data() + (c * 69 + 3) * 4)));
      }
    }
}

}  // namespace
}  // namespace fth::cpu
