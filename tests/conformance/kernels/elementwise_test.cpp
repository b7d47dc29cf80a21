// Attention and the elementwise kernels of every table against double precision.
#include <limits>

#include "tests/conformance/kernels/fixture.h"

namespace fth::cpu {
namespace {

class Attention : public KernelTest {};
class Elementwise : public KernelTest {};
INSTANTIATE_TEST_SUITE_P(Tables, Attention, testing::Range<size_t>(0, n_tables()), table_name);
INSTANTIATE_TEST_SUITE_P(Tables, Elementwise, testing::Range<size_t>(0, n_tables()), table_name);

// k and v of one kv head in cells `cell` bytes apart, each buffer ending at a forbidden page.
struct Cache {
  DType type;
  int64_t head_dim, n_cells;
  uint64_t cell;
  Guarded k, v;
  Cache(DType type_, int64_t dim, int64_t cells, Rng& rng)
      : type(type_),
        head_dim(dim),
        n_cells(cells),
        cell(row_bytes(type_, dim) + 6),
        k(cell * static_cast<uint64_t>(cells) - 6),
        v(cell * static_cast<uint64_t>(cells) - 6) {
    for (int64_t c = 0; c < cells; ++c)
      for (Guarded* g : {&k, &v}) {
        if (type == DType::q8_0) {
          for (int64_t b = 0; b < dim / 32; ++b) {
            uint8_t* const block = at(*g, c) + 34 * b;
            write_as(block, f32_to_f16(0.01f + 0.01f * std::abs(rng.normal())));
            for (int j = 0; j < 32; ++j) block[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(rng.below(255) - 127));
          }
        } else {
          for (int64_t i = 0; i < dim; ++i) put(*g, c, i, rng.normal());
        }
      }
  }
  uint8_t* at(Guarded& g, int64_t c) const { return g.data() + cell * static_cast<uint64_t>(c); }
  const uint8_t* at(const Guarded& g, int64_t c) const { return g.data() + cell * static_cast<uint64_t>(c); }
  void put(Guarded& g, int64_t c, int64_t i, float x) {
    if (type == DType::f16) {
      write_as(at(g, c) + 2 * i, f32_to_f16(x));
    } else {
      write_as(at(g, c) + 4 * i, x);
    }
  }
  double get(const Guarded& g, int64_t c, int64_t i) const {
    const uint8_t* const row = at(g, c);
    if (type == DType::f16) return half_value(row + 2 * i);
    if (type == DType::f32) return static_cast<double>(read_as<float>(row + 4 * i));
    return half_value(row + i / 32 * 34) * static_cast<int8_t>(row[i / 32 * 34 + 2 + i % 32]);
  }
  // One token that sees n positions from `first` on. Cells in pages of page_cells; 0: in one.
  std::vector<float> run(const KernelTable& t, const std::vector<float>& q, int64_t j0, int64_t n_q, int64_t first, int64_t n, float scale,
                         int64_t page_cells = 0) const {
    return run_tokens(t, q.data() + j0 * head_dim, n_q * head_dim, n_q, first + n - 1, 1, n, scale, page_cells);
  }
  // Tokens whose heads lie `stride` floats apart; what they give, adjacent.
  std::vector<float> run_tokens(const KernelTable& t, const float* q, int64_t stride, int64_t n_q, int64_t pos, int64_t n_tokens,
                                int64_t window, float scale, int64_t page_cells = 0) const {
    const int64_t used = (n_tokens - 1) * stride + n_q * head_dim;
    Guarded y(static_cast<size_t>(used) * 4);
    std::memset(y.data(), 0xff, y.size());  // NaN: what was there may not matter
    if (page_cells == 0) page_cells = n_cells;
    std::vector<const std::byte*> k_pages, v_pages;
    for (int64_t c = 0; c < n_cells; c += page_cells) {
      k_pages.push_back(reinterpret_cast<const std::byte*>(at(k, c)));
      v_pages.push_back(reinterpret_cast<const std::byte*>(at(v, c)));
    }
    // The head lies 4 bytes into its cell, as if another were before it.
    for (auto* pages : {&k_pages, &v_pages})
      for (auto& page : *pages) page -= 4;
    const AttentionArgs args{.q = q,
                             .k = k_pages.data(),
                             .v = v_pages.data(),
                             .head_offset = 4,
                             .cell_bytes = cell,
                             .page_cells = page_cells,
                             .y = y.floats(),
                             .stride = stride,
                             .n_q = n_q,
                             .head_dim = head_dim,
                             .pos = pos,
                             .n_tokens = n_tokens,
                             .window = window,
                             .n_cells = n_cells,
                             .scale = scale};
    (type == DType::f16 ? t.attention_f16 : type == DType::f32 ? t.attention_f32 : t.attention_q8_0)(args);
    EXPECT_TRUE(y.front_intact());
    std::vector<float> out;
    for (int64_t token = 0; token < n_tokens; ++token)
      for (int64_t i = 0; i < stride && token * stride + i < used; ++i) {
        const float value = y.floats()[token * stride + i];
        if (i < n_q * head_dim) {
          out.push_back(value);
        } else {
          EXPECT_TRUE(std::isnan(value)) << "written between two tokens' heads";
        }
      }
    return out;
  }
  std::vector<double> reference(const std::vector<float>& q, int64_t n_q, int64_t first, int64_t n, double scale) const {
    std::vector<double> y(static_cast<size_t>(n_q * head_dim), 0.0), s(static_cast<size_t>(n));
    for (int64_t j = 0; j < n_q; ++j) {
      double top = -1e300, total = 0;
      for (int64_t i = 0; i < n; ++i) {
        double dot = 0;
        for (int64_t d = 0; d < head_dim; ++d)
          dot += static_cast<double>(q[static_cast<size_t>(j * head_dim + d)]) * get(k, (first + i) % n_cells, d);
        s[static_cast<size_t>(i)] = dot * scale;
        top = std::max(top, dot * scale);
      }
      for (double& x : s) total += x = std::exp(x - top);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t d = 0; d < head_dim; ++d)
          y[static_cast<size_t>(j * head_dim + d)] += s[static_cast<size_t>(i)] / total * get(v, (first + i) % n_cells, d);
    }
    return y;
  }
};

TEST_P(Attention, IsTheSoftmaxSum) {
  for (const DType type : {DType::f32, DType::f16, DType::q8_0})
    for (const int64_t dim : {16, 20, 32, 64, 80, 96, 128, 256, 512}) {
      if (dim % traits(type).block != 0) continue;
      Rng rng(static_cast<uint64_t>(dim));
      const Cache cache(type, dim, 300, rng);
      const std::vector<float> q = rng.normals(8 * dim);
      for (const int64_t n : {1, 2, 3, 4, 5, 63, 64, 65, 100, 128, 191, 300}) {
        const int64_t first = rng.below(1000), n_q = 1 + rng.below(8);
        const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
        const std::vector<float> y = cache.run(table(), q, 0, n_q, first, n, scale);
        const std::vector<double> want = cache.reference(q, n_q, first, n, static_cast<double>(scale));
        Nmse e;
        for (size_t i = 0; i < y.size(); ++i) e.add(static_cast<double>(y[i]), want[i]);
        EXPECT_LE(e.value(), 1e-11) << name(type) << " head_dim " << dim << " n_pos " << n << " n_q " << n_q;
      }
    }
}

TEST_P(Attention, BitsOfAHeadDoNotDependOnTheOthers) {
  for (const DType type : {DType::f32, DType::f16, DType::q8_0})
    for (const int64_t dim : {32, 80, 128, 256}) {
      if (dim % traits(type).block != 0) continue;
      Rng rng(static_cast<uint64_t>(dim) + 1);
      const Cache cache(type, dim, 77, rng);  // a ring that wraps
      const std::vector<float> q = rng.normals(11 * dim);
      for (int64_t n = 1; n <= 77; n += n < 10 ? 1 : 13) {
        const int64_t first = rng.below(500);
        const std::vector<float> all = cache.run(table(), q, 0, 11, first, n, 0.1f);
        for (int64_t n_q = 1; n_q <= 8; ++n_q) {
          const int64_t j0 = rng.below(11 - n_q + 1);
          const std::vector<float> part = cache.run(table(), q, j0, n_q, first, n, 0.1f);
          ASSERT_EQ(std::memcmp(part.data(), all.data() + j0 * dim, part.size() * 4), 0) << dim << " n_pos " << n << " n_q " << n_q;
        }
        // Other positions in the same cells, their blocks beginning at the same ones.
        ASSERT_EQ(cache.run(table(), q, 0, 3, first, n, 0.1f), cache.run(table(), q, 0, 3, first + 77 * 64, n, 0.1f));
        // The same cells in pages.
        for (const int64_t page : {7, 11, 77})
          ASSERT_EQ(cache.run(table(), q, 0, 3, first, n, 0.1f, page), cache.run(table(), q, 0, 3, first, n, 0.1f));
      }
    }
}

// Prefill in any pieces is decode: tiles of tokens cross the edges of blocks, of windows, of pages and of the ring.
TEST_P(Attention, TokensTogetherAreTokensOneByOne) {
  struct Case {
    int64_t n_q, dim, pos, n_tokens, window, page_cells;
  };
  for (const DType type : {DType::f32, DType::f16, DType::q8_0})
    for (const Case& c : {Case{6, 128, 0, 70, 0, 0}, Case{7, 128, 190, 13, 0, 32}, Case{3, 64, 60, 9, 0, 0}, Case{2, 32, 1000, 30, 20, 0},
                          Case{6, 128, 500, 17, 64, 0}, Case{4, 96, 3, 140, 100, 0}, Case{1, 256, 62, 100, 0, 16},
                          Case{5, 288, 120, 20, 90, 0}, Case{50, 32, 63, 3, 0, 0}, Case{1, 32, 0, 1, 0, 0}, Case{9, 80, 127, 12, 1, 0}}) {
      if (c.dim % traits(type).block != 0) continue;
      Rng rng(static_cast<uint64_t>(c.dim + c.pos));
      const int64_t cells = c.window > 0 ? c.window + c.n_tokens + 1 : (c.pos + c.n_tokens + 31) / 32 * 32;
      const Cache cache(type, c.dim, cells, rng);
      const int64_t stride = c.n_q * c.dim + 24;
      const std::vector<float> q = rng.normals(stride * c.n_tokens);
      const float scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
      const std::vector<float> all = cache.run_tokens(table(), q.data(), stride, c.n_q, c.pos, c.n_tokens, c.window, scale, c.page_cells);
      ASSERT_EQ(all.size(), static_cast<size_t>(c.n_q * c.dim * c.n_tokens));
      Nmse e;
      for (int64_t t = 0; t < c.n_tokens; ++t) {
        const float* const part = all.data() + t * c.n_q * c.dim;
        const std::vector<float> one =
            cache.run_tokens(table(), q.data() + t * stride, stride, c.n_q, c.pos + t, 1, c.window, scale, c.page_cells);
        ASSERT_EQ(std::memcmp(one.data(), part, one.size() * 4), 0) << name(type) << " dim " << c.dim << " pos " << c.pos << " + " << t;
        const int64_t first = c.window > 0 ? std::max<int64_t>(0, c.pos + t - c.window + 1) : 0;
        const std::vector<float> own(q.begin() + t * stride, q.begin() + t * stride + c.n_q * c.dim);
        const std::vector<double> want = cache.reference(own, c.n_q, first, c.pos + t - first + 1, static_cast<double>(scale));
        for (size_t i = 0; i < want.size(); ++i) e.add(static_cast<double>(part[i]), want[i]);
      }
      EXPECT_LE(e.value(), 1e-11) << name(type) << " dim " << c.dim << " pos " << c.pos << " tokens " << c.n_tokens;
      // In two calls.
      const int64_t half = c.n_tokens / 2;
      if (half == 0) continue;
      std::vector<float> two = cache.run_tokens(table(), q.data(), stride, c.n_q, c.pos, half, c.window, scale, c.page_cells);
      const std::vector<float> rest = cache.run_tokens(table(), q.data() + half * stride, stride, c.n_q, c.pos + half, c.n_tokens - half,
                                                       c.window, scale, c.page_cells);
      two.insert(two.end(), rest.begin(), rest.end());
      ASSERT_EQ(std::memcmp(two.data(), all.data(), all.size() * 4), 0) << name(type) << " dim " << c.dim;
    }
}

// A cell that no token sees may hold anything, also where a neighbour in the tile sees its block.
TEST_P(Attention, CellsThatNobodySeesAreNotUsed) {
  Rng rng(12);
  for (const DType type : {DType::f32, DType::f16}) {
    Cache cache(type, 64, 128, rng);
    const std::vector<float> q = rng.normals(6 * 64 * 20);
    for (int64_t c = 0; c < 128; ++c)
      if (c < 41 || c >= 100)  // the first of 20 tokens at 80 with a window of 40 begins at 41
        for (Guarded* g : {&cache.k, &cache.v}) cache.put(*g, c, 3, std::numeric_limits<float>::quiet_NaN());
    for (const float y : cache.run_tokens(table(), q.data(), 6 * 64, 6, 80, 20, 40, 0.1f)) ASSERT_TRUE(std::isfinite(y));
    cache.put(cache.v, 41, 3, std::numeric_limits<float>::quiet_NaN());  // seen by the first token alone
    const std::vector<float> y = cache.run_tokens(table(), q.data(), 6 * 64, 6, 80, 20, 40, 0.1f);
    for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(std::isnan(y[i]), i < 6 * 64 && i % 64 == 3) << i;
  }
}

TEST_P(Attention, TakesPeakedAndSpecialScores) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Rng rng(5);
  Cache cache(DType::f32, 64, 200, rng);
  const std::vector<float> q = rng.normals(3 * 64);
  for (const float scale : {0.0f, 1.0f, 100.0f, -30.0f}) {  // flat to one-hot; exponents far below the smallest float
    const std::vector<float> y = cache.run(table(), q, 0, 3, 7, 193, scale);
    const std::vector<double> want = cache.reference(q, 3, 7, 193, static_cast<double>(scale));
    Nmse e;
    for (size_t i = 0; i < y.size(); ++i) e.add(static_cast<double>(y[i]), want[i]);
    EXPECT_LE(e.value(), scale == 0.0f || scale == 1.0f ? 1e-10 : 1e-7) << scale;
  }
  for (const float special : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
    Cache bad(DType::f32, 64, 200, rng);
    bad.put(bad.v, 70, 5, special);
    const std::vector<float> y = bad.run(table(), q, 0, 3, 0, 150, 0.1f);
    for (int64_t i = 0; i < 3 * 64; ++i) EXPECT_EQ(std::isfinite(y[static_cast<size_t>(i)]), i % 64 != 5) << i;
    bad.put(bad.k, 70, 5, special);  // no trap; the scores of every head are affected, or the cell has no weight
    bad.run(table(), q, 0, 3, 0, 150, 0.1f);
  }
  Cache nan(DType::f16, 64, 100, rng);
  nan.put(nan.k, 10, 0, std::numeric_limits<float>::quiet_NaN());
  for (const float v : nan.run(table(), q, 0, 3, 0, 100, 0.1f)) EXPECT_TRUE(std::isnan(v));
}

