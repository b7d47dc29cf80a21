// The vulkan backend where the conformance cases do not reach: the contract of a device (tests/support/device_contract.h), a full device, its options, its files.
// CTest names lavapipe as the only driver; without it every test is skipped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/base/bytes.h"
#include "core/device/elf_file.h"
#include "tests/support/device_contract.h"

namespace fth::conformance {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class VulkanBackend : public BackendTest {
 protected:
  static constexpr std::array kMemories{"mapped=on", "mapped=off,validation=on"};
  static constexpr uint64_t kAlignment = 16;
  static constexpr int64_t kTooManyRows = int64_t{1} << 26;
  static constexpr const char* kTooLarge = "16.00 GiB";

  static Result<std::unique_ptr<Backend>> open(const std::string& options) { return open_plugin(FTH_VULKAN_PLUGIN, options); }
  void SetUp() override { use(""); }
  void use(const std::string& options) {
    auto opened = open(options);
    if (!opened && opened.error().code == Code::unavailable) GTEST_SKIP() << opened.error().message;
    ASSERT_TRUE(opened) << opened.error().message;
    backend_ = *std::move(opened);
  }
};

INSTANTIATE_TYPED_TEST_SUITE_P(Vulkan, DeviceContract, VulkanBackend);

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

TEST_F(VulkanBackend, WhatItCannotIndexIsRefused) {
  EXPECT_THAT(estimate_error(make("attention m=1 h=2 g=2 d=3 state=f16")).message, HasSubstr("heads of 3"));
  Problem p = make("rope m=1 h=1 d=8");
  for (const int64_t pos : {int64_t{1} << 31, INT64_MAX}) {
    p.scalars[FTH_SCALAR_POS] = pos;
    EXPECT_EQ(run_error(p).code, Code::out_of_range) << pos;
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

TEST_F(VulkanBackend, OptionsAreChecked) {
  EXPECT_THAT(open("color=red").error().message, AllOf(HasSubstr("'color'"), HasSubstr("subgroups")));
  EXPECT_THAT(open("subgroups=maybe").error().message, HasSubstr("need on or off"));
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
