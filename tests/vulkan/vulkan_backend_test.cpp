// The vulkan backend where the conformance cases do not reach: what it refuses and how it says so, its memory, its queue, its options, its files.
// CTest names lavapipe as the only driver; without it every test is skipped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/base/bytes.h"
#include "core/device/elf_file.h"
#include "tests/support/backend_fixture.h"

namespace fth::conformance {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Result<std::unique_ptr<Backend>> open(const std::string& options) { return open_plugin(FTH_VULKAN_PLUGIN, options); }

class VulkanBackend : public BackendTest {
 protected:
  void SetUp() override { use(""); }
  void use(const std::string& options) {
    auto opened = open(options);
    if (!opened && opened.error().code == Code::unavailable) GTEST_SKIP() << opened.error().message;
    ASSERT_TRUE(opened) << opened.error().message;
    backend_ = *std::move(opened);
  }
};

TEST_F(VulkanBackend, IsSoftwareAndSaysWhatItIs) {
  const fth_device_info& i = device().info();
  EXPECT_EQ(device().name(), "vulkan:0");
  EXPECT_EQ(i.flags, uint32_t{FTH_DEVICE_SOFTWARE});
  EXPECT_THAT(i.description, HasSubstr("llvmpipe"));
  EXPECT_GT(i.memory_bytes, kGiB);
  EXPECT_GT(i.free_bytes, 0u);
  EXPECT_LE(i.free_bytes, i.memory_bytes);
  EXPECT_GT(i.bytes_per_second, 0);
}

TEST_F(VulkanBackend, MemoryWorksMappedAndThroughCopies) {
  for (const char* options : {"mapped=on", "mapped=off,validation=on"}) {
    use(options);
    constexpr uint64_t kBytes = 20 * kMiB + 13;  // more than one staging buffer, and no whole word
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
    for (const uint64_t bytes : {uint64_t{1} << 62, UINT64_MAX}) {
      const Error e = device().alloc(bytes).error();
      EXPECT_EQ(e.code, Code::resource_exhausted);
      EXPECT_THAT(e.message, AllOf(HasSubstr("vulkan:0: a buffer of"), HasSubstr("the device allows")));
    }
  }
  char host[16];
  EXPECT_EQ(device().import_host(host, sizeof host).error().code, Code::unimplemented);
}

// A limit on the process's address space stands in for a device that is full: lavapipe lends more than its heap.
TEST_F(VulkanBackend, OutOfMemoryIsSaidAndPasses) {
  if (!own_sanitizer().empty()) GTEST_SKIP() << "a sanitizer's own memory does not fit under a limit";
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  rlimit old{};
  ASSERT_EQ(0, getrlimit(RLIMIT_AS, &old));
  const rlimit tight{pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) + kGiB, old.rlim_max};
  ASSERT_EQ(0, setrlimit(RLIMIT_AS, &tight));
  std::vector<fth::Buffer> held;
  Error e{};
  while (held.size() < 8 && e.message.empty()) {
    auto b = device().alloc(512 * kMiB);
    if (b) {
      held.push_back(*std::move(b));
    } else {
      e = b.error();
    }
  }
  ASSERT_EQ(0, setrlimit(RLIMIT_AS, &old));
  EXPECT_EQ(e.code, Code::resource_exhausted);
  EXPECT_THAT(e.message, AllOf(HasSubstr("a buffer of 512.00 MiB with"), HasSubstr("free"), HasSubstr("vkAllocateMemory")));
  held.clear();
  EXPECT_EQ(wrong("add m=2 e=64"), "");
}

