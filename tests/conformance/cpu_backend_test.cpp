// The cpu backend where the conformance cases do not reach: what it refuses and how it says so, its options, its promises about memory.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "tests/conformance/compare.h"
#include "tests/conformance/reference.h"
#include "tests/conformance/runner.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};
}  // namespace

// Counts what submit allocates.
__attribute__((noinline)) void* operator new(size_t n) {
  if (counting) ++allocations;
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
__attribute__((noinline)) void* operator new(size_t n, const std::nothrow_t&) noexcept {
  if (counting) ++allocations;
  return std::malloc(n);
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace fth::conformance {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class CpuBackend : public testing::Test {
 protected:
  std::unique_ptr<Backend> backend_ = *Backend::open({});
  const Device& device() const { return backend_->device(); }

  static Problem make(const char* line) { return *build(*parse_case(line)); }
  static uint16_t find(const Problem& p, std::string_view name) {
    for (size_t i = 0; i < p.tensors.size(); ++i)
      if (p.tensors[i].name == name) return static_cast<uint16_t>(i);
    ADD_FAILURE() << "no tensor " << name;
    return 0;
  }
  template <class T>
  static T* data(Problem& p, std::string_view name) {
    return reinterpret_cast<T*>(p.tensors[find(p, name)].data.data());
  }
  static Error error_of(const Result<>& r) { return r ? Error{Code::internal, "no error"} : r.error(); }
  Error run_error(const Problem& p) const {
    const Result<Problem> r = run_once(device(), p);
    return r ? Error{Code::internal, "no error"} : r.error();
  }
  Error estimate_error(const Problem& p) const {
    const Problem::Segment s = p.segment();
    const Result<fth_estimate> r = device().estimate(s.segment);
    return r ? Error{Code::internal, "no error"} : r.error();
  }
};

Error open_error(const char* options) {
  const auto b = Backend::open({.options = options});
  return b ? Error{Code::internal, "no error"} : b.error();
}

TEST_F(CpuBackend, DescribesItself) {
  const fth_device_info& i = device().info();
  EXPECT_EQ(device().name(), "cpu");
  EXPECT_EQ(i.kind, static_cast<uint32_t>(FTH_KIND_CPU));
  EXPECT_TRUE(device().reads_host_memory());
  EXPECT_GT(i.memory_bytes, 0u);
  EXPECT_GT(i.bytes_per_second, 0);
  EXPECT_GT(i.flops_per_second, 0);
  EXPECT_THAT(i.description, AllOf(HasSubstr("kernels "), HasSubstr("not used: ")));
}

TEST_F(CpuBackend, OptionsAreTakenOrNamed) {
  const auto b = Backend::open({.options = "isa=generic,bytes_per_second=1.25e10,flops_per_second=3e9"});
  ASSERT_TRUE(b) << b.error().message;
  EXPECT_EQ((*b)->device().info().bytes_per_second, 1.25e10);
  EXPECT_EQ((*b)->device().info().flops_per_second, 3e9);
  EXPECT_THAT((*b)->device().info().description, HasSubstr("kernels generic"));
  EXPECT_EQ(open_error("isa=z80").code, Code::invalid_argument);
  EXPECT_THAT(open_error("isa=z80").message, AllOf(HasSubstr("isa=z80"), HasSubstr("generic")));
  EXPECT_THAT(open_error("bytes_per_second=fast").message, HasSubstr("bytes_per_second=fast"));
  EXPECT_THAT(open_error("bytes_per_second=-1").message, HasSubstr("bytes_per_second=-1"));
  EXPECT_THAT(open_error("speed=9").message, HasSubstr("speed"));
}

TEST_F(CpuBackend, BuffersHoldTheirRange) {
  const auto buffer = device().alloc(100);
  ASSERT_TRUE(buffer);
  char text[8] = "forward";
  EXPECT_TRUE(buffer->write(92, text, 8));
  EXPECT_EQ(error_of(buffer->write(93, text, 8)).code, Code::out_of_range);
  EXPECT_EQ(error_of(buffer->read(~uint64_t{0}, text, 2)).code, Code::out_of_range);
  char host[16] = {};
  const auto imported = device().import_host(host, sizeof host);
  ASSERT_TRUE(imported);
  EXPECT_TRUE(imported->write(4, text, 8));
  EXPECT_STREQ(host + 4, "forward");
  EXPECT_FALSE(device().import_host(nullptr, 4));
  const auto huge = device().alloc(uint64_t{1} << 60);
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, Code::resource_exhausted);
}

TEST_F(CpuBackend, RefusalsNameOpTensorAndNumbers) {
  Problem p = make("dense_block m=1 e=64 f=96 w=q4_0");
  const uint16_t down = p.ops[4].in[1];
  p.tensors[down].desc.dims[1] = 128;
  Error e = estimate_error(p);
  EXPECT_EQ(e.code, Code::invalid_argument);
  EXPECT_THAT(e.message, AllOf(HasSubstr("op 4 (matmul)"), HasSubstr("[64, 128]"), HasSubstr("K is 96")));

  p = make("attention m=1 h=4 g=2 d=32");
  p.ops[0].attr[1] = 3;
  e = estimate_error(p);
  EXPECT_EQ(e.code, Code::invalid_argument);
  EXPECT_THAT(e.message, AllOf(HasSubstr("4 query heads"), HasSubstr("3 kv heads")));
  p.ops[0].attr[1] = 1.5;
  EXPECT_THAT(estimate_error(p).message, HasSubstr("attribute 1 (G) is 1.5"));
  p.ops[0].attr[1] = 2;
  p.ops[0].attr[3] = 64;
  EXPECT_THAT(estimate_error(p).message, HasSubstr("need 64"));
  p.ops[0].attr[3] = 0;
  p.tensors[find(p, "k_cache")].desc.dtype = FTH_DTYPE_BF16;
  EXPECT_THAT(estimate_error(p).message, AllOf(HasSubstr("k_cache of bf16"), HasSubstr("v_cache of f16")));
  p.tensors[find(p, "v_cache")].desc.dtype = FTH_DTYPE_BF16;
  e = estimate_error(p);
  EXPECT_EQ(e.code, Code::unimplemented);
  EXPECT_THAT(e.message, AllOf(HasSubstr("bf16"), HasSubstr("only f32, f16 and q8_0")));

  p = make("add m=1 e=64");
  p.ops.push_back(p.ops[0]);
  e = estimate_error(p);
  EXPECT_EQ(e.code, Code::unimplemented);
  EXPECT_THAT(e.message, AllOf(HasSubstr("op 1 (add)"), HasSubstr("one writer")));
  p = make("rope m=1 h=1 d=8");
  for (const auto& [attr, value] :
       {std::pair{0, 0.0}, {1, -1.0}, {2, 0.0}, {3, 3.0}, {3, 10.0}, {4, 2.0}, {5, 1.0 / 0.0}, {2, 0.0 / 0.0}}) {
    Problem q = p;
    q.ops[0].attr[attr] = value;
    EXPECT_EQ(estimate_error(q).code, Code::invalid_argument) << attr << " " << value;
  }
}

TEST_F(CpuBackend, SubmitChecksScalars) {
  Problem p = make("rms_norm m=2 bucket=4 e=32");
  for (const int64_t tokens : {int64_t{0}, int64_t{-1}, int64_t{5}, INT64_MAX}) {
    p.scalars[FTH_SCALAR_TOKENS] = tokens;
    EXPECT_EQ(run_error(p).code, Code::invalid_argument) << tokens;
  }
  p = make("attention m=1 h=2 g=1 d=32 pos=7 cells=8");
  p.scalars[FTH_SCALAR_POS] = 8;
  EXPECT_EQ(run_error(p).code, Code::out_of_range);
  p.scalars[FTH_SCALAR_POS] = -1;
  EXPECT_EQ(run_error(p).code, Code::invalid_argument);
  p = make("experts m=1 e=32 f=32 slots=2 k=1 w=f32");
  p.scalars[FTH_SCALAR_SLOTS] = 3;
  EXPECT_EQ(run_error(p).code, Code::invalid_argument);
}

TEST_F(CpuBackend, EmbedNamesTheIdAndTheSize) {
  for (const int32_t id : {100, -1, INT32_MAX, INT32_MIN}) {
    Problem p = make("embed m=3 v=100 e=32 w=q4_0");
    data<int32_t>(p, "ids")[1] = id;
    const Error e = run_error(p);
    EXPECT_EQ(e.code, Code::out_of_range);
    EXPECT_THAT(e.message, AllOf(HasSubstr("id " + std::to_string(id)), HasSubstr("100 rows")));
  }
}

TEST_F(CpuBackend, ExpertsRefuseBadTables) {
  const Problem good = make("experts m=2 e=32 f=32 slots=3 k=2 w=f32");
  EXPECT_EQ(run_error(good).message, "no error");
  const auto with = [&](std::string_view name, int i, int32_t value) {
    Problem p = good;
    data<int32_t>(p, name)[i] = value;
    return run_error(p);
  };
  EXPECT_EQ(with("slot_begin", 0, -1).code, Code::invalid_argument);
  EXPECT_EQ(with("slot_begin", 1, 9).code, Code::invalid_argument);
  EXPECT_EQ(with("slot_begin", 2, -7).code, Code::invalid_argument);
  EXPECT_EQ(with("slot_begin", 3, INT32_MAX).code, Code::invalid_argument);
  EXPECT_THAT(with("rows", 0, 4).message, HasSubstr("need 0 to 3"));
  EXPECT_EQ(with("rows", 1, -1).code, Code::invalid_argument);
  Problem twice = good;
  data<int32_t>(twice, "rows")[1] = data<int32_t>(twice, "rows")[0];
  EXPECT_THAT(run_error(twice).message, HasSubstr("in two slots"));
}

// A segment with its bindings as the test changes them.
struct Bindings {
  const Device& device;
  Problem problem;
  Problem::Segment segment = problem.segment();
  fth_estimate estimate = *device.estimate(segment.segment);
  std::vector<Buffer> buffers;
  std::vector<fth_binding> weights, submit;

  Bindings(const Device& d, Problem p) : device(d), problem(std::move(p)) {
    for (Tensor& t : problem.tensors) {
      if (t.desc.role == FTH_ROLE_TEMP) continue;
      buffers.push_back(*device.alloc(tensor_bytes(t.desc) + 64));
      if (!t.data.empty()) {
        EXPECT_TRUE(buffers.back().write(0, t.data.data(), t.data.size()));
      }
      const fth_binding b = buffers.back().at(0, tensor_bytes(t.desc));
      if (t.desc.role == FTH_ROLE_SLOTS) {
        for (int64_t s = 0; s < t.desc.dims[0]; ++s)
          submit.push_back(buffers.back().at(static_cast<uint64_t>(s) * slot_bytes(t.desc), slot_bytes(t.desc)));
      } else {
        (t.desc.role == FTH_ROLE_WEIGHT ? weights : submit).push_back(b);
      }
    }
    if (estimate.workspace_bytes > 0) {
      buffers.push_back(*device.alloc(estimate.workspace_bytes));
      submit.push_back(buffers.back().whole());
    }
  }
  Result<> run() const {
    FTH_ASSIGN_OR_RETURN(const Executable x, device.compile(segment.segment, weights));
    return x.run(submit, problem.scalars);
  }
};

TEST_F(CpuBackend, BindingsAreCheckedAndNamed) {
  const Problem p = make("head m=1 e=64 v=40 w=q4_0");
  EXPECT_TRUE(Bindings(device(), p).run());
  const auto message = [&](auto&& change) {
    Bindings b(device(), p);
    change(b);
    const Error e = error_of(b.run());
    EXPECT_EQ(e.code, Code::invalid_argument) << e.message;
    return e.message;
  };
  EXPECT_THAT(message([](Bindings& b) { b.weights[1].bytes -= 1; }), AllOf(HasSubstr("weight tensor 3"), HasSubstr("need 1440")));
  EXPECT_THAT(message([](Bindings& b) { b.weights[0].offset += 1; }), HasSubstr("multiple of 4"));
  EXPECT_THAT(message([](Bindings& b) { b.weights[0].buffer = nullptr; }), HasSubstr("no buffer"));
  EXPECT_THAT(message([](Bindings& b) { b.submit[0].bytes = 4; }), AllOf(HasSubstr("binding 0"), HasSubstr("need 256")));
  EXPECT_THAT(message([](Bindings& b) { b.submit[1].offset = ~uint64_t{0}; }), HasSubstr("binding 1"));
  EXPECT_THAT(message([](Bindings& b) { b.submit.back().bytes -= 64; }), HasSubstr("workspace binding 2"));
  EXPECT_THAT(message([](Bindings& b) { b.submit.pop_back(); }), HasSubstr("2 bindings, need 3"));
  EXPECT_FALSE([&] {
    Bindings b(device(), p);
    b.weights.pop_back();
    return b.run().has_value();
  }());
}

TEST_F(CpuBackend, AnEmptySlotMayNotHaveRows) {
  Bindings b(device(), make("experts m=1 e=32 f=32 slots=2 k=2 w=q4_0"));
  ASSERT_TRUE(b.run());
  b.submit[3 + 2] = {};  // x, slot_begin, rows; gate of two slots; up of slot 0
  EXPECT_THAT(error_of(b.run()).message, AllOf(HasSubstr("slot 0"), HasSubstr("empty binding")));
}

TEST_F(CpuBackend, SubmitAllocatesNothing) {
  for (const char* line :
       {"attention_block m=5 e=64 h=2 g=1 d=32 pos=3 w=q4_0", "moe_block m=3 e=64 f=64 slots=4 k=2 w=q4_0", "embed m=3 w=q4_0"}) {
    const Bindings b(device(), make(line));
    const auto x = device().compile(b.segment.segment, b.weights);
    ASSERT_TRUE(x);
    ASSERT_TRUE(x->run(b.submit, b.problem.scalars));
    allocations = 0;
    counting = true;
    const bool good = x->run(b.submit, b.problem.scalars).has_value();
    counting = false;
    EXPECT_TRUE(good);
    EXPECT_EQ(allocations, 0) << line;
  }
}

TEST_F(CpuBackend, TemporariesShareTheWorkspace) {
  // x + x, then 40 more sums each of the one before: two temporaries live at once, whatever the length.
  Problem p = make("add m=8 e=256");
  const Tensor out = p.tensors.back();
  for (int i = 0; i < 40; ++i) {
    Tensor next = out;
    p.tensors.back().desc.role = FTH_ROLE_TEMP;
    p.tensors.push_back(next);
    fth_op o = p.ops.back();
    o.in[0] = p.ops.back().out[0];
    o.out[0] = static_cast<uint16_t>(p.tensors.size() - 1);
    p.ops.push_back(o);
  }
  const Problem::Segment s = p.segment();
  const auto e = device().estimate(s.segment);
  ASSERT_TRUE(e);
  EXPECT_EQ(e->workspace_bytes, 2 * 8 * 256 * sizeof(float));
  const auto got = run_once(device(), p);
  ASSERT_TRUE(got);
  EXPECT_EQ(compare(p, *got, run_reference(p), *parse_tolerance("max:1e-5")), "");
}

TEST_F(CpuBackend, EstimatesFollowTheOptions) {
  const Problem p = make("head m=1 e=256 v=4096 w=q4_0");
  const Problem::Segment s = p.segment();
  double seconds[2] = {};
  int i = 0;
  for (const char* options : {"bytes_per_second=1e9,flops_per_second=1e15", "bytes_per_second=1e10,flops_per_second=1e15"}) {
    const auto b = Backend::open({.options = options});
    ASSERT_TRUE(b);
    const auto e = (*b)->device().estimate(s.segment);
    ASSERT_TRUE(e);
    seconds[i++] = e->seconds - (*b)->device().info().launch_seconds;
    EXPECT_EQ(e->resident_bytes, 0u);
  }
  EXPECT_NEAR(seconds[0], 4096 * 144 / 1e9, 1e-9);
  EXPECT_NEAR(seconds[0] / seconds[1], 10, 1e-6);
}

// A plugin is the same table under another name; one that is not there is refused with the loader's words.
TEST(CpuPlugin, MissingFilesAreNamed) {
  BackendOptions options;
  options.backend = "/nonexistent/libfth_none.so";
  const auto b = Backend::open(options);
  ASSERT_FALSE(b);
  EXPECT_THAT(b.error().message, HasSubstr("libfth_none.so"));
}

}  // namespace
}  // namespace fth::conformance