TEST_P(Elementwise, Q8CellsAreWithinHalfAStepAndEqualEverywhere) {
  Rng rng(9);
  for (const float size : {0.1f, 1.0f, 1e4f}) {  // smaller ones have scales that are subnormal in f16
    const std::vector<float> x = rng.normals(256, size);
    Guarded cell(row_bytes(DType::q8_0, 256));
    table().f32_to_q8_0(256, x.data(), cell.data());
    EXPECT_TRUE(cell.front_intact());
    std::vector<uint8_t> plain(cell.size());
    kGeneric.f32_to_q8_0(256, x.data(), plain.data());
    EXPECT_EQ(std::memcmp(cell.data(), plain.data(), cell.size()), 0);
    for (int64_t b = 0; b < 8; ++b) {
      const uint8_t* const block = cell.data() + 34 * b;
      const double d = half_value(block);
      for (int64_t j = 0; j < 32; ++j)  // half a step, and what rounding d to f16 moves a code of 127
        ASSERT_NEAR(d * static_cast<int8_t>(block[2 + j]), static_cast<double>(x[static_cast<size_t>(b * 32 + j)]),
                    d * (0.5 + 127.0 / 2048))
            << b << " " << j;
    }
  }
  std::vector<float> x(64, 0.0f);
  x[40] = std::numeric_limits<float>::quiet_NaN();
  std::vector<uint8_t> cell(68);
  table().f32_to_q8_0(64, x.data(), cell.data());
  EXPECT_EQ(half_value(cell.data()), 0.0);
  EXPECT_TRUE(std::isnan(half_value(cell.data() + 34)));
}