TEST_F(VulkanBackend, RefusalsNameOpAndNumber) {
  const auto refused = [&](const std::string& line) {
    const Error e = estimate_error(make(line));
    EXPECT_EQ(e.code, Code::unimplemented) << line;
    return e.message;
  };
  EXPECT_THAT(refused("experts m=1 e=32 f=32 slots=2 k=1 w=f32"), AllOf(HasSubstr("op 0 (experts)"), HasSubstr("cpu")));
  EXPECT_THAT(refused("attention m=1 h=1 g=1 d=258 state=f32"), HasSubstr("heads of 258: at most 256"));
  EXPECT_THAT(refused("attention m=1 h=2 g=2 d=3 state=f16"), HasSubstr("heads of 3"));
  EXPECT_THAT(refused("attention m=1 h=2 g=2 d=32 state=bf16"), HasSubstr("a cache of bf16"));
  Problem p = make("matmul m=1 k=64 n=8 w=f32");
  p.tensors[1].desc.dims[0] = p.tensors[2].desc.dims[1] = int64_t{1} << 26;  // 16 GiB of weights, of which nothing is read
  EXPECT_THAT(estimate_error(p).message, HasSubstr("has 16.00 GiB, at most"));
  p = make("rope m=1 h=1 d=8");
  for (const auto& [attr, value] :
       {std::pair{0, 0.0}, {1, -1.0}, {2, 0.0}, {3, 3.0}, {3, 10.0}, {4, 2.0}, {5, 1.0 / 0.0}, {2, 0.0 / 0.0}}) {
    Problem q = p;
    q.ops[0].attr[attr] = value;
    EXPECT_EQ(estimate_error(q).code, Code::invalid_argument) << attr << " " << value;
  }
}

TEST_F(VulkanBackend, RopeFactorOfZeroIsRefused) {
  Problem p = make("rope m=1 h=1 d=8 factors=1");
  for (Tensor& t : p.tensors)
    if (t.name == "factors") std::memset(t.data.data(), 0, 4);
  const Error e = run_error(p);
  EXPECT_EQ(e.code, Code::invalid_argument);
  EXPECT_THAT(e.message, HasSubstr("pair 0"));
}

TEST_F(VulkanBackend, SubmitChecksScalars) {
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
  p = make("rope m=1 h=1 d=8");
  for (const int64_t pos : {int64_t{1} << 31, INT64_MAX}) {
    p.scalars[FTH_SCALAR_POS] = pos;
    EXPECT_EQ(run_error(p).code, Code::out_of_range) << pos;
  }
}

TEST_F(VulkanBackend, AnIdOutsideOfTheTableIsReported) {
  for (const int32_t id : {100, -1, INT32_MAX, INT32_MIN}) {
    Problem p = make("embed m=3 v=100 e=32 w=q4_0");
    std::memcpy(p.tensors[0].data.data() + 4, &id, sizeof id);
    const Error e = run_error(p);
    EXPECT_EQ(e.code, Code::out_of_range) << id;
    EXPECT_THAT(e.message, HasSubstr("row 1"));
  }
  EXPECT_EQ(run_error(make("embed m=3 v=100 e=32 w=q4_0")).message, "no error");
}

