// The products, conversions and axpy of every kernel table against double-precision sums over the formats' definitions.
#include <algorithm>
#include <limits>
#include <set>

#include "tests/conformance/kernels/fixture.h"

namespace fth::cpu {
namespace {

constexpr float kSentinel = -12345.678f;

// A matmul problem whose weights and activations end at forbidden pages; rows lie `gap` bytes apart, so that most are unaligned.
struct Problem {
  DType type;
  int64_t k, n_rows, n_cols;
  uint64_t row_step, act_step;
  Guarded weights, acts;
  std::vector<float> x;       // [n_cols, k] before quantisation
  std::vector<double> exact;  // [n_cols, n_rows] over the activations as the table quantised them
  std::vector<double> ideal;  // [n_cols, n_rows] over x

  Problem(const KernelTable& table, DType t, int64_t k_, int64_t rows, int64_t cols, Rng& rng, float magnitude = 0.02f,
          float act_scale = 1.0f)
      : type(t),
        k(k_),
        n_rows(rows),
        n_cols(cols),
        row_step(row_bytes(t, k_) + 1),
        act_step((is_quantised(t) ? q8_row_bytes(k_) : static_cast<uint64_t>(k_) * 4) + 3),
        weights(row_step * static_cast<uint64_t>(rows) - 1),
        acts(act_step * static_cast<uint64_t>(cols) - 3),
        x(rng.normals(cols * k_, act_scale)) {
    for (int64_t r = 0; r < n_rows; ++r) random_row(type, k, magnitude, rng, weights.data() + static_cast<uint64_t>(r) * row_step);
    quantise(table);
  }

  void quantise(const KernelTable& table) {
    for (int64_t c = 0; c < n_cols; ++c) {
      uint8_t* act = acts.data() + static_cast<uint64_t>(c) * act_step;
      if (is_quantised(type)) {
        table.quantize_q8(k, x.data() + c * k, act);
      } else {
        std::memcpy(act, x.data() + c * k, static_cast<size_t>(k) * 4);
      }
    }
  }

  double act_value(int64_t c, int64_t i) const {
    const uint8_t* act = acts.data() + static_cast<uint64_t>(c) * act_step;
    if (!is_quantised(type)) return static_cast<double>(read_as<float>(act + i * 4));
    return static_cast<double>(read_as<float>(act + k + i / 32 * 4)) * static_cast<int8_t>(act[i]);
  }

  void reference() {
    exact.assign(static_cast<size_t>(n_cols * n_rows), 0);
    ideal = exact;
    std::vector<double> w(static_cast<size_t>(k));
    for (int64_t r = 0; r < n_rows; ++r) {
      for (int64_t i = 0; i < k; ++i) w[static_cast<size_t>(i)] = value_at(type, weights.data() + static_cast<uint64_t>(r) * row_step, i);
      for (int64_t c = 0; c < n_cols; ++c) {
        double e = 0, d = 0;
        for (int64_t i = 0; i < k; ++i) {
          e += w[static_cast<size_t>(i)] * act_value(c, i);
          d += w[static_cast<size_t>(i)] * static_cast<double>(x[static_cast<size_t>(c * k + i)]);
        }
        exact[static_cast<size_t>(c * n_rows + r)] = e;
        ideal[static_cast<size_t>(c * n_rows + r)] = d;
      }
    }
  }

