// The reference itself: block types against values that the `gguf` Python package computed from the same bytes, half floats against their
// definition, the parser and the comparison against cases with known answers.

#include "tests/conformance/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/base/half.h"
#include "tests/conformance/compare.h"
#include "tests/conformance/runner.h"

namespace fth::conformance {
namespace {

std::vector<std::byte> from_hex(std::string_view hex) {
  std::vector<std::byte> out;
  for (size_t i = 0; i < hex.size(); i += 2) out.push_back(static_cast<std::byte>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  return out;
}

struct Golden {
  uint16_t dtype;
  int64_t k;
  const char* block;
  double values[5];  // at 0, 1, k/2 - 1, k/2, k - 1
  double weighted;   // sum of (i + 1) * value[i]
};
const Golden kGolden[] = {
    {FTH_DTYPE_Q8_0,
     32,
     "4c22e5f1a94106a0956a26afbccdafe562f90a945f5693c642276ad5ab2da7394551",
     {-0.332061767578125, -0.184478759765625, -0.086090087890625, 0.12298583984375, 0.996185302734375},
     31.865631103515625},
    {FTH_DTYPE_Q4_0,
     32,
     "ecb5d74c3427fa48d732a1df70aca1e92611",
     {0.3701171875, -1.48046875, 2.5908203125, -1.8505859375, 2.5908203125},
     154.3388671875},
    {FTH_DTYPE_Q4_1,
     32,
     "b8329abd8f063cd25e19a621f9bd0ccc21397c1e",
     {1.7490234375, -0.140625, 1.5390625, 0.279296875, -1.1904296875},
     1.1259765625},
    {FTH_DTYPE_Q6_K,
     256,
     "c795ca7748dc03d17a88934d85527357a2e64647f03e2fb81f223f4192c58efd5185f0711ef7677a1f132a818d882195a100b28d6b236b82481bd9fe630dc3ce"
     "3be4ebcab72f45b35223479f6e794d57037e2cfde9e15a7789781e3721a557d8e5a703296dcb81db3f65cf9c1bdc5d1d8fc83f0b0bb4db71be572209851d3d24"
     "f4c0cf83fe4363f82f4759778955f6ced681cbea7179ced2c8f814a13472ff70ce369d8385452a44f318337f08cd1e614f235d3f83bc45fee9ee0403a79be118"
     "544441317c9311f85e0429b19f7ec0e1f716",
     {-3.570842742919922, -3.8565101623535156, 0.054412841796875, 1.7582149505615234, 1.5813732147216797},
     1235.2803344726562},
    {FTH_DTYPE_Q4_K,
     256,
     "591a4d1c80ee995e3f0d307d2fbaf400693a179e0d027ed4e58be7a9ebc28a271d43a78855638144eb6603f7b2725de11fe6ac2f88a68182869793f0aad6ded8"
     "116e3ab51681c4a374fec70a68b3e4bdc92b387987416c17ec90963ec766888ab4b80eba7c5cfd81121bea9cee1810dfd5169faf26cd7b5c30c8aba44d972299"
     "e8c7b41b9a1d2b0f180600a974d63b63",
     {-0.2645988464355469, -0.2645988464355469, 0.7666168212890625, 1.302663803100586, 0.2303466796875},
     24885.09810447693},
};

TEST(Reference, UnpacksBlocksAsGgufDoes) {
  for (const Golden& g : kGolden) {
    const std::vector<std::byte> block = from_hex(g.block);
    ASSERT_EQ(block.size(), kDTypes[g.dtype].block_bytes);
    const std::vector<double> y = dequantize(g.dtype, g.k, block.data());
    const int64_t at[] = {0, 1, g.k / 2 - 1, g.k / 2, g.k - 1};
    for (int i = 0; i < 5; ++i)
      EXPECT_NEAR(y[static_cast<size_t>(at[i])], g.values[i], 1e-6 * std::fabs(g.values[i]) + 1e-9) << g.dtype << " " << at[i];
    double weighted = 0, magnitude = 0;
    for (size_t i = 0; i < y.size(); ++i) {
      weighted += y[i] * static_cast<double>(i + 1);
      magnitude += std::fabs(y[i]) * static_cast<double>(i + 1);
    }
    EXPECT_NEAR(weighted, g.weighted, 1e-6 * magnitude) << g.dtype;
  }
}

TEST(Reference, HalfFloatsAgreeWithTheProjectsForEveryPattern) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t h = static_cast<uint16_t>(bits);
    const double v = f16_value(h);
    if (std::isnan(v)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(h)));
      continue;
    }
    ASSERT_EQ(static_cast<double>(f16_to_f32(h)), v);
    ASSERT_EQ(f16_bits(v), h);
    // Half way to the next one: both round to the even neighbour. Infinity's is out of reach.
    if ((h & 0x7fff) < 0x7bff) {
      const double tie = (v + f16_value(static_cast<uint16_t>(h + 1))) / 2;
      ASSERT_EQ(f16_bits(tie), f32_to_f16(static_cast<float>(tie))) << bits;
      ASSERT_EQ(f16_bits(tie) & 1, 0);
    }
  }
  EXPECT_EQ(f16_bits(65519.0), 0x7bff);
  EXPECT_EQ(f16_bits(65520.0), 0x7c00);
}

