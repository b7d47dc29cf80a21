// The openvino backend where the conformance cases do not reach: what it lists and loads, what it refuses and how it says so, buckets, a compiler and a
// device that fail. On OpenVINO's CPU device.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/base/bytes.h"
#include "tests/openvino/faults.h"
#include "tests/support/backend_fixture.h"

namespace fth::conformance {
namespace {

using openvino_test::fault;
using testing::AllOf;
using testing::HasSubstr;

Result<std::unique_ptr<Backend>> open(const std::string& options) { return open_plugin(FTH_OPENVINO_PLUGIN, options, 0, 2); }

bool is_mapped(const std::string& library) {
  std::ifstream maps("/proc/self/maps");
  std::stringstream all;
  all << maps.rdbuf();
  return all.str().find(library) != std::string::npos;
}

class OpenvinoBackend : public BackendTest {
 protected:
  void SetUp() override { use("device=CPU"); }
  void TearDown() override { fault() = {}; }
  void use(const std::string& options) {
    backend_.reset();
    auto opened = open(options);
    ASSERT_TRUE(opened) << opened.error().message;
    backend_ = *std::move(opened);
  }
};

// In a process of its own, because nothing unloads what the other tests load.
TEST(OpenvinoLoading, PluginsOfOpenvinoAreLoadedToCompileOnly) {
  testing::GTEST_FLAG(death_test_style) = "threadsafe";
  const auto run = [] {
    const auto backend = open("device=CPU");
    if (!backend) std::_Exit(1);
    const Problem p = make("matmul m=1 k=64 n=32 w=q4_0");
    if (!(*backend)->device().estimate(p.segment().segment)) std::_Exit(2);
    if (is_mapped("libopenvino_intel_cpu_plugin")) std::_Exit(3);
    if (!run_once((*backend)->device(), p)) std::_Exit(4);
    std::_Exit(is_mapped("libopenvino_intel_cpu_plugin") ? 0 : 5);
  };
  EXPECT_EXIT(run(), testing::ExitedWithCode(0), "");
}

TEST_F(OpenvinoBackend, IsSoftwareAndSaysWhatItIs) {
  const fth_device_info& i = device().info();
  EXPECT_THAT(device().name(), testing::StartsWith("openvino:"));
  EXPECT_EQ(i.flags, uint32_t{FTH_DEVICE_SOFTWARE | FTH_DEVICE_HOST_MEMORY});
  EXPECT_EQ(i.kind, uint32_t{FTH_KIND_CPU});
  EXPECT_THAT(i.description, AllOf(HasSubstr("CPU: "), HasSubstr("OpenVINO 20"), HasSubstr("runs on the CPU")));
  EXPECT_GT(i.memory_bytes, kGiB);
  EXPECT_LE(i.free_bytes, i.memory_bytes);
}

TEST_F(OpenvinoBackend, OptionsAreCheckedAndNamed) {
  for (const auto& [options, why] : std::initializer_list<std::pair<const char*, const char*>>{
           {"colour=red", "colour"},
           {"precision=f8", "option precision=f8: need one of f32, f16, bf16"},
           {"weights=q4_0", "option weights=q4_0: need one of compressed, f16, f32"},
           {"device=TPU", "as device=TPU; OpenVINO has "},
           {"flops_per_second=much", "flops_per_second=much: need a number above 0"}}) {
    const auto opened = open(options);
    ASSERT_FALSE(opened) << options;
    EXPECT_EQ(opened.error().code, Code::invalid_argument);
    EXPECT_THAT(opened.error().message, HasSubstr(why));
  }
}

TEST_F(OpenvinoBackend, CostsFollowTheOptions) {
  use("device=CPU,bytes_per_second=1e9,flops_per_second=1e15");
  const Problem p = make("matmul m=1 k=4096 n=4096 w=q8_0");
  const auto estimate = device().estimate(p.segment().segment);
  ASSERT_TRUE(estimate);
  EXPECT_NEAR(estimate->seconds, 4096 * 4096 * 34 / 32 / 1e9, 1e-3);
  EXPECT_EQ(estimate->resident_bytes, uint64_t{4096} * 4096 * 34 / 32);  // as the file has them
  use("device=CPU,weights=f32");
  EXPECT_EQ(device().estimate(p.segment().segment)->resident_bytes, uint64_t{4096} * 4096 * 4);
}

TEST_F(OpenvinoBackend, RefusalsSayWhatToDo) {
  for (const auto& [line, why] : std::initializer_list<std::pair<const char*, const char*>>{
           {"experts m=1 e=64 f=64 slots=2 k=1 w=q4_0", "leave it on the cpu"},
           {"embed m=1 v=5 e=64 w=f32", "leave it on the cpu"},
           {"attention m=1 h=2 g=1 d=32 pos=3 state=q8_0", "only f32 and f16"},
           {"attention m=1 h=12 g=2 d=128 pos=257 cells=512 pages=4", "a cache in pages"}}) {
    const Error e = estimate_error(make(line));
    EXPECT_EQ(e.code, Code::unimplemented) << line;
    EXPECT_THAT(e.message, HasSubstr(why));
  }
}

// A graph has the rows of its bucket: more are refused, not cut; fewer leave the others alone; and a prompt in pieces is the prompt.
TEST_F(OpenvinoBackend, MoreTokensThanTheBucketAreRefused) {
  Problem p = make("attention_block m=8 bucket=8 e=64 h=2 g=1 d=32 pos=5 w=f32 state=f32");
  p.scalars[FTH_SCALAR_TOKENS] = 9;
  const Error e = run_error(p);
  EXPECT_EQ(e.code, Code::invalid_argument);
  EXPECT_THAT(e.message, HasSubstr("9 tokens, the bucket is 8"));
  p.scalars[FTH_SCALAR_TOKENS] = 0;
  EXPECT_EQ(run_error(p).code, Code::invalid_argument);
  p.scalars = {8, 6, 0};  // the cache ends at 13
  EXPECT_EQ(run_error(p).code, Code::out_of_range);
}

// The same tokens in one submit and in three, through caches that carry over: within rounding of each other, the cache to the bit where nothing is summed.
TEST_F(OpenvinoBackend, PiecesOfAPromptAreThePrompt) {
  const Problem whole = make("attention m=24 h=4 g=2 d=32 pos=9 window=16 state=f16");
  const Result<Problem> got = run_once(device(), whole);
  ASSERT_TRUE(got) << got.error().message;
  const std::vector<std::vector<double>> want = run_reference(whole);
  EXPECT_EQ("", compare(whole, *got, want, *parse_tolerance("nmse:1e-10")));
  Problem joined = *got, state = whole;
  for (int64_t t = 0; t < 24; ++t) {
    const Result<Problem> one = run_once(device(), slice_token(whole, state, t));
    ASSERT_TRUE(one) << one.error().message;
    state = *one;
    for (size_t i = 0; i < joined.tensors.size(); ++i) {
      Tensor& x = joined.tensors[i];
      const std::vector<std::byte>& y = one->tensors[i].data;
      if (x.desc.role == FTH_ROLE_STATE && t == 23) {
        EXPECT_EQ(x.data, y) << x.name;
      }
      if (x.desc.role == FTH_ROLE_OUTPUT) std::memcpy(x.data.data() + static_cast<size_t>(t) * y.size(), y.data(), y.size());
    }
  }
  EXPECT_EQ("", compare(whole, joined, want, *parse_tolerance("nmse:1e-10")));
}

TEST_F(OpenvinoBackend, WeightsInEachForm) {
  for (const char* form : {"compressed", "f16", "f32"}) {
    use(std::string("device=CPU,weights=") + form);
    for (const char* type : {"q4_0", "q8_0", "q4_1", "q6_k", "q4_k", "f16", "bf16", "f32"})
      EXPECT_EQ("",
                wrong(std::string("matmul m=3 k=512 n=40 fine=1 w=") + type, std::strcmp(form, "f16") == 0 ? "nmse:1e-6" : "nmse:1e-10"))
          << form << ' ' << type;
  }
}

TEST_F(OpenvinoBackend, BuffersCheckTheirRange) {
  const auto b = device().alloc(100);
  ASSERT_TRUE(b);
  char bytes[8] = "abcdefg";
  ASSERT_TRUE(b->write(92, bytes, 8));
  EXPECT_EQ(b->write(93, bytes, 8).error().code, Code::out_of_range);
  EXPECT_EQ(b->read(UINT64_MAX, bytes, 2).error().code, Code::out_of_range);
  EXPECT_EQ(device().alloc(UINT64_MAX).error().code, Code::resource_exhausted);
  EXPECT_EQ(device().import_host(bytes + 1, 4).error().code, Code::invalid_argument);
}

TEST_F(OpenvinoBackend, ACompilerThatFailsIsAnErrorWithItsWords) {
  fault().compile = true;
  const Error e = run_error(make("matmul m=1 k=64 n=32 w=q4_0"));
  EXPECT_EQ(e.code, Code::unavailable);
  EXPECT_THAT(e.message, AllOf(HasSubstr("CPU cannot compile"), HasSubstr("the driver is gone")));
  EXPECT_THAT(e.message, testing::Not(HasSubstr("src/driver.cpp")));
  fault().compile = false;
  EXPECT_EQ("", wrong("matmul m=1 k=64 n=32 w=q4_0"));
}

TEST_F(OpenvinoBackend, ADeviceThatIsLostIsAnError) {
  const Problem p = make("attention m=2 h=2 g=1 d=32 pos=4 state=f32");
  auto prepared = Prepared::make(device(), p);
  ASSERT_TRUE(prepared) << prepared.error().message;
  for (bool* const failing : {&fault().start, &fault().wait}) {
    *failing = true;
    const Result<> ran = prepared->run();
    ASSERT_FALSE(ran);
    EXPECT_EQ(ran.error().code, Code::unavailable);
    EXPECT_THAT(ran.error().message, HasSubstr("the driver is gone"));
    *failing = false;
  }
  ASSERT_TRUE(prepared->run());
  const auto got = prepared->collect();
  ASSERT_TRUE(got);
  EXPECT_EQ("", compare(p, *got, run_reference(p), *parse_tolerance("nmse:1e-10")));
}

// Device files of an NPU and of two GPUs; the CPU device computes for them.
class OpenvinoMadeUp : public testing::Test {
 protected:
  void SetUp() override {
    fault().dev = testing::TempDir() + "fth_openvino_dev";
    for (const char* const file : {"/accel/accel0", "/dri/card0", "/dri/renderD128"}) {
      std::filesystem::create_directories(std::filesystem::path(fault().dev + file).parent_path());
      std::ofstream(fault().dev + file) << "";
    }
  }
  void TearDown() override {
    std::filesystem::remove_all(fault().dev);
    fault() = {};
  }
};

TEST_F(OpenvinoMadeUp, TheNpuComesFirstThenGpusThenTheCpu) {
  std::vector<std::string> names;
  for (uint32_t i = 0; i < 4; ++i) {
    const auto opened = open_plugin(FTH_OPENVINO_PLUGIN, "", i);
    ASSERT_TRUE(opened) << i << ": " << opened.error().message;
    const fth_device_info& info = (*opened)->device().info();
    EXPECT_EQ((*opened)->device().name(), "openvino:" + std::to_string(i));
    EXPECT_EQ(info.kind, uint32_t{i == 0 ? FTH_KIND_NPU : i == 3 ? FTH_KIND_CPU : FTH_KIND_GPU});
    EXPECT_EQ((info.flags & FTH_DEVICE_SOFTWARE) != 0, i == 3);
    const std::string description = info.description;
    names.push_back(description.substr(0, description.find(':')));
  }
  EXPECT_THAT(names, testing::ElementsAre("NPU", "GPU.0", "GPU.1", "CPU"));
  EXPECT_EQ(open_plugin(FTH_OPENVINO_PLUGIN, "", 4).error().code, Code::unavailable);
}

// Weights stay in 4 bits where the device compiles them, else they are unpacked to f16, unless somebody asked for the form.
TEST_F(OpenvinoMadeUp, CompressedWhereTheDeviceTakesIt) {
  const Problem p = make("matmul m=1 k=256 n=64 w=q4_0");
  const auto resident = [&](const std::string& options) {
    const auto opened = open_plugin(FTH_OPENVINO_PLUGIN, options);
    if (!opened) return opened.error().message;
    const Result<Problem> got = run_once((*opened)->device(), p);
    EXPECT_EQ(got ? compare(p, *got, run_reference(p), *parse_tolerance("nmse:1e-5")) : got.error().message, "");
    return std::to_string((*opened)->device().estimate(p.segment().segment)->resident_bytes);
  };
  EXPECT_EQ(resident(""), std::to_string(256 * 64 / 32 * 18));
  fault().no_int4 = true;
  EXPECT_EQ(resident(""), std::to_string(256 * 64 * 2));
  EXPECT_THAT(resident("weights=compressed"), HasSubstr("the driver is gone"));
  fault().compile = true;
  EXPECT_THAT(resident(""), AllOf(HasSubstr("NPU cannot compile"), HasSubstr("the driver is gone")));
}

// A kept compilation is found again: the folder is filled by the first device, read by the second.
TEST_F(OpenvinoBackend, CompiledGraphsAreKeptInTheFolderGiven) {
  const std::string folder = testing::TempDir() + "fth_openvino_cache";
  std::filesystem::remove_all(folder);
  use("device=CPU,cache=" + folder);
  EXPECT_EQ("", wrong("matmul m=2 k=256 n=64 w=q4_0"));
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files += entry.is_regular_file();
  EXPECT_GT(files, 0u);
  use("device=CPU,cache=" + folder);
  EXPECT_EQ("", wrong("matmul m=2 k=256 n=64 w=q4_0"));
  size_t files_then = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) files_then += entry.is_regular_file();
  EXPECT_EQ(files, files_then);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace fth::conformance