  // Rows [r0, r0 + nr) or the listed ones, columns [c0, c0 + nc); dst is [n_cols, n_rows + 3], untouched elements keep the sentinel.
  Guarded run(const KernelTable& table, int64_t r0, int64_t nr, int64_t c0, int64_t nc, const int32_t* rows = nullptr) const {
    Guarded dst(static_cast<size_t>(n_cols * (n_rows + 3) - 3) * 4);
    std::fill_n(dst.floats(), dst.size() / 4, kSentinel);
    table.matmul[static_cast<size_t>(type)]({weights.data() + static_cast<uint64_t>(r0) * row_step, row_step,
                                             acts.data() + static_cast<uint64_t>(c0) * act_step, act_step,
                                             dst.floats() + c0 * (n_rows + 3) + r0, n_rows + 3, k, nr, nc, rows});
    return dst;
  }
  float at(const Guarded& dst, int64_t r, int64_t c) const { return read_as<float>(dst.data() + (c * (n_rows + 3) + r) * 4); }
};

std::vector<int64_t> lengths(DType type) {
  if (traits(type).block == 256) return {256, 512, 768, 2048, 2304, 4352};
  if (is_quantised(type)) return {32, 64, 96, 160, 256, 2048, 2080, 2560, 4128};
  return {1, 7, 32, 37, 80, 96, 256, 1032, 2560};
}

class Matmul : public KernelTest {};
class Convert : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(Tables, Matmul, testing::Range<size_t>(0, n_tables()), table_name);
INSTANTIATE_TEST_SUITE_P(Tables, Convert, testing::Range<size_t>(0, n_tables()), table_name);

TEST(KernelChoices, EndWithGenericAndRefuseWithReasons) {
  const KernelChoice* choices = nullptr;
  const size_t n = kernel_choices(&choices);
  ASSERT_GE(n, 1u);
  EXPECT_EQ(choices[n - 1].table, &kGeneric);
  EXPECT_EQ(choices[n - 1].refusal, nullptr);
  std::set<std::string> names;
  for (size_t i = 0; i < n; ++i) {
    if (choices[i].refusal) {
      EXPECT_STRNE(choices[i].refusal, "");
    }
    EXPECT_TRUE(names.insert(choices[i].table->name).second);
    for (size_t t = 0; t < kWeightTypes; ++t) {
      EXPECT_NE(choices[i].table->matmul[t], nullptr);
      EXPECT_NE(choices[i].table->dequantize[t], nullptr);
      EXPECT_NE(choices[i].table->axpy[t], nullptr);
    }
  }
}

// Every output of a full call against the sum over what was quantised (f32 rounding alone is left: NMSE 1e-10 is a relative error of 1e-5) and
// against the unquantised activations: 8 bits a block of 32 leave about 3e-5 of random data.
TEST_P(Matmul, IsTheDotProduct) {
  for (const DType type : kTypes)
    for (const int64_t k : lengths(type)) {
      Rng rng(static_cast<uint64_t>(k) * 16 + static_cast<uint64_t>(type));
      Problem p(table(), type, k, 17, 33, rng);
      p.reference();
      const Guarded dst = p.run(table(), 0, p.n_rows, 0, p.n_cols);
      Nmse exact, ideal;
      for (int64_t c = 0; c < p.n_cols; ++c)
        for (int64_t r = 0; r < p.n_rows; ++r) {
          exact.add(static_cast<double>(p.at(dst, r, c)), p.exact[static_cast<size_t>(c * p.n_rows + r)]);
          ideal.add(static_cast<double>(p.at(dst, r, c)), p.ideal[static_cast<size_t>(c * p.n_rows + r)]);
        }
      EXPECT_LE(exact.value(), 1e-10) << type_name(type) << " k=" << k;
      EXPECT_LE(ideal.value(), is_quantised(type) ? 2e-4 : 1e-10) << type_name(type) << " k=" << k;
      EXPECT_TRUE(dst.front_intact());
    }
}

// 1 to 17 rows and 1 to 9 or 33 columns: the bits of the full call, and not a byte beside them.
TEST_P(Matmul, BitsDoNotDependOnTheShapeOfTheCall) {
  for (const DType type : kTypes)
    for (const int64_t k : {lengths(type)[3], lengths(type)[5]}) {
      Rng rng(static_cast<uint64_t>(k) * 16 + static_cast<uint64_t>(type) + 1);
      const Problem p(table(), type, k, 17, 33, rng);
      const Guarded full = p.run(table(), 0, p.n_rows, 0, p.n_cols);
      for (int64_t nr = 1; nr <= 17; ++nr)
        for (const int64_t nc : {1, 2, 3, 4, 5, 6, 7, 8, 9, 33}) {
          const int64_t r0 = rng.below(p.n_rows - nr + 1), c0 = rng.below(p.n_cols - nc + 1);
          const Guarded part = p.run(table(), r0, nr, c0, nc);
          for (int64_t c = 0; c < p.n_cols; ++c)
            for (int64_t r = 0; r < p.n_rows + 3 && c * (p.n_rows + 3) + r < static_cast<int64_t>(part.size() / 4); ++r) {
              const bool inside = r >= r0 && r < r0 + nr && c >= c0 && c < c0 + nc;
              ASSERT_EQ(bits_of(p.at(part, r, c)), bits_of(inside ? p.at(full, r, c) : kSentinel))
                  << type_name(type) << " k=" << k << " rows " << r0 << "+" << nr << " cols " << c0 << "+" << nc << " at " << r << "," << c;
            }
          ASSERT_TRUE(part.front_intact());
        }
    }
}

TEST_P(Matmul, RowListsGiveTheSameBits) {
  for (const DType type : kTypes) {
    const int64_t k = lengths(type)[4];
    Rng rng(static_cast<uint64_t>(type) + 77);
    const Problem p(table(), type, k, 40, 5, rng);
    const Guarded full = p.run(table(), 0, p.n_rows, 0, p.n_cols);
    for (int round = 0; round < 20; ++round) {
      std::vector<int32_t> rows;
      for (int32_t r = 0; r < p.n_rows; ++r)
        if (rng.below(20) < round) rows.push_back(r);
      const int64_t nc = 1 + rng.below(p.n_cols);
      const Guarded part = p.run(table(), 0, static_cast<int64_t>(rows.size()), 0, nc, rows.data());
      for (int64_t c = 0; c < p.n_cols; ++c)
        for (int32_t r = 0; r < p.n_rows; ++r) {
          const bool inside = c < nc && std::binary_search(rows.begin(), rows.end(), r);
          ASSERT_EQ(bits_of(p.at(part, r, c)), bits_of(inside ? p.at(full, r, c) : kSentinel)) << type_name(type) << " " << r << "," << c;
        }
    }
  }
}

TEST_P(Matmul, AgreesWithGeneric) {
  for (const DType type : kTypes) {
    Rng rng(static_cast<uint64_t>(type) + 99);
    const int64_t k = lengths(type).back();
    Problem p(table(), type, k, 19, 6, rng);
    const Guarded dst = p.run(table(), 0, 19, 0, 6);
    p.quantise(kGeneric);
    const Guarded want = p.run(kGeneric, 0, 19, 0, 6);
    Nmse e;
    for (int64_t c = 0; c < 6; ++c)
      for (int64_t r = 0; r < 19; ++r) e.add(static_cast<double>(p.at(dst, r, c)), static_cast<double>(p.at(want, r, c)));
    EXPECT_LE(e.value(), 1e-10) << type_name(type);
  }
}

// The largest codes everywhere: integer sums that saturate or overflow show here.
TEST_P(Matmul, HoldsTheExtremesOfTheCodes) {
  for (const DType type : kTypes) {
    if (!is_quantised(type)) continue;
    for (const int fill : {0x00, 0x7f, 0x80, 0x88, 0xff}) {
      for (const float sign : {1.0f, -1.0f}) {
        Rng rng(5);
        Problem p(table(), type, 512, 17, 4, rng);
        for (size_t i = 0; i < p.x.size(); ++i) p.x[i] = i % 7 == 6 && fill == 0x88 ? -sign : sign;
        p.quantise(table());
        for (int64_t r = 0; r < p.n_rows; ++r) {
          uint8_t* row = p.weights.data() + static_cast<uint64_t>(r) * p.row_step;
          std::memset(row, fill, row_bytes(type, p.k));
          const uint16_t one = f32_to_f16(0.5f);
          for (uint64_t b = 0; b < row_bytes(type, p.k); b += traits(type).block_bytes) {
            write_as(row + b + (type == DType::q6_k ? 208 : 0), one);
            if (type == DType::q4_1 || type == DType::q4_k) write_as(row + b + 2, one);
          }
        }
        p.reference();
        for (const int64_t nc : {1, 4}) {
          const Guarded dst = p.run(table(), 0, p.n_rows, 0, nc);
          for (int64_t c = 0; c < nc; ++c)
            for (int64_t r = 0; r < p.n_rows; ++r) {
              const double want = p.exact[static_cast<size_t>(c * p.n_rows + r)];
              // Where offsets cancel the codes, what remains is rounding of the larger terms.
              ASSERT_NEAR(static_cast<double>(p.at(dst, r, c)), want, std::abs(want) * 1e-5 + 2e-3)
                  << type_name(type) << " fill " << fill << " sign " << static_cast<double>(sign) << " cols " << nc;
            }
        }
      }
    }
  }
}

// Zero rows and zero activations give zeros; tiny and huge scales keep their relative error; a NaN or an infinity reaches every output of its column
// and none of its neighbours.
TEST_P(Matmul, TakesSpecialNumbers) {
  for (const DType type : kTypes) {
    const int64_t k = 512;
    for (const float scale : {1e-38f, 1e-30f, 1e-3f, 1e6f, 1e30f}) {
      Rng rng(11);
      Problem p(table(), type, k, 9, 5, rng, 0.02f, scale);
      p.reference();
      const Guarded dst = p.run(table(), 0, 9, 0, 5);
      Nmse e;
      for (int64_t i = 0; i < 45; ++i)
        e.add(static_cast<double>(p.at(dst, i % 9, i / 9)) / static_cast<double>(scale),
              p.exact[static_cast<size_t>(i)] / static_cast<double>(scale));
      EXPECT_LE(e.value(), scale > 1e-35f ? 1e-10 : 1e-3) << type_name(type) << " scale " << scale;
    }
    for (const int64_t nc : {int64_t{1}, int64_t{5}}) {
      Rng rng(12);
      Problem p(table(), type, k, 9, nc, rng);
      const Guarded before = p.run(table(), 0, 9, 0, nc);
      for (const float special :
           {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
        Problem q(table(), type, k, 9, nc, rng);
        std::memcpy(q.weights.data(), p.weights.data(), p.weights.size());
        q.x = p.x;
        q.x[37] = special;
        q.quantise(table());
        const Guarded dst = q.run(table(), 0, 9, 0, nc);
        for (int64_t r = 0; r < 9; ++r) {
          EXPECT_FALSE(std::isfinite(q.at(dst, r, 0))) << type_name(type);
          for (int64_t c = 1; c < nc; ++c) EXPECT_EQ(bits_of(q.at(dst, r, c)), bits_of(p.at(before, r, c)));
        }
      }
      std::fill(p.x.begin(), p.x.end(), 0.0f);
      p.quantise(table());
      const Guarded zeros = p.run(table(), 0, 9, 0, nc);
      for (int64_t i = 0; i < 9 * nc; ++i) EXPECT_EQ(p.at(zeros, i % 9, i / 9), 0.0f) << type_name(type);
      Problem z(table(), type, k, 9, nc, rng);
      std::memset(z.weights.data(), 0, z.weights.size());
      const Guarded zero_rows = z.run(table(), 0, 9, 0, nc);
      for (int64_t i = 0; i < 9 * nc; ++i) EXPECT_EQ(z.at(zero_rows, i % 9, i / 9), 0.0f) << type_name(type);
    }
  }
}

TEST_P(Matmul, Fuzz) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Rng rng(seed + 1000);
    const DType type = kTypes[rng.below(8)];
    const int64_t step = is_quantised(type) ? std::max<int64_t>(32, traits(type).block) : 1;
    const int64_t k = step * (1 + rng.below(step == 1 ? 300 : 1200 / step));
    Problem p(table(), type, k, 1 + rng.below(35), 1 + rng.below(12), rng, static_cast<float>(std::exp2(rng.uniform(-12, 3))));
    p.reference();
    const Guarded dst = p.run(table(), 0, p.n_rows, 0, p.n_cols);
    // One output alone may cancel to almost nothing: the error is measured over the call against the size of its terms.
    Nmse e;
    for (int64_t c = 0; c < p.n_cols; ++c)
      for (int64_t r = 0; r < p.n_rows; ++r) {
        double terms = 0;
        for (int64_t i = 0; i < k; ++i)
          terms += std::pow(value_at(type, p.weights.data() + static_cast<uint64_t>(r) * p.row_step, i) * p.act_value(c, i), 2);
        const double got = static_cast<double>(p.at(dst, r, c)) - p.exact[static_cast<size_t>(c * p.n_rows + r)];
        e.difference += got * got;
        e.reference += terms;
      }
    ASSERT_LE(e.value(), 1e-10) << type_name(type) << " seed " << seed << " k=" << k << " rows " << p.n_rows << " cols " << p.n_cols;
  }
}

TEST_P(Convert, DequantizeAndAxpyFollowTheDefinition) {
  for (const DType type : kTypes)
    for (const int64_t k : lengths(type)) {
      Rng rng(static_cast<uint64_t>(k) + 3);
      Guarded row(row_bytes(type, k)), y(static_cast<size_t>(k) * 4), z(static_cast<size_t>(k) * 4);
      random_row(type, k, 0.5f, rng, row.data());
      const std::vector<float> start = rng.normals(k);
      std::memcpy(z.data(), start.data(), z.size());
      table().dequantize[static_cast<size_t>(type)](k, row.data(), y.floats());
      table().axpy[static_cast<size_t>(type)](k, 0.37f, row.data(), z.floats());
      for (int64_t i = 0; i < k; ++i) {
        const double v = value_at(type, row.data(), i);
        // The sum of two rounded products: relative to the parts (of at most 0.5 * 63 for q4_k), not to a result that may cancel.
        const double slack = type == DType::q4_k || type == DType::q4_1 ? 32 * 1.2e-7 : 0;
        ASSERT_NEAR(static_cast<double>(y.floats()[i]), v, std::abs(v) * 1.2e-7 + slack) << type_name(type) << " " << i;
        const double want = static_cast<double>(start[static_cast<size_t>(i)]) + static_cast<double>(0.37f) * v;
        ASSERT_NEAR(static_cast<double>(z.floats()[i]), want, (std::abs(v) + std::abs(want)) * 2.4e-7 + slack)
            << type_name(type) << " " << i;
      }
      EXPECT_TRUE(y.front_intact() && z.front_intact());
    }
}

TEST_P(Convert, QuantizeFineIsARowAndARowOfWhatItLeaves) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Rng rng(22);
  for (const int64_t k : {32, 96, 2560})
    for (const float special : {0.0f, 1e-45f, 1.0f, 1e30f, kInf, std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> x = rng.normals(k);
      x[5] = special;
      Guarded got(2 * q8_row_bytes(k)), first(q8_row_bytes(k)), second(q8_row_bytes(k));
      table().quantize_fine(k, x.data(), got.data());
      EXPECT_TRUE(got.front_intact());
      table().quantize_q8(k, x.data(), first.data());
      for (int64_t i = 0; i < k; ++i)
        x[static_cast<size_t>(i)] -=
            read_as<float>(first.data() + k + i / 32 * 4) * static_cast<float>(static_cast<int8_t>(first.data()[i]));
      table().quantize_q8(k, x.data(), second.data());
      // Sums of blocks that are not finite are NaN of either sign: only the codes of those are compared.
      for (int64_t at = 0; at < 2; ++at) {
        const uint8_t *const row = got.data() + static_cast<uint64_t>(at) * first.size(), *const want = (at == 0 ? first : second).data();
        EXPECT_EQ(std::memcmp(row, want, static_cast<size_t>(k)), 0) << "k=" << k << " special " << special;
        for (int64_t i = 0; i < k / 16; ++i) {
          const float g = read_as<float>(row + k + i * 4), w = read_as<float>(want + k + i * 4);
          EXPECT_TRUE(std::isnan(w) ? std::isnan(g) : bits_of(w) == bits_of(g)) << "k=" << k << " special " << special;
        }
      }
    }
}

TEST_P(Convert, QuantizeQ8IsNearestAndTheSameEverywhere) {
  Rng rng(21);
  for (const int64_t k : {32, 64, 96, 2560})
    for (const float scale : {0.0f, 1e-45f, 1e-44f, 1e-42f, 1e-38f, 1e-20f, 1.0f, 1e30f, 3e38f}) {
      std::vector<float> x = rng.normals(k);
      for (float& v : x) v = std::clamp(v * scale, -std::numeric_limits<float>::max(), std::numeric_limits<float>::max());
      x[3] = scale;
      Guarded row(q8_row_bytes(k)), same(q8_row_bytes(k));
      table().quantize_q8(k, x.data(), row.data());
      kGeneric.quantize_q8(k, x.data(), same.data());
      EXPECT_EQ(std::memcmp(row.data(), same.data(), row.size()), 0) << "k=" << k << " scale " << scale;
      EXPECT_TRUE(row.front_intact());
      for (int64_t b = 0; b < k / 32; ++b) {
        float top = 0;
        for (int64_t i = b * 32; i < b * 32 + 32; ++i) top = std::max(top, std::abs(x[static_cast<size_t>(i)]));
        const float d = read_as<float>(row.data() + k + b * 4);
        EXPECT_EQ(d, top / 127.0f);
        int sum = 0;
        for (int64_t i = b * 32; i < b * 32 + 32; ++i) {
          const int q = static_cast<int8_t>(row.data()[i]);
          sum += q;
          ASSERT_GE(q, -127);
          if (d >= std::numeric_limits<float>::min()) {
            ASSERT_LE(std::abs(static_cast<double>(x[static_cast<size_t>(i)]) - static_cast<double>(d) * q),
                      static_cast<double>(d) * 0.50001);
          }
        }
        EXPECT_EQ(read_as<float>(row.data() + k + k / 8 + b * 4), d * static_cast<float>(sum));
      }
    }
}

TEST_P(Convert, F32ToF16RoundsToNearestEven) {
  std::vector<float> x;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = f16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(f)) continue;
    x.push_back(f);
    x.push_back(std::nextafter(f, 1e30f));
    x.push_back(std::nextafter(f, -1e30f));
    if ((h & 0x7fff) < 0x7bff) {  // halfway to the next, and its neighbours
      const float middle = (f + f16_to_f32(static_cast<uint16_t>(h + 1))) * 0.5f;
      x.push_back(middle);
      x.push_back(std::nextafter(middle, 1e30f));
      x.push_back(std::nextafter(middle, -1e30f));
    }
  }
  for (const float f : {65519.9f, 65520.0f, 65536.0f, 1e38f, 1e-45f, 2.98e-8f, 2.99e-8f}) x.push_back(f);
  std::vector<uint16_t> y(x.size() + 1, 0xabcd);
  table().f32_to_f16(static_cast<int64_t>(x.size()), x.data(), y.data());
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], f32_to_f16(x[i])) << static_cast<double>(x[i]);
  EXPECT_EQ(y.back(), 0xabcd);
  for (int64_t n = 0; n < 40; ++n) {
    std::vector<uint16_t> part(static_cast<size_t>(n) + 2, 0xabcd);
    table().f32_to_f16(n, x.data() + 1000, part.data());
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(part[static_cast<size_t>(i)], y[static_cast<size_t>(1000 + i)]);
    EXPECT_EQ(part[static_cast<size_t>(n)], 0xabcd);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  uint16_t out = 0;
  table().f32_to_f16(1, &nan, &out);
  EXPECT_TRUE(std::isnan(f16_to_f32(out)));
}

}  // namespace
}  // namespace fth::cpu
