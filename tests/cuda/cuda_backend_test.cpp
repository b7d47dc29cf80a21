// The cuda backend over the emulated device, where the conformance cases do not reach: the contract of a device (tests/support/device_contract.h), the order of
// threads, a driver that fails. And the real plugin, where it was built, on a machine that may have no driver.

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstring>

#include "core/base/bytes.h"
#include "tests/cuda/emulated.h"
#include "tests/support/device_contract.h"

namespace fth::conformance {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

// A function that the emulation's plugin exports; the plugin is loaded by then and stays.
template <class F>
F* emulated(const char* name) {
  void* const library = dlopen(FTH_CUDA_EMULATED, RTLD_NOW | RTLD_NOLOAD);
  return library ? reinterpret_cast<F*>(dlsym(library, name)) : nullptr;
}
void fail_call(const char* call, int after, Code code) {
  emulated<decltype(fth_cuda_emulated_fault)>("fth_cuda_emulated_fault")(call, after, static_cast<int>(code));
}
void fail_nothing() { fail_call("", 0, Code::internal); }
int live_objects() { return emulated<decltype(fth_cuda_emulated_live)>("fth_cuda_emulated_live")(); }

class CudaBackend : public BackendTest {
 protected:
  static constexpr std::array kMemories{""};
  static constexpr uint64_t kAlignment = 16;
  static constexpr int64_t kTooManyRows = int64_t{1} << 30;
  static constexpr const char* kTooLarge = "256.00 GiB";

