#pragma once
// What every device with a memory of its own keeps, whoever drives it: how memory is copied and ends, what is refused and how that is said, how a submit's
// arguments are checked, in which order submits run and how long. A backend's test instantiates it with its fixture, which has
//
//     void use(const std::string& options)                opens the device anew, skips the test where there is none
//     static Result<std::unique_ptr<Backend>> open(const std::string& options)
//     static constexpr std::array kMemories{"a=on", ...}  options, one set for each way in which the device's memory is reached
//     static constexpr uint64_t kAlignment                of a binding's offset, bytes
//     static constexpr int64_t kTooManyRows               of a matrix of 64 f32 columns: more than the device's memory
//     static constexpr const char* kTooLarge              how the refusal of such a matrix names its size
//
//     INSTANTIATE_TYPED_TEST_SUITE_P(Vulkan, DeviceContract, VulkanBackend);

#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "tests/support/backend_fixture.h"

namespace fth::conformance {

template <class Fixture>
class DeviceContract : public Fixture {};
TYPED_TEST_SUITE_P(DeviceContract);

TYPED_TEST_P(DeviceContract, MemoryIsCopiedAndEnds) {
  for (const char* options : TypeParam::kMemories) {
    this->use(options);
    constexpr uint64_t kBytes = 20 * kMiB + 13;  // more than one piece of a copy, and no whole word
    const auto b = this->device().alloc(kBytes);
    ASSERT_TRUE(b) << b.error().message;
    std::vector<uint8_t> wrote(kBytes), read(kBytes);
    for (size_t i = 0; i < kBytes; ++i) wrote[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    ASSERT_TRUE(b->write(0, wrote.data(), kBytes));
    ASSERT_TRUE(b->write(7, "abc", 3));
    std::memcpy(wrote.data() + 7, "abc", 3);
    for (uint64_t i = 0; i < 9; ++i) {  // more small writes than a backend keeps staging buffers, none of them waited for
      const auto v = static_cast<uint8_t>(i);
      ASSERT_TRUE(b->write(100 + i, &v, 1));
      wrote[100 + i] = v;
    }
    ASSERT_TRUE(b->read(0, read.data(), kBytes));
    EXPECT_EQ(wrote, read) << options;
    for (const uint64_t bytes : {uint64_t{5}, 2 * kMiB, 2 * kMiB + 1, 8 * kMiB, 8 * kMiB + 1}) {
      std::fill(read.begin(), read.end(), uint8_t{0});
      ASSERT_TRUE(b->read(kBytes - bytes, read.data(), bytes));
      EXPECT_EQ(0, std::memcmp(read.data(), wrote.data() + kBytes - bytes, bytes)) << options << " " << bytes;
    }
    EXPECT_TRUE(b->write(kBytes, nullptr, 0));
    EXPECT_EQ(b->read(kBytes - 4, read.data(), 5).error().code, Code::out_of_range);
    EXPECT_EQ(b->write(UINT64_MAX, read.data(), 2).error().code, Code::out_of_range);
    EXPECT_TRUE(this->device().alloc(0));
    for (const uint64_t bytes : {uint64_t{1} << 62, UINT64_MAX}) {
      const Error e = this->device().alloc(bytes).error();
      EXPECT_EQ(e.code, Code::resource_exhausted);
      EXPECT_THAT(e.message, testing::AllOf(testing::HasSubstr(std::string(this->device().name()) + ": a buffer of"),
                                            testing::HasSubstr("the device ")));
    }
  }
}

TYPED_TEST_P(DeviceContract, RefusalsNameOpAndNumber) {
  const auto refused = [&](const std::string& line) {
    const Error e = this->estimate_error(make(line));
    EXPECT_EQ(e.code, Code::unimplemented) << line;
    return e.message;
  };
  EXPECT_THAT(refused("experts m=1 e=32 f=32 slots=2 k=1 w=f32"),
              testing::AllOf(testing::HasSubstr("op 0 (experts)"), testing::HasSubstr("cpu")));
  EXPECT_THAT(refused("attention m=1 h=1 g=1 d=258 state=f32"), testing::HasSubstr("heads of 258: at most 256"));
  EXPECT_THAT(refused("attention m=1 h=2 g=2 d=32 state=bf16"), testing::HasSubstr("a cache of bf16"));
  Problem p = make("matmul m=1 k=64 n=8 w=f32");
  p.tensors[1].desc.dims[0] = p.tensors[2].desc.dims[1] = TypeParam::kTooManyRows;  // nothing is read of them
  EXPECT_THAT(this->estimate_error(p).message, testing::HasSubstr(std::string("has ") + TypeParam::kTooLarge + ", at most "));
}

TYPED_TEST_P(DeviceContract, WrongAttributesOfRopeAreRefused) {
  const Problem p = make("rope m=1 h=1 d=8");
  for (const auto& [attr, value] :
       {std::pair{0, 0.0}, {1, -1.0}, {2, 0.0}, {3, 3.0}, {3, 10.0}, {4, 2.0}, {5, 1.0 / 0.0}, {2, 0.0 / 0.0}}) {
    Problem q = p;
    q.ops[0].attr[attr] = value;
    EXPECT_EQ(this->estimate_error(q).code, Code::invalid_argument) << attr << " " << value;
  }
  Problem zero = make("rope m=1 h=1 d=8 factors=1");
  for (Tensor& t : zero.tensors)
    if (t.name == "factors") std::memset(t.data.data(), 0, 4);
  const Error e = this->run_error(zero);
  EXPECT_EQ(e.code, Code::invalid_argument);
  EXPECT_THAT(e.message, testing::HasSubstr("pair 0"));
}

TYPED_TEST_P(DeviceContract, SubmitChecksScalars) {
  Problem p = make("rms_norm m=2 bucket=4 e=32");
  for (const int64_t tokens : {int64_t{0}, int64_t{-1}, int64_t{5}, INT64_MAX}) {
    p.scalars[FTH_SCALAR_TOKENS] = tokens;
    EXPECT_EQ(this->run_error(p).code, Code::invalid_argument) << tokens;
  }
  p = make("attention m=1 h=2 g=1 d=32 pos=7 cells=8");
  EXPECT_EQ(this->run_error(p).message, "no error");
  p.scalars[FTH_SCALAR_POS] = 8;
  EXPECT_EQ(this->run_error(p).code, Code::out_of_range);
  p.scalars[FTH_SCALAR_POS] = -1;
  EXPECT_EQ(this->run_error(p).code, Code::invalid_argument);
}

TYPED_TEST_P(DeviceContract, AnIdOutsideOfTheTableIsReported) {
  for (const int32_t id : {100, -1, INT32_MAX, INT32_MIN}) {
    Problem p = make("embed m=3 v=100 e=32 w=q4_0");
    std::memcpy(p.tensors[0].data.data() + 4, &id, sizeof id);
    const Error e = this->run_error(p);
    EXPECT_EQ(e.code, Code::out_of_range) << id;
    EXPECT_THAT(e.message, testing::HasSubstr("row 1"));
  }
  EXPECT_EQ(this->run_error(make("embed m=3 v=100 e=32 w=q4_0")).message, "no error");
}

TYPED_TEST_P(DeviceContract, SubmitChecksBindings) {
  Bound b(this->device(), make("matmul m=1 k=64 n=8 w=q4_0"));
  const auto x = b.compile();
  ASSERT_TRUE(x);
  const auto error = [&](auto&& change) {
    std::vector<fth_binding> bindings = b.bindings;
    change(bindings);
    const Result<> r = x->run(bindings, b.problem.scalars);
    return r ? std::string("no error") : r.error().message;
  };
  EXPECT_EQ(error([](auto&) {}), "no error");
  EXPECT_THAT(error([](auto& v) { v.pop_back(); }), testing::HasSubstr("1 bindings, need 2"));
  EXPECT_THAT(error([](auto& v) { v[1].buffer = nullptr; }), testing::HasSubstr("binding 1: no buffer"));
  constexpr uint64_t kHalf = TypeParam::kAlignment / 2;
  EXPECT_THAT(error([](auto& v) { v[0].offset = kHalf; }),
              testing::HasSubstr("offset " + std::to_string(kHalf) + " is no multiple of " + std::to_string(TypeParam::kAlignment)));
  EXPECT_THAT(error([](auto& v) { v[1].bytes = 31; }), testing::HasSubstr("binding 1: a binding of 31 bytes, need 32"));
  EXPECT_THAT(error([](auto& v) { v[0].offset = UINT64_MAX - 15; }), testing::HasSubstr("of a buffer of"));
  std::vector<fth_binding> short_weight = b.weights;
  short_weight[0].bytes -= 1;
  EXPECT_EQ(this->device().compile(b.segment.segment, short_weight).error().code, Code::invalid_argument);
}

// Two runs at once: the second reads what the first writes, and an executable that still runs can be given up.
TYPED_TEST_P(DeviceContract, SubmitsRunInOrder) {
  for (const char* options : TypeParam::kMemories) {
    this->use(options);
    Bound first(this->device(), make("matmul m=16 k=1024 n=256 w=f32")), second(this->device(), make("add m=16 e=256"));
    second.bindings[0] = second.bindings[1] = first.bindings[1];  // twice the product
    const auto a = first.compile(), b = second.compile();
    ASSERT_TRUE(a && b);
    const auto one = a->submit(first.bindings, first.problem.scalars);
    ASSERT_TRUE(one);
    EXPECT_EQ(a->submit(first.bindings, first.problem.scalars).error().code, Code::failed_precondition);
    const auto two = b->submit(second.bindings, second.problem.scalars);
    ASSERT_TRUE(two);
    ASSERT_TRUE(b->wait(*two));
    ASSERT_TRUE(a->wait(*one));
    std::vector<float> product(16 * 256), sum(16 * 256);
    ASSERT_TRUE(first.buffers[2].read(0, product.data(), product.size() * 4));
    ASSERT_TRUE(second.buffers[2].read(0, sum.data(), sum.size() * 4));
    for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], product[i] + product[i]) << i;
    const auto given_up = first.compile();
    ASSERT_TRUE(given_up);
    ASSERT_TRUE(given_up->submit(first.bindings, first.problem.scalars));
  }
}