TEST_P(Elementwise, RmsNormIsAccurate) {
  Rng rng(3);
  for (const int64_t n : {1, 3, 8, 31, 64, 80, 1000, 2560, 8192})
    for (const float size : {1e-6f, 1.0f, 1e4f, 1e18f, 1e30f}) {  // squares beyond f32's range, too
      const std::vector<float> x = rng.normals(n, size), w = rng.normals(n);
      Guarded y(static_cast<size_t>(n) * 4);
      table().rms_norm(n, x.data(), w.data(), 1e-6f, y.floats());
      double sum = 0;
      for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
      const double scale = 1 / std::sqrt(sum / static_cast<double>(n) + static_cast<double>(1e-6f));
      for (int64_t i = 0; i < n; ++i) {
        const double want = static_cast<double>(x[static_cast<size_t>(i)]) * scale * static_cast<double>(w[static_cast<size_t>(i)]);
        ASSERT_NEAR(static_cast<double>(y.floats()[i]), want, std::abs(want) * 2.5e-7) << n << " " << size;
      }
      EXPECT_TRUE(y.front_intact());
      std::vector<float> in_place = x;
      table().rms_norm(n, in_place.data(), w.data(), 1e-6f, in_place.data());
      EXPECT_EQ(std::memcmp(in_place.data(), y.data(), y.size()), 0);
    }
}