TEST(Case, RefusesWhatItDoesNotKnow) {
  EXPECT_FALSE(parse_case("matmul k"));
  EXPECT_FALSE(parse_case("matmul k=1 k=2"));
  const auto message = [](const char* line) {
    const Result<Case> c = parse_case(line);
    const Result<Problem> p = c ? build(*c) : Result<Problem>(tl::unexpected<Error>(c.error()));
    return p ? std::string() : p.error().message;
  };
  EXPECT_EQ(message("matmul m=2 k=64 n=3 w=q4_0"), "");
  EXPECT_THAT(message("matmul q=1"), testing::HasSubstr("no parameter q"));
  EXPECT_THAT(message("matmul k=ten"), testing::HasSubstr("k=ten does not parse"));
  EXPECT_THAT(message("matmul w=q9"), testing::HasSubstr("w=q9 does not parse"));
  EXPECT_THAT(message("matmul k=33 w=q4_0"), testing::HasSubstr("not whole blocks"));
  EXPECT_THAT(message("convolve"), testing::HasSubstr("no case kind"));
}

TEST(Case, GlobsMatchRunsOfCharacters) {
  EXPECT_TRUE(glob_match("*", ""));
  EXPECT_TRUE(glob_match("matmul*w=q4_0*", "matmul m=1 w=q4_0 tol=exact"));
  EXPECT_TRUE(glob_match("*ab", "aab"));
  EXPECT_FALSE(glob_match("*ab", "aba"));
  EXPECT_FALSE(glob_match("matmul", "matmuls"));
}

// A run whose answer is the reference's own, changed where the test says.
struct Compared {
  Problem problem = *build(*parse_case("matmul m=3 bucket=4 k=16 n=3000 w=f32"));
  std::vector<std::vector<double>> want = run_reference(problem);
  Problem got = problem;
  float* y = nullptr;
  Compared() {
    Tensor& out = got.tensors.back();
    out.data.assign(tensor_bytes(out.desc), kCanary);
    y = reinterpret_cast<float*>(out.data.data());
    for (size_t i = 0; i < 9000; ++i) y[i] = static_cast<float>(want.back()[i]);
  }
  std::string judge(const char* tolerance) const { return compare(problem, got, want, *parse_tolerance(tolerance)); }
};

TEST(Compare, AcceptsTheReferenceAndRefusesChanges) {
  EXPECT_EQ(Compared().judge("nmse:1e-12"), "");
  EXPECT_EQ(Compared().judge("max:1e-6"), "");
  Compared one;
  one.y[17] += 0.3f;  // one value in 9000: the average alone would let it pass
  EXPECT_THAT(one.judge("nmse:1e-4"), testing::HasSubstr("largest error"));
  EXPECT_THAT(one.judge("max:1e-2"), testing::HasSubstr("y[0, 17]"));
  EXPECT_THAT(one.judge("exact"), testing::HasSubstr("y[0, 17]"));
  Compared all;
  for (int i = 0; i < 9000; ++i) all.y[i] *= 1.05f;
  EXPECT_THAT(all.judge("nmse:1e-4"), testing::HasSubstr("nmse 0.0025"));
  Compared nan;
  nan.y[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(nan.judge("nmse:1"), testing::HasSubstr("nan"));
  Compared beyond;
  beyond.y[9000] = 0;  // a row of the bucket that holds no token
  EXPECT_THAT(beyond.judge("nmse:1"), testing::HasSubstr("y[3, 0]: written"));
}

TEST(Compare, ParsesTolerances) {
  EXPECT_TRUE(parse_tolerance("exact"));
  EXPECT_FALSE(parse_tolerance("nmse"));
  EXPECT_FALSE(parse_tolerance("nmse:x"));
  EXPECT_FALSE(parse_tolerance("loose:1"));
}

}  // namespace
}  // namespace fth::conformance
