// The screened head where cases do not reach: what it skips, and what it never skips.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "backends/cpu/kernels/kernels.h"
#include "core/base/head_plane.h"
#include "tests/conformance/runner.h"

namespace fth::conformance {
namespace {

using testing::HasSubstr;

class HeadScreened : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = *Backend::open({});

  static Problem make(const std::string& line) { return *build(*parse_case(line)); }
  static Tensor& named(Problem& p, std::string_view name) {
    return *std::find_if(p.tensors.begin(), p.tensors.end(), [&](const Tensor& t) { return t.name == name; });
  }
  std::vector<float> run(const Problem& p) const {
    Result<Problem> done = run_once(backend_->device(), p);
    EXPECT_TRUE(done) << done.error().message;
    if (!done) return {};
    const Tensor& y = named(*done, "y");
    std::vector<float> out(y.data.size() / sizeof(float));
    std::memcpy(out.data(), y.data.data(), y.data.size());
    return out;
  }
  static bool skipped(float v) { return v == -std::numeric_limits<float>::infinity(); }
};

TEST_F(HeadScreened, TheLargestAreThereWithTheBitsOfTheWhole) {
  for (const char* type : {"q4_0", "q8_0", "q6_k", "f16"})
    for (const int64_t top : {1, 40, 200}) {
      const std::string line = std::string("head_screened e=256 v=6000 w=") + type + " top=" + std::to_string(top);
      Problem p = make(line);
      const std::vector<float> all = run(p);
      p.ops[0].attr[1] = 6;
      const std::vector<float> some = run(p);
      ASSERT_EQ(all.size(), some.size());
      std::vector<float> order = all;
      std::nth_element(order.begin(), order.begin() + top - 1, order.end(), std::greater<>());
      const float least = order[static_cast<size_t>(top - 1)];
      size_t n_skipped = 0;
      for (size_t i = 0; i < all.size(); ++i) {
        if (skipped(some[i])) {
          ++n_skipped;
          EXPECT_LT(all[i], least) << line << " row " << i;
        } else {
          EXPECT_EQ(all[i], some[i]) << line << " row " << i;
        }
      }
      EXPECT_GT(n_skipped, top == 1 ? all.size() * 2 / 3 : all.size() / 10) << line;
    }
}

TEST_F(HeadScreened, FineActivationsToo) {
  Problem p = make("head_screened e=576 v=3000 w=q8_0 fine=1");
  const std::vector<float> all = run(p);
  p.ops[0].attr[1] = 6;
  const std::vector<float> some = run(p);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_TRUE(skipped(some[i]) || some[i] == all[i]);
  EXPECT_EQ(std::max_element(all.begin(), all.end()) - all.begin(), std::max_element(some.begin(), some.end()) - some.begin());
}

TEST_F(HeadScreened, ARowThatCannotBeJudgedIsMultiplied) {
  Problem p = make("head_screened e=256 v=3000 w=q4_0");
  const std::vector<float> all = run(p);
  p.ops[0].attr[1] = 6;
  std::vector<float> some = run(p);
  size_t row = 0;
  while (!skipped(some[row])) ++row;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(named(p, "plane").data.data() + row * plane_row_bytes(256), &nan, sizeof nan);
  some = run(p);
  EXPECT_EQ(some[row], all[row]);
}

TEST_F(HeadScreened, AnInputThatIsNotFiniteSkipsNothing) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
    Problem p = make("head_screened e=64 v=1000 w=f32 z=6");
    for (size_t i : {size_t{3}, size_t{9}}) std::memcpy(named(p, "x").data.data() + i * sizeof bad, &bad, sizeof bad);
    for (const float v : run(p)) EXPECT_FALSE(std::isfinite(v) && v == 0);
  }
}