TYPED_TEST_P(DeviceContract, SpeedsAreDeclaredOrMeasured) {
  EXPECT_THAT(TypeParam::open("color=red").error().message, testing::HasSubstr("'color'"));
  EXPECT_THAT(TypeParam::open("measure=maybe").error().message, testing::HasSubstr("need on or off"));
  EXPECT_THAT(TypeParam::open("bytes_per_second=-1").error().message, testing::HasSubstr("a number above 0"));
  this->use("bytes_per_second=1e9,flops_per_second=2e9");
  EXPECT_EQ(this->device().info().bytes_per_second, 1e9);
  EXPECT_EQ(this->device().info().flops_per_second, 2e9);
  this->use("measure=on");
  EXPECT_GT(this->device().info().bytes_per_second, 0);
  EXPECT_GT(this->device().info().launch_seconds, 0);
  EXPECT_EQ(this->wrong("rms_norm m=1 e=64"), "");
}

// A device's own clock: nothing before a run, and of each run something that is not longer than the wait for it from submit on.
TYPED_TEST_P(DeviceContract, RunsAreTimedByTheDevice) {
  auto small = Prepared::make(this->device(), make("matmul m=1 k=64 n=32 w=f32")),
       large = Prepared::make(this->device(), make("matmul m=32 k=1024 n=512 w=f32"));
  ASSERT_TRUE(small && large);
  EXPECT_LT(small->device_seconds(), 0) << "before there was a run";
  double least[2] = {1, 1};
  for (int i = 0; i < 5; ++i) {
    for (Prepared* const p : {&*small, &*large}) {
      const auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE(p->run());
      const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
      const double seconds = p->device_seconds();
      EXPECT_GE(seconds, 0);
      EXPECT_LE(seconds, wall.count());
      double& shortest = least[p == &*large];
      shortest = std::min(shortest, seconds);
    }
  }
  EXPECT_GT(least[1], 0);
  EXPECT_GT(least[1], least[0]) << "8192 times the work";
}

REGISTER_TYPED_TEST_SUITE_P(DeviceContract, MemoryIsCopiedAndEnds, RefusalsNameOpAndNumber, WrongAttributesOfRopeAreRefused,
                            SubmitChecksScalars, AnIdOutsideOfTheTableIsReported, SubmitChecksBindings, SubmitsRunInOrder,
                            SpeedsAreDeclaredOrMeasured, RunsAreTimedByTheDevice);

}  // namespace fth::conformance
