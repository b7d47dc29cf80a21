// The opencl backend where the conformance cases do not reach: what it refuses and how it says so, its memory, its queue, its options, its files, a
// driver that fails. CTest names PoCL as the only driver; without it every test is skipped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/base/bytes.h"
#include "tests/opencl/faults.h"
#include "tests/support/backend_fixture.h"

namespace fth::conformance {
namespace {

using opencl_test::fault;
using testing::AllOf;
using testing::HasSubstr;

Result<std::unique_ptr<Backend>> open(const std::string& options) { return open_plugin(FTH_OPENCL_PLUGIN, options); }

class OpenclBackend : public BackendTest {
 protected:
  void SetUp() override { use(""); }
  // Every object that the test made the driver make is gone with the device.
  void TearDown() override {
    fault() = {};
    backend_.reset();
    EXPECT_EQ(opencl_test::live_objects(), 0);
  }
  void use(const std::string& options) {
    backend_.reset();
    auto opened = open(options);
    if (!opened && opened.error().code == Code::unavailable) GTEST_SKIP() << opened.error().message;
    ASSERT_TRUE(opened) << opened.error().message;
    backend_ = *std::move(opened);
  }
};

TEST_F(OpenclBackend, IsSoftwareAndSaysWhatItIs) {
  const fth_device_info& i = device().info();
  EXPECT_EQ(device().name(), "opencl:0");
  EXPECT_GT(opencl_test::live_objects(), 0);
  EXPECT_EQ(i.flags, uint32_t{FTH_DEVICE_SOFTWARE | FTH_DEVICE_HOST_MEMORY});
  EXPECT_EQ(i.kind, uint32_t{FTH_KIND_CPU});
  EXPECT_THAT(i.description,
              AllOf(HasSubstr("Portable Computing Language"), HasSubstr("software on the CPU"), HasSubstr("products in f32")));
  EXPECT_GT(i.memory_bytes, kGiB);
  EXPECT_GT(i.free_bytes, 0u);
  EXPECT_LE(i.free_bytes, i.memory_bytes);
  EXPECT_GT(i.bytes_per_second, 0);
}

TEST_F(OpenclBackend, MemoryWorksInPlaceAndThroughCopies) {
  for (const char* options : {"host_memory=on", "host_memory=off"}) {
    use(options);
    constexpr uint64_t kBytes = 20 * kMiB + 13;
    const uint64_t free_before = device().info().free_bytes;
    const auto b = device().alloc(kBytes);
    ASSERT_TRUE(b) << b.error().message;
    std::vector<uint8_t> wrote(kBytes), read(kBytes);
    for (size_t i = 0; i < kBytes; ++i) wrote[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
    ASSERT_TRUE(b->write(0, wrote.data(), kBytes));
    ASSERT_TRUE(b->write(7, "abc", 3));
    std::memcpy(wrote.data() + 7, "abc", 3);
    ASSERT_TRUE(b->read(0, read.data(), kBytes));
    EXPECT_EQ(wrote, read) << options;
    ASSERT_TRUE(b->read(kBytes - 5, read.data(), 5));
    EXPECT_EQ(0, std::memcmp(read.data(), wrote.data() + kBytes - 5, 5));
    EXPECT_TRUE(b->write(kBytes, nullptr, 0));
    EXPECT_EQ(b->read(kBytes - 4, read.data(), 5).error().code, Code::out_of_range);
    EXPECT_EQ(b->write(UINT64_MAX, read.data(), 2).error().code, Code::out_of_range);
    EXPECT_TRUE(device().alloc(0));
    EXPECT_GT(free_before, 0u);
    for (const uint64_t bytes : {uint64_t{1} << 45, uint64_t{1} << 62, UINT64_MAX}) {
      const Error e = device().alloc(bytes).error();
      EXPECT_EQ(e.code, Code::resource_exhausted);
      EXPECT_THAT(e.message, AllOf(HasSubstr("opencl:0: a buffer of"), HasSubstr("the device allows")));
    }
  }
  char host[16];
  EXPECT_EQ(device().import_host(host, sizeof host).error().code, Code::unimplemented);
}

// The host's memory is worked on where it lies, at whatever place of a page.
TEST_F(OpenclBackend, ImportedMemoryIsUsedInPlace) {
  std::vector<float> memory(4096, 1.0f);
  for (const size_t at : {size_t{0}, size_t{1}, size_t{9}, size_t{1023}}) {
    Problem p = make("add m=1 e=64");
    const Problem::Segment s = p.segment();
    const auto x = device().compile(s.segment, {});
    ASSERT_TRUE(x);
    const auto a = device().import_host(memory.data() + at, 256), b = device().import_host(memory.data() + 2048 + at, 256);
    ASSERT_TRUE(a && b);
    for (size_t i = 0; i < 64; ++i) memory[at + i] = static_cast<float>(i);
    const std::vector<fth_binding> bindings{a->whole(), a->whole(), b->whole()};
    ASSERT_TRUE(x->run(bindings, p.scalars));
    for (size_t i = 0; i < 64; ++i) ASSERT_EQ(memory[2048 + at + i], 2 * static_cast<float>(i)) << at;
    EXPECT_EQ(memory[2048 + at + 64], 1.0f);
    std::fill(memory.begin(), memory.end(), 1.0f);
  }
  EXPECT_EQ(device().import_host(reinterpret_cast<char*>(memory.data()) + 2, 256).error().code, Code::invalid_argument);
  EXPECT_EQ(device().import_host(nullptr, 4).error().code, Code::invalid_argument);
}

TEST_F(OpenclBackend, RefusalsNameOpAndNumber) {
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
  EXPECT_THAT(estimate_error(p).message, HasSubstr("has 256.00 GiB, at most"));
  p = make("rope m=1 h=1 d=8");
  for (const auto& [attr, value] :
       {std::pair{0, 0.0}, {1, -1.0}, {2, 0.0}, {3, 3.0}, {3, 10.0}, {4, 2.0}, {5, 1.0 / 0.0}, {2, 0.0 / 0.0}}) {
    Problem q = p;
    q.ops[0].attr[attr] = value;
    EXPECT_EQ(estimate_error(q).code, Code::invalid_argument) << attr << " " << value;
  }
}

TEST_F(OpenclBackend, RopeFactorOfZeroIsRefused) {
  Problem p = make("rope m=1 h=1 d=8 factors=1");
  for (Tensor& t : p.tensors)
    if (t.name == "factors") std::memset(t.data.data(), 0, 4);
  const Error e = run_error(p);
  EXPECT_EQ(e.code, Code::invalid_argument);
  EXPECT_THAT(e.message, HasSubstr("pair 0"));
}

TEST_F(OpenclBackend, SubmitChecksScalars) {
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

TEST_F(OpenclBackend, AnIdOutsideOfTheTableIsReported) {
  for (const int32_t id : {100, -1, INT32_MAX, INT32_MIN}) {
    Problem p = make("embed m=3 v=100 e=32 w=q4_0");
    std::memcpy(p.tensors[0].data.data() + 4, &id, sizeof id);
    const Error e = run_error(p);
    EXPECT_EQ(e.code, Code::out_of_range) << id;
    EXPECT_THAT(e.message, HasSubstr("row 1"));
  }
  EXPECT_EQ(run_error(make("embed m=3 v=100 e=32 w=q4_0")).message, "no error");
}

TEST_F(OpenclBackend, SubmitChecksBindings) {
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
  EXPECT_THAT(error([](auto& v) { v[0].offset = 2; }), HasSubstr("offset 2 is no multiple of 4"));
  EXPECT_THAT(error([](auto& v) { v[1].bytes = 31; }), HasSubstr("binding 1: a binding of 31 bytes, need 32"));
  EXPECT_THAT(error([](auto& v) { v[0].offset = UINT64_MAX - 15; }), HasSubstr("of a buffer of"));
  std::vector<fth_binding> short_weight = b.weights;
  short_weight[0].bytes -= 1;
  EXPECT_EQ(device().compile(b.segment.segment, short_weight).error().code, Code::invalid_argument);
}

// Two runs at once: the second reads what the first writes, and an executable that still runs can be given up.
TEST_F(OpenclBackend, SubmitsRunInOrder) {
  for (const char* options : {"host_memory=on", "host_memory=off"}) {
    use(options);
    Bound first(device(), make("matmul m=16 k=1024 n=1024 w=f32")), second(device(), make("add m=16 e=1024"));
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
    std::vector<float> product(16 * 1024), sum(16 * 1024);
    ASSERT_TRUE(first.buffers[2].read(0, product.data(), product.size() * 4));
    ASSERT_TRUE(second.buffers[2].read(0, sum.data(), sum.size() * 4));
    for (size_t i = 0; i < sum.size(); ++i) ASSERT_EQ(sum[i], product[i] + product[i]) << i;
    const auto given_up = first.compile();
    ASSERT_TRUE(given_up);
    ASSERT_TRUE(given_up->submit(first.bindings, first.problem.scalars));
  }
}

TEST_F(OpenclBackend, RunsAreTimedByTheDevice) { expect_clock(device()); }

TEST_F(OpenclBackend, OptionsAreChecked) {
  EXPECT_THAT(open("color=red").error().message, AllOf(HasSubstr("'color'"), HasSubstr("math")));
  EXPECT_THAT(open("math=f64").error().message, HasSubstr("need one of f32, f16, int8"));
  EXPECT_THAT(open("host_memory=maybe").error().message, HasSubstr("need on or off"));
  EXPECT_THAT(open("bytes_per_second=-1").error().message, HasSubstr("a number above 0"));
  use("bytes_per_second=1e9,flops_per_second=2e9");
  EXPECT_EQ(device().info().bytes_per_second, 1e9);
  EXPECT_EQ(device().info().flops_per_second, 2e9);
  use("measure=on");
  EXPECT_GT(device().info().bytes_per_second, 0);
  EXPECT_GT(device().info().launch_seconds, 0);
  EXPECT_EQ(wrong("rms_norm m=1 e=64"), "");
  use("math=int8,shape=gpu");
  EXPECT_THAT(device().info().description, AllOf(HasSubstr("8-bit integers"), HasSubstr("32 lanes")));
  // Rounding to 8 bits is there where it was asked for, and not in a product that asks for fine activations.
  EXPECT_NE(wrong("matmul m=2 k=256 n=64 w=q4_0", "nmse:1e-9"), "");
  EXPECT_EQ(wrong("matmul m=2 k=256 n=64 w=q4_0", "nmse:1e-4"), "");
  EXPECT_EQ(wrong("matmul m=2 k=256 n=64 w=q4_0 fine=1", "nmse:1e-9"), "");
  const auto half = open("math=f16");
  if (!half) {
    EXPECT_EQ(half.error().code, Code::unimplemented);
    EXPECT_THAT(half.error().message, HasSubstr("no cl_khr_fp16"));
  }
}

TEST_F(OpenclBackend, ProgramsAreCachedAndABadFileReplaced) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("fth_opencl_" + std::to_string(getpid()));
  const std::string line = "glu m=2 f=64", options = "program_cache=" + folder.string();
  const auto built = [&] {
    const int before = opencl_test::programs_from_source();
    use(options);
    EXPECT_EQ(wrong(line), "");
    return opencl_test::programs_from_source() - before;
  };
  const auto only_file = [&] {
    std::vector<std::filesystem::path> files;
    for (const auto& f : std::filesystem::directory_iterator(folder)) files.push_back(f.path());
    EXPECT_EQ(files.size(), 1u);
    return files.at(0);
  };
  EXPECT_EQ(built(), 1);
  EXPECT_EQ(built(), 0);
  const std::filesystem::path file = only_file();
  const auto whole = std::filesystem::file_size(file);  // another time PoCL may pack more of its own cache
  for (const uint64_t cut : {uint64_t{0}, uint64_t{31}, uint64_t{200}, whole - 1}) {
    std::filesystem::resize_file(file, cut);
    EXPECT_EQ(built(), 1) << cut;
    EXPECT_GT(std::filesystem::file_size(only_file()), 200u);
  }
  for (const uint64_t at : {uint64_t{0}, uint64_t{9}, uint64_t{40}, whole / 2, whole - 1}) {
    std::fstream f(file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekg(static_cast<std::streamoff>(at));
    const char old = static_cast<char>(f.get());
    f.seekp(static_cast<std::streamoff>(at));
    f.put(static_cast<char>(old ^ 0x40));
    f.close();
    EXPECT_EQ(built(), 1) << at;
  }
  EXPECT_EQ(built(), 0);
  use("program_cache=" + (folder / "no" / "such").string());
  EXPECT_EQ(wrong(line), "");
  backend_.reset();
  std::filesystem::remove_all(folder);
}

TEST_F(OpenclBackend, FailuresOfTheDriverAreTyped) {
  fault() = {"clGetPlatformIDs", 0, CL_PLATFORM_NOT_FOUND_KHR};
  EXPECT_EQ(open("").error().code, Code::unavailable);
  EXPECT_THAT(open("").error().message, HasSubstr("no driver"));
  for (const char* options : {"host_memory=on", "host_memory=off"}) {
    fault() = {};
    use(options);
    fault() = {"clCreateBuffer", 0, CL_MEM_OBJECT_ALLOCATION_FAILURE};
    const Error e = device().alloc(64 * kMiB).error();
    EXPECT_EQ(e.code, Code::resource_exhausted);
    EXPECT_THAT(e.message, AllOf(HasSubstr("64.00 MiB"), HasSubstr("clCreateBuffer"), HasSubstr("CL_MEM_OBJECT_ALLOCATION_FAILURE (-4)")));
  }
  fault() = {"clBuildProgram", 0, CL_BUILD_PROGRAM_FAILURE};
  EXPECT_THAT(run_error(make("glu m=1 f=32")).message, HasSubstr("CL_BUILD_PROGRAM_FAILURE (-11)"));
  for (const auto& [call, error] : {std::pair{"clEnqueueNDRangeKernel", CL_OUT_OF_RESOURCES},
                                    {"clWaitForEvents", CL_OUT_OF_RESOURCES},
                                    {"clWaitForEvents", CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST},
                                    {"clWaitForEvents", CL_DEVICE_NOT_AVAILABLE}}) {
    fault() = {call, 0, error};
    const Error e = run_error(make("glu m=1 f=32"));
    EXPECT_EQ(e.code, Code::unavailable) << call << " " << error << ": " << e.message;
    EXPECT_THAT(e.message, HasSubstr(std::to_string(error)));
  }
  fault() = {"clEnqueueNDRangeKernel", 0, CL_OUT_OF_HOST_MEMORY};
  EXPECT_EQ(run_error(make("glu m=1 f=32")).code, Code::resource_exhausted);
}

// Each launch of a segment fails once; the device then runs the segment as if nothing had been.
TEST_F(OpenclBackend, ASubmitThatFailsHalfWayLeavesNothingBehind) {
  Bound b(device(), make("attention_block m=2 e=64 h=2 g=1 d=32 pos=3 w=q4_0"));
  const auto x = b.compile();
  ASSERT_TRUE(x);
  int failed = 0;
  for (int after = 0; after < 100; ++after) {
    fault() = {"clEnqueueNDRangeKernel", after, CL_OUT_OF_RESOURCES};
    const auto event = x->submit(b.bindings, b.problem.scalars);
    fault() = {};
    if (event) {
      EXPECT_TRUE(x->wait(*event));
      break;
    }
    EXPECT_EQ(event.error().code, Code::unavailable);
    ++failed;
  }
  EXPECT_GT(failed, 8);
  EXPECT_LT(failed, 100);
  EXPECT_EQ(wrong("attention_block m=2 e=64 h=2 g=1 d=32 pos=3 w=q4_0", "nmse:1e-5"), "");
}

}  // namespace
}  // namespace fth::conformance