  static Result<std::unique_ptr<Backend>> open(const std::string& options) { return open_plugin(FTH_CUDA_EMULATED, options); }
  void SetUp() override { use(""); }
  // Every object that the test made is gone with the device.
  void TearDown() override {
    fail_nothing();
    backend_.reset();
    EXPECT_EQ(live_objects(), 0);
  }
  void use(const std::string& options, uint32_t index = 0) {
    backend_.reset();
    auto opened = open_plugin(FTH_CUDA_EMULATED, options, index);
    ASSERT_TRUE(opened) << opened.error().message;
    backend_ = *std::move(opened);
  }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Cuda, DeviceContract, CudaBackend);

TEST_F(CudaBackend, SaysWhatItIs) {
  const fth_device_info& i = device().info();
  EXPECT_EQ(device().name(), "cuda:0");
  EXPECT_GT(live_objects(), 0);
  EXPECT_EQ(i.flags, uint32_t{FTH_DEVICE_SOFTWARE});
  EXPECT_THAT(i.description, HasSubstr("emulated GPU"));
  EXPECT_GT(i.free_bytes, kGiB);
  EXPECT_LE(i.free_bytes, i.memory_bytes);
  EXPECT_GT(i.bytes_per_second, 0);
  EXPECT_EQ(open_plugin(FTH_CUDA_EMULATED, "", 2).error().code, Code::unavailable);  // to the runner: no such device, a reason to skip
}

TEST_F(CudaBackend, WhatDoesNotFitIsRefused) {
  EXPECT_EQ(device().alloc(4 * kGiB).error().code, Code::resource_exhausted);  // not beside what is there
  Problem p = make("add m=1 e=1");
  for (Tensor& t : p.tensors) t.desc.dims[0] = 65536;
  EXPECT_THAT(estimate_error(p).message, HasSubstr("65536 tokens at once: at most 65535"));
  char host[16];
  EXPECT_EQ(device().import_host(host, sizeof host).error().code, Code::unimplemented);
}

TEST_F(CudaBackend, OnlyRunsThatEndedHaveATime) {
  Bound b(device(), make("matmul m=1 k=64 n=8 w=q4_0"));
  const auto x = b.compile();
  ASSERT_TRUE(x);
  ASSERT_TRUE(x->run(b.bindings, b.problem.scalars));
  EXPECT_GE(x->device_seconds(), 0);
  const auto under_way = x->submit(b.bindings, b.problem.scalars);
  ASSERT_TRUE(under_way);
  EXPECT_LT(x->device_seconds(), 0) << "of a run that nobody has waited for";
  ASSERT_TRUE(x->wait(*under_way));
  EXPECT_GE(x->device_seconds(), 0);
  fail_call("seconds_between", 0, Code::unavailable);
  EXPECT_LT(x->device_seconds(), 0);
  fail_call("wait", 0, Code::unavailable);
  ASSERT_FALSE(x->run(b.bindings, b.problem.scalars));
  fail_nothing();
  EXPECT_LT(x->device_seconds(), 0) << "of a run that failed";
}

// Threads of a phase may run in any order: both of the emulation's give the same bits.
TEST_F(CudaBackend, OrderOfThreadsChangesNoBit) {
  for (const char* line : {"attention_block m=5 bucket=8 e=256 h=4 g=2 d=32 pos=17 w=q4_0", "attention m=1 h=4 g=2 d=64 pos=200",
                           "head m=1 e=256 v=1000 w=q6_k", "dense_block m=9 e=256 f=512 w=q4_k act=silu"}) {
    std::vector<std::vector<std::byte>> results[2];
    for (uint32_t index : {0u, 1u}) {
      use("", index);
      const Result<Problem> got = run_once(device(), make(line));
      ASSERT_TRUE(got) << got.error().message;
      for (const Tensor& t : got->tensors)
        if (t.desc.role == FTH_ROLE_OUTPUT || t.desc.role == FTH_ROLE_STATE) results[index].push_back(t.data);
    }
    EXPECT_FALSE(results[0].empty());
    EXPECT_EQ(results[0], results[1]) << line;
  }
}

TEST_F(CudaBackend, FailuresOfTheDriverAreTypedAndNamed) {
  for (const char* call : {"launch", "record", "wait"}) {
    fail_call(call, 0, Code::unavailable);
    // The first record and wait are the staging's.
    const Error e = run_error(make("glu m=1 f=32"));
    EXPECT_EQ(e.code, Code::unavailable) << call << ": " << e.message;
    EXPECT_THAT(e.message, HasSubstr("cuda:0: "));
    fail_nothing();
    EXPECT_EQ(wrong("glu m=1 f=32"), "") << call;
  }
  fail_call("allocate", 0, Code::resource_exhausted);
  const Error e = device().alloc(64 * kMiB).error();
  EXPECT_EQ(e.code, Code::resource_exhausted);
  EXPECT_THAT(e.message, HasSubstr("cuda:0: allocate"));
}

// Each call at open and at compile fails once; what was made before it is freed (TearDown counts), and the next try succeeds.
TEST_F(CudaBackend, AFailureAtOpenOrCompileLeavesNothingBehind) {
  backend_.reset();
  int failed = 0;
  for (const char* call : {"count", "open", "allocate_locked", "make_mark", "allocate", "copy", "launch", "finish"}) {
    for (int after = 0; after < 100; ++after) {
      fail_call(call, after, Code::resource_exhausted);
      const bool opened = open_plugin(FTH_CUDA_EMULATED, "measure=on").has_value();
      fail_nothing();
      ASSERT_EQ(live_objects(), 0) << call << " " << after;
      if (opened) break;
      ++failed;
    }
  }
  EXPECT_GT(failed, 20);
  use("");
  const Bound b(device(), make("embed m=3 v=100 e=32 w=q4_0"));
  for (const char* call : {"allocate", "make_mark"}) {
    fail_call(call, 0, Code::resource_exhausted);
    EXPECT_EQ(b.compile().error().code, Code::resource_exhausted);
    fail_nothing();
    EXPECT_TRUE(b.compile());
  }
}

// Each launch of a segment fails once; the device then runs the segment as if nothing had been.
TEST_F(CudaBackend, ASubmitThatFailsHalfWayLeavesNothingBehind) {
  const char* const line = "attention_block m=2 e=64 h=2 g=1 d=32 pos=3 w=q4_0";
  Bound b(device(), make(line));
  const auto x = b.compile();
  ASSERT_TRUE(x);
  int failed = 0;
  for (int after = 0; after < 100; ++after) {
    fail_call("launch", after, Code::unavailable);
    const auto event = x->submit(b.bindings, b.problem.scalars);
    fail_nothing();
    if (event) {
      EXPECT_TRUE(x->wait(*event));
      break;
    }
    EXPECT_EQ(event.error().code, Code::unavailable);
    ++failed;
  }
  EXPECT_GT(failed, 8);
  EXPECT_LT(failed, 100);
  EXPECT_EQ(wrong(line, "nmse:1e-5"), "");
}

#ifdef FTH_CUDA_PLUGIN
// No driver is a normal answer with a reason, and no failure to load.
TEST(CudaPlugin, SaysWhyItHasNoDevice) {
  const auto opened = open_plugin(FTH_CUDA_PLUGIN, "");
  if (opened) GTEST_SKIP() << "there is a device: " << (*opened)->device().info().description;
  EXPECT_EQ(opened.error().code, Code::unavailable);
  EXPECT_THAT(opened.error().message, AnyOf(AllOf(HasSubstr("driver version is insufficient"), HasSubstr("need one for CUDA")),
                                            HasSubstr("device 0 of 0"), HasSubstr("no such device")));
}
#endif

}  // namespace
}  // namespace fth::conformance