TEST_F(HeadScreened, RefusesWhatItCannotDo) {
  const auto error = [&](const Problem& p) {
    const Problem::Segment s = p.segment();
    const auto e = backend_->device().estimate(s.segment);
    return e ? std::string("no error") : e.error().message;
  };
  EXPECT_THAT(error(make("head_screened m=2 e=64 v=40 w=q4_0")), HasSubstr("only 1"));
  Problem p = make("head_screened e=64 v=40 w=q4_0");
  EXPECT_EQ(error(p), "no error");
  p.ops[0].attr[0] = 41;
  EXPECT_THAT(error(p), HasSubstr("attribute 0 (k) is 41"));
  p.ops[0].attr[0] = 1;
  p.ops[0].attr[1] = -1;
  EXPECT_THAT(error(p), HasSubstr("attribute 1 (z)"));
  p.ops[0].attr[1] = 6;
  named(p, "plane").desc.dims[1] += 1;
  EXPECT_THAT(error(p), HasSubstr("P is"));
}

TEST(Plane, RotationKeepsLengthsAndProducts) {
  for (const int64_t k : {32, 64, 96, 576, 1536, 2048, 37}) {
    std::mt19937 draw(7);
    std::normal_distribution<float> normal;
    std::vector<float> a(static_cast<size_t>(k)), b(a.size());
    for (size_t i = 0; i < a.size(); ++i) a[i] = normal(draw), b[i] = normal(draw);
    a[5] = 300;  // as a few columns of real models are
    const auto dot = [](const std::vector<float>& x, const std::vector<float>& y) {
      double sum = 0;
      for (size_t i = 0; i < x.size(); ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
      return sum;
    };
    const double aa = dot(a, a), ab = dot(a, b);
    plane_rotate(a.data(), k);
    plane_rotate(b.data(), k);
    EXPECT_NEAR(dot(a, a), aa, 1e-4 * aa) << k;
    EXPECT_NEAR(dot(a, b), ab, 1e-4 * std::sqrt(aa * dot(b, b))) << k;
    if (k % 2 == 0) {
      const float largest = std::fabs(*std::max_element(a.begin(), a.end(), [](float x, float y) { return std::fabs(x) < std::fabs(y); }));
      EXPECT_LT(largest, 150) << k;
    }
  }
}

TEST(Plane, EveryTableSumsTheSame) {
  std::mt19937 draw(3);
  for (const int64_t n_groups : {1, 7, 8, 9, 20, 33}) {
    constexpr int64_t kRows = 7;
    const uint64_t row = kPlaneRowHead + static_cast<uint64_t>(n_groups) * kPlaneGroupBytes;
    std::vector<uint8_t> rows(row * kRows);
    std::vector<int8_t> q(static_cast<size_t>(n_groups * kPlaneGroup));
    for (uint8_t& b : rows) b = static_cast<uint8_t>(draw());
    for (int8_t& v : q) v = static_cast<int8_t>(static_cast<int>(draw() % 255) - 127);
    if (n_groups == 33)
      std::fill(rows.begin(), rows.end(), uint8_t{0xff}), std::fill(q.begin(), q.end(), int8_t{-127});  // the largest sums
    std::vector<int32_t> want(kRows);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < n_groups * kPlaneGroup; ++c) {
        const uint8_t codes = rows[static_cast<uint64_t>(r) * row + kPlaneRowHead + static_cast<uint64_t>(c / 128 * 32 + c % 32)];
        want[static_cast<size_t>(r)] += (codes >> (2 * (c % 128 / 32)) & 3) * q[static_cast<size_t>(c)];
      }
    const cpu::KernelChoice* first = nullptr;
    const size_t n = cpu::kernel_choices(&first);
    for (size_t i = 0; i < n; ++i) {
      if (first[i].refusal != nullptr) continue;
      std::vector<int32_t> got(kRows, -1);
      first[i].table->plane_sums({rows.data(), row, kPlaneRowHead, q.data(), n_groups, kRows, got.data()});
      EXPECT_EQ(got, want) << first[i].table->name << ", " << n_groups << " groups";
    }
  }
}

}  // namespace
}  // namespace fth::conformance
