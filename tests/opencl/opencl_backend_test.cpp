// The opencl backend where the conformance cases do not reach: the contract of a device (tests/support/device_contract.h), host memory, its options, its files,
// a driver that fails. CTest names PoCL as the only driver; without it every test is skipped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/base/bytes.h"
#include "tests/opencl/faults.h"
#include "tests/support/device_contract.h"

namespace fth::conformance {
namespace {

using opencl_test::fault;
using testing::AllOf;
using testing::HasSubstr;

class OpenclBackend : public BackendTest {
 protected:
  static constexpr std::array kMemories{"host_memory=on", "host_memory=off"};
  static constexpr uint64_t kAlignment = 4;
  static constexpr int64_t kTooManyRows = int64_t{1} << 30;
  static constexpr const char* kTooLarge = "256.00 GiB";

  static Result<std::unique_ptr<Backend>> open(const std::string& options) { return open_plugin(FTH_OPENCL_PLUGIN, options); }
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

INSTANTIATE_TYPED_TEST_SUITE_P(Opencl, DeviceContract, OpenclBackend);

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
  use("host_memory=off");
  EXPECT_EQ(device().import_host(memory.data(), 256).error().code, Code::unimplemented);
}

TEST_F(OpenclBackend, OptionsAreChecked) {
  EXPECT_THAT(open("color=red").error().message, AllOf(HasSubstr("'color'"), HasSubstr("math")));
  EXPECT_THAT(open("math=f64").error().message, HasSubstr("need one of f32, f16, int8"));
  EXPECT_THAT(open("host_memory=maybe").error().message, HasSubstr("need on or off"));
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
