// The cuda backend over the emulated device, where the conformance cases do not reach: what it refuses and how it says so, its memory, its queue, its
// options, a driver that fails. And the real plugin, where it was built, on a machine that may have no driver.

#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/base/bytes.h"
#include "tests/cuda/emulated.h"
#include "tests/support/backend_fixture.h"

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

TEST_F(CudaBackend, MemoryIsCopiedInPieces) {
  constexpr uint64_t kBytes = 20 * kMiB + 13;
  const auto b = device().alloc(kBytes);
  ASSERT_TRUE(b) << b.error().message;
  std::vector<uint8_t> wrote(kBytes), read(kBytes);
  for (size_t i = 0; i < kBytes; ++i) wrote[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  ASSERT_TRUE(b->write(0, wrote.data(), kBytes));
  ASSERT_TRUE(b->write(7, "abc", 3));
  std::memcpy(wrote.data() + 7, "abc", 3);
  for (uint64_t i = 0; i < 9; ++i) {  // more small writes than there are pieces, none of them waited for
    const auto v = static_cast<uint8_t>(i);
    ASSERT_TRUE(b->write(100 + i, &v, 1));
    wrote[100 + i] = v;
  }
  ASSERT_TRUE(b->read(0, read.data(), kBytes));
  EXPECT_EQ(wrote, read);
  for (const uint64_t bytes : {2 * kMiB, 2 * kMiB + 1, 8 * kMiB, 8 * kMiB + 1}) {
    std::fill(read.begin(), read.end(), uint8_t{0});
    ASSERT_TRUE(b->read(5, read.data(), bytes));
    EXPECT_EQ(0, std::memcmp(read.data(), wrote.data() + 5, bytes)) << bytes;
  }
  EXPECT_TRUE(b->write(kBytes, nullptr, 0));
  EXPECT_EQ(b->read(kBytes - 4, read.data(), 5).error().code, Code::out_of_range);
  EXPECT_EQ(b->write(UINT64_MAX, read.data(), 2).error().code, Code::out_of_range);
  EXPECT_TRUE(device().alloc(0));
  for (const uint64_t bytes : {uint64_t{1} << 45, UINT64_MAX}) {
    const Error e = device().alloc(bytes).error();
    EXPECT_EQ(e.code, Code::resource_exhausted);
    EXPECT_THAT(e.message, AllOf(HasSubstr("cuda:0: a buffer of"), HasSubstr("the device has 4.00 GiB")));
  }
  EXPECT_EQ(device().alloc(4 * kGiB).error().code, Code::resource_exhausted);  // not beside what is there
  char host[16];
  EXPECT_EQ(device().import_host(host, sizeof host).error().code, Code::unimplemented);
}

TEST_F(CudaBackend, RefusalsNameOpAndNumber) {
  const auto refused = [&](const std::string& line) {
    const Error e = estimate_error(make(line));
    EXPECT_EQ(e.code, Code::unimplemented) << line;
    return e.message;
  };
  EXPECT_THAT(refused("experts m=1 e=32 f=32 slots=2 k=1 w=f32"), AllOf(HasSubstr("op 0 (experts)"), HasSubstr("cpu")));
  EXPECT_THAT(refused("attention m=1 h=1 g=1 d=258 state=f32"), HasSubstr("heads of 258: at most 256"));
  EXPECT_THAT(refused("attention m=1 h=2 g=2 d=32 state=bf16"), HasSubstr("a cache of bf16"));
  Problem p = make("matmul m=1 k=64 n=8 w=f32");
  p.tensors[1].desc.dims[0] = p.tensors[2].desc.dims[1] = int64_t{1} << 30;  // 256 GiB of weights, of which nothing is read
  EXPECT_THAT(estimate_error(p).message, HasSubstr("has 256.00 GiB, at most 4.00 GiB"));
  p = make("add m=1 e=1");
  for (Tensor& t : p.tensors) t.desc.dims[0] = 65536;
  EXPECT_THAT(estimate_error(p).message, HasSubstr("65536 tokens at once: at most 65535"));
}

TEST_F(CudaBackend, RopeFactorOfZeroIsRefused) {
  Problem p = make("rope m=1 h=1 d=8 factors=1");
  for (Tensor& t : p.tensors)
    if (t.name == "factors") std::memset(t.data.data(), 0, 4);
  EXPECT_EQ(run_error(p).code, Code::invalid_argument);
  EXPECT_THAT(run_error(p).message, HasSubstr("pair 0"));
}

TEST_F(CudaBackend, SubmitChecksScalars) {
  Problem p = make("rms_norm m=2 bucket=4 e=32");
  for (const int64_t tokens : {int64_t{0}, int64_t{-1}, int64_t{5}, INT64_MAX}) {
    p.scalars[FTH_SCALAR_TOKENS] = tokens;
    EXPECT_EQ(run_error(p).code, Code::invalid_argument) << tokens;
  }
  p = make("attention m=1 h=2 g=1 d=32 pos=7 cells=8");
  EXPECT_EQ(run_error(p).message, "no error");
  p.scalars[FTH_SCALAR_POS] = 8;
  EXPECT_EQ(run_error(p).code, Code::out_of_range);
  p.scalars[FTH_SCALAR_POS] = -1;
  EXPECT_EQ(run_error(p).code, Code::invalid_argument);
}

TEST_F(CudaBackend, AnIdOutsideOfTheTableIsReported) {
  for (const int32_t id : {100, -1, INT32_MAX, INT32_MIN}) {
    Problem p = make("embed m=3 v=100 e=32 w=q4_0");
    std::memcpy(p.tensors[0].data.data() + 4, &id, sizeof id);
    const Error e = run_error(p);
    EXPECT_EQ(e.code, Code::out_of_range) << id;
    EXPECT_THAT(e.message, HasSubstr("row 1"));
  }
  EXPECT_EQ(run_error(make("embed m=3 v=100 e=32 w=q4_0")).message, "no error");
}

TEST_F(CudaBackend, SubmitChecksBindings) {
  Bound b(device(), make("matmul m=1 k=64 n=8 w=q4_0"));
  const auto x = b.compile();
  ASSERT_TRUE(x);
  const auto error = [&](auto&& change) {
    std::vector<fth_binding> bindings = b.bindings;
    change(bindings);
    const Result<> r = x->run(bindings, b.problem.scalars);
    return r ? std::string("no error") : r.error().message;
  };
  EXPECT_EQ(error([](auto&) {}), "no error");
  EXPECT_THAT(error([](auto& v) { v.pop_back(); }), HasSubstr("1 bindings, need 2"));
  EXPECT_THAT(error([](auto& v) { v[1].buffer = nullptr; }), HasSubstr("binding 1: no buffer"));
  EXPECT_THAT(error([](auto& v) { v[0].offset = 4; }), HasSubstr("offset 4 is no multiple of 16"));
  EXPECT_THAT(error([](auto& v) { v[1].bytes = 31; }), HasSubstr("binding 1: a binding of 31 bytes, need 32"));
  EXPECT_THAT(error([](auto& v) { v[0].offset = UINT64_MAX - 15; }), HasSubstr("of a buffer of"));
  std::vector<fth_binding> short_weight = b.weights;
  short_weight[0].bytes -= 1;
  EXPECT_EQ(device().compile(b.segment.segment, short_weight).error().code, Code::invalid_argument);
}

// Two runs at once: the second reads what the first writes, and an executable that still runs can be given up.
TEST_F(CudaBackend, SubmitsRunInOrder) {
  Bound first(device(), make("matmul m=16 k=256 n=64 w=f32")), second(device(), make("add m=16 e=64"));
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
  std::vector<float> product(16 * 64), sum(16 * 64);
  ASSERT_TRUE(first.buffers[2].read(0, product.data(), product.size() * 4));
  ASSERT_TRUE(second.buffers[2].read(0, sum.data(), sum.size() * 4));
  for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], product[i] + product[i]) << i;
  const auto given_up = first.compile();
  ASSERT_TRUE(given_up);
  ASSERT_TRUE(given_up->submit(first.bindings, first.problem.scalars));
}

TEST_F(CudaBackend, RunsAreTimedByTheDevice) {
  expect_clock(device());
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

TEST_F(CudaBackend, OptionsAreChecked) {
  EXPECT_THAT(open_plugin(FTH_CUDA_EMULATED, "color=red").error().message, AllOf(HasSubstr("'color'"), HasSubstr("measure")));
  EXPECT_THAT(open_plugin(FTH_CUDA_EMULATED, "measure=maybe").error().message, HasSubstr("need on or off"));
  EXPECT_THAT(open_plugin(FTH_CUDA_EMULATED, "bytes_per_second=-1").error().message, HasSubstr("a number above 0"));
  use("bytes_per_second=1e9,flops_per_second=2e9");
  EXPECT_EQ(device().info().bytes_per_second, 1e9);
  EXPECT_EQ(device().info().flops_per_second, 2e9);
  use("measure=on");
  EXPECT_GT(device().info().bytes_per_second, 0);
  EXPECT_GT(device().info().launch_seconds, 0);
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