TEST_F(VulkanBackend, SubmitChecksBindings) {
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
TEST_F(VulkanBackend, SubmitsRunInOrder) {
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

TEST_F(VulkanBackend, RunsAreTimedByTheDevice) { expect_clock(device()); }

TEST_F(VulkanBackend, OptionsAreChecked) {
  EXPECT_THAT(open("color=red").error().message, AllOf(HasSubstr("'color'"), HasSubstr("subgroups")));
  EXPECT_THAT(open("subgroups=maybe").error().message, HasSubstr("need on or off"));
  EXPECT_THAT(open("bytes_per_second=-1").error().message, HasSubstr("a number above 0"));
  use("bytes_per_second=1e9,flops_per_second=2e9");
  EXPECT_EQ(device().info().bytes_per_second, 1e9);
  EXPECT_EQ(device().info().flops_per_second, 2e9);
  use("measure=on");
  EXPECT_GT(device().info().bytes_per_second, 0);
  EXPECT_GT(device().info().launch_seconds, 0);
  EXPECT_EQ(wrong("rms_norm m=1 e=64"), "");
}

TEST_F(VulkanBackend, APipelineCacheIsWrittenAndABadOneReplaced) {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() / ("fth_vulkan_" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  const std::string file = (folder / "pipelines").string();
  std::ofstream(file) << std::string(1000, 'x');
  for (int i = 0; i < 2; ++i) {
    use("pipeline_cache=" + file);
    EXPECT_EQ(wrong("glu m=2 f=64"), "");
    backend_.reset();
    std::ifstream in(file, std::ios::binary);
    uint32_t head[2] = {};
    in.read(reinterpret_cast<char*>(head), sizeof head);
    EXPECT_GE(head[0], 32u);  // the header's size, then its version
    EXPECT_EQ(head[1], 1u);
  }
  use("pipeline_cache=" + (folder / "no" / "such" / "folder").string());
  EXPECT_EQ(wrong("glu m=2 f=64"), "");
  backend_.reset();
  std::filesystem::remove_all(folder);
}

// On a driver that has no cooperative matrices; VulkanCoop is on one that has.
TEST_F(VulkanBackend, CooperativeMatricesAreAskedForByName) {
  EXPECT_THAT(open("coopmat=maybe").error().message, HasSubstr("need auto, on or off"));
  EXPECT_THAT(device().info().description, HasSubstr("no cooperative matrices: "));
  use("coopmat=off");
  EXPECT_THAT(device().info().description, HasSubstr("no cooperative matrices: coopmat=off"));
  const auto on = open("coopmat=on");
  if (on) GTEST_SKIP() << "this driver has them";
  EXPECT_EQ(on.error().code, Code::unimplemented);
  EXPECT_THAT(on.error().message, AllOf(HasSubstr("vulkan:0 (llvmpipe"), HasSubstr("coopmat=on: ")));
}

class VulkanCoop : public VulkanBackend {
  void SetUp() override {
    const auto on = open("coopmat=on");
    if (!on && (on.error().code == Code::unavailable || on.error().code == Code::unimplemented)) GTEST_SKIP() << on.error().message;
    ASSERT_TRUE(on) << on.error().message;
  }
};

TEST_F(VulkanCoop, OnUsesThemForSeveralTokens) {
  use("coopmat=on");
  EXPECT_THAT(device().info().description, HasSubstr("; cooperative matrices "));
  const std::string several = "matmul m=20 k=256 n=40 w=q4_0", one = "matmul m=1 k=256 n=40 w=q4_0";
  EXPECT_EQ(wrong(one), "");
  EXPECT_NE(wrong(several), "") << "f32 products come out of the tiles of f16";
  const Problem p = make(several);
  const Result<Problem> got = run_once(device(), p);
  ASSERT_TRUE(got);
  EXPECT_EQ(compare(p, *got, run_reference(p), *parse_tolerance("nmse:3e-7")), "");
  // A place for x in f16, and a scale for each row of the weight.
  const Problem::Segment s = p.segment();
  const auto estimate = device().estimate(s.segment);
  ASSERT_TRUE(estimate);
  EXPECT_GE(estimate->workspace_bytes, 20u * 256 * 2);
  EXPECT_GE(estimate->resident_bytes, 40u * 4);
}

TEST_F(VulkanCoop, NeedSubgroups) {
  const auto on = open("coopmat=on,subgroups=off");
  ASSERT_FALSE(on);
  EXPECT_EQ(on.error().code, Code::unimplemented);
  EXPECT_THAT(on.error().message, HasSubstr("subgroups"));
}

TEST_F(VulkanCoop, AutoLeavesSoftwareAlone) {
  use("");
  EXPECT_THAT(device().info().description, HasSubstr("no cooperative matrices: off on software"));
  EXPECT_EQ(wrong("matmul m=20 k=256 n=40 w=q4_0"), "");
}

// The trial of every type, and whichever is faster.
TEST_F(VulkanCoop, AutoTriesThemWhereDevicesAreTimed) {
  use("measure=on");
  const std::string description = device().info().description;
  EXPECT_THAT(description, testing::AnyOf(HasSubstr("; cooperative matrices "), HasSubstr("no cooperative matrices: slower")));
}

}  // namespace
}  // namespace fth::conformance