TEST_P(Elementwise, RopeRotatesPairs) {
  Rng rng(4);
  for (const int64_t half : {1, 3, 8, 16, 32, 40, 64, 128}) {
    std::vector<float> cosine, sine;
    for (int64_t j = 0; j < half; ++j) {
      const double angle = rng.uniform(-10, 10);
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
    const std::vector<float> x = rng.normals(2 * half);
    Guarded neox(static_cast<size_t>(half) * 8), adjacent(static_cast<size_t>(half) * 8);
    std::memcpy(neox.data(), x.data(), neox.size());
    std::memcpy(adjacent.data(), x.data(), adjacent.size());
    table().rope_neox(half, cosine.data(), sine.data(), neox.floats());
    table().rope_adjacent(half, cosine.data(), sine.data(), adjacent.floats());
    const auto check = [&](const float* y, int64_t j, int64_t a, int64_t b) {
      const double c = static_cast<double>(cosine[static_cast<size_t>(j)]), s = static_cast<double>(sine[static_cast<size_t>(j)]);
      const double xa = static_cast<double>(x[static_cast<size_t>(a)]), xb = static_cast<double>(x[static_cast<size_t>(b)]);
      EXPECT_NEAR(static_cast<double>(y[a]), xa * c - xb * s, 1e-6);
      EXPECT_NEAR(static_cast<double>(y[b]), xa * s + xb * c, 1e-6);
    };
    for (int64_t j = 0; j < half; ++j) {
      check(neox.floats(), j, j, j + half);
      check(adjacent.floats(), j, 2 * j, 2 * j + 1);
    }
    EXPECT_TRUE(neox.front_intact() && adjacent.front_intact());
  }
}

TEST_P(Elementwise, AddAndReluMul) {
  Rng rng(6);
  for (const int64_t n : {1, 7, 8, 33, 768}) {
    std::vector<float> g = rng.normals(n), u = rng.normals(n);
    Guarded sum(static_cast<size_t>(n) * 4), product(static_cast<size_t>(n) * 4);
    table().add(n, g.data(), u.data(), sum.floats());
    table().relu_mul(n, g.data(), u.data(), product.floats());
    for (int64_t i = 0; i < n; ++i) {
      const float a = g[static_cast<size_t>(i)], b = u[static_cast<size_t>(i)];
      EXPECT_EQ(sum.floats()[i], a + b);
      EXPECT_EQ(product.floats()[i], a > 0 ? a * b : 0.0f);
    }
    EXPECT_TRUE(sum.front_intact() && product.front_intact());
    std::vector<float> gate = g, up = u;
    table().relu_mul(n, gate.data(), u.data(), gate.data());
    table().relu_mul(n, g.data(), up.data(), up.data());
    EXPECT_EQ(std::memcmp(gate.data(), product.data(), product.size()), 0);
    EXPECT_EQ(std::memcmp(up.data(), product.data(), product.size()), 0);
    table().add(n, g.data(), u.data(), g.data());
    EXPECT_EQ(std::memcmp(g.data(), sum.data(), sum.size()), 0);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> g(19, nan), u(19, 2.0f);
  table().relu_mul(19, g.data(), u.data(), u.data());
  for (const float v : u) EXPECT_TRUE(std::isnan(v));
}

TEST_P(Elementwise, DeadNeuronsAreZeroWhateverUpHolds) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  Rng rng(8);
  for (const int64_t n : {1, 31, 32, 33, 100, 128}) {
    std::vector<float> g = rng.normals(n), u = rng.normals(n);
    std::vector<uint8_t> before(static_cast<size_t>(n));
    for (size_t i = 0; i < g.size(); ++i) {
      if (i % 5 == 0) g[i] = i % 2 ? 0.0f : -0.0f;
      if (i % 7 == 3) g[i] = i % 2 ? nan : -inf;
      if (!(g[i] > 0)) u[i] = i % 3 == 0 ? nan : i % 3 == 1 ? inf : u[i];
      before[i] = i % 4 == 0;
    }
    Guarded product(static_cast<size_t>(n) * 4), alive(static_cast<size_t>(n));
    std::memcpy(alive.data(), before.data(), before.size());
    table().live_mul(n, g.data(), u.data(), product.floats());
    table().mark_alive(n, g.data(), alive.data());
    for (int64_t i = 0; i < n; ++i) {
      const float a = g[static_cast<size_t>(i)], b = u[static_cast<size_t>(i)];
      const bool lives = !(a <= 0.0f);
      EXPECT_EQ(alive.data()[i], before[static_cast<size_t>(i)] | uint8_t{lives}) << i;
      if (std::isnan(a)) {
        EXPECT_TRUE(std::isnan(product.floats()[i])) << i;
      } else {
        EXPECT_EQ(product.floats()[i], lives ? a * b : 0.0f) << i;
      }
    }
    EXPECT_TRUE(product.front_intact() && alive.front_intact());
    for (const bool into_gate : {true, false}) {
      std::vector<float> gate = g, up = u;
      table().live_mul(n, gate.data(), up.data(), into_gate ? gate.data() : up.data());
      EXPECT_EQ(std::memcmp((into_gate ? gate : up).data(), product.data(), product.size()), 0);
    }
  }
}

// Its error is the exponential's: at most a few units in the last place over the whole range.
TEST_P(Elementwise, SiluMulIsAccurate) {
  Rng rng(7);
  std::vector<float> g, u;
  for (double x = -130; x < 130; x += 0.00731) g.push_back(static_cast<float>(x));
  for (int i = 0; i < 1000; ++i) g.push_back(static_cast<float>(rng.uniform(-1e-3, 1e-3)));
  for (const float x : {0.0f, -0.0f, 88.72f, 88.73f, -88.72f, -88.73f, -103.9f, -104.1f, 1e30f, -1e30f}) g.push_back(x);
  u.assign(g.size(), 1.0f);
  Guarded y(g.size() * 4);
  table().silu_mul(static_cast<int64_t>(g.size()), g.data(), u.data(), y.floats());
  for (size_t i = 0; i < g.size(); ++i) {
    const double x = static_cast<double>(g[i]), want = x / (1 + std::exp(-x));
    // Below -87 the quotient leaves f32's normal range, and 1 + exp(-x) may be infinite.
    ASSERT_NEAR(static_cast<double>(y.floats()[i]), want, std::abs(want) * 4e-7 + 1e-36) << x;
  }
  EXPECT_TRUE(y.front_intact());
  const float specials[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
  std::vector<float> s(2), ones(2, 1.0f);
  table().silu_mul(2, specials, ones.data(), s.data());
  EXPECT_TRUE(std::isnan(s[0]));
  EXPECT_EQ(s[1], std::numeric_limits<float>::infinity());
  for (int64_t n = 0; n < 40; ++n) {  // every remainder, in place, with the bits of the long call
    std::vector<float> gate(g.begin() + 100, g.begin() + 100 + n), up(static_cast<size_t>(n) + 1, 1.0f);
    table().silu_mul(n, gate.data(), up.data(), gate.data());
    for (int64_t i = 0; i < n; ++i) ASSERT_EQ(bits_of(gate[static_cast<size_t>(i)]), bits_of(y.floats()[100 + i])) << n << " " << i;
  }
}

}  // namespace
}  // namespace fth::cpu
