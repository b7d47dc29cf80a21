// The vulkan backend on a driver that fails (driver.h): each error is typed and named, nothing is left behind, and the next try succeeds.
// On lavapipe; without it every test is skipped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "backends/vulkan/api.h"
#include "core/base/bytes.h"
#include "tests/support/backend_fixture.h"
#include "tests/vulkan/driver.h"

namespace fth::conformance {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using vulkan_test::fault;
using vulkan_test::live_objects;

constexpr const char* kSegment = "attention_block m=2 bucket=8 e=64 h=2 g=1 d=32 pos=3 w=q4_0";

class VulkanFaults : public BackendTest {
 protected:
  void SetUp() override { use(""); }
  // Every object that the test made the driver make is gone with the device.
  void TearDown() override {
    fault() = {};
    backend_.reset();
    EXPECT_EQ(live_objects(), 0);
  }
  void use(const std::string& options) {
    backend_.reset();
    auto opened = open_plugin(FTH_VULKAN_PLUGIN, options);
    if (!opened && opened.error().code == Code::unavailable) GTEST_SKIP() << opened.error().message;
    ASSERT_TRUE(opened) << opened.error().message;
    backend_ = *std::move(opened);
    ASSERT_GT(live_objects(), 0) << "the plugin does not go through the tests' driver";
  }
};

TEST_F(VulkanFaults, ADeviceThatIsLostIsUnavailable) {
  for (const auto& [call, result, word] : {std::tuple{"vkQueueSubmit", VK_ERROR_DEVICE_LOST, "device lost"},
                                           {"vkWaitSemaphores", VK_ERROR_DEVICE_LOST, "device lost"},
                                           {"vkWaitSemaphores", VK_TIMEOUT, "timeout"}}) {
    auto prepared = Prepared::make(device(), make(kSegment));
    ASSERT_TRUE(prepared);
    fault() = {call, 0, result};
    const Result<> ran = prepared->run();
    ASSERT_FALSE(ran) << call;
    EXPECT_EQ(ran.error().code, Code::unavailable) << ran.error().message;
    EXPECT_THAT(ran.error().message, AllOf(HasSubstr("vulkan:0"), HasSubstr(word)));
    EXPECT_TRUE(prepared->run());
  }
}

TEST_F(VulkanFaults, OutOfMemoryIsSaid) {
  for (const auto& [call, result] : {std::pair{"vkAllocateMemory", VK_ERROR_OUT_OF_DEVICE_MEMORY},
                                     {"vkAllocateMemory", VK_ERROR_OUT_OF_HOST_MEMORY},
                                     {"vkAllocateMemory", VK_ERROR_TOO_MANY_OBJECTS},
                                     {"vkCreateBuffer", VK_ERROR_OUT_OF_DEVICE_MEMORY}}) {
    fault() = {call, 0, result};
    const auto b = device().alloc(64 * kMiB);
    ASSERT_FALSE(b) << call;
    EXPECT_EQ(b.error().code, Code::resource_exhausted) << b.error().message;
    EXPECT_THAT(b.error().message, AnyOf(HasSubstr("64.00 MiB"), HasSubstr(call)));
    EXPECT_TRUE(device().alloc(64 * kMiB));
  }
}

// The n-th call of all that can fail, from opening a device to reading what a segment wrote, for every n: out of memory, and lost.
TEST_F(VulkanFaults, AnyCallMayFailOnce) {
  const Problem p = make(kSegment);
  for (const char* options : {"mapped=on", "mapped=off"}) {
    for (const int result : {VK_ERROR_OUT_OF_DEVICE_MEMORY, VK_ERROR_DEVICE_LOST}) {
      backend_.reset();
      ASSERT_EQ(live_objects(), 0);
      int failed = 0;
      for (int after = 0; after < 2000; ++after) {
        fault() = {"*", after, result};
        const auto whole = [&]() -> Result<> {
          FTH_ASSIGN_OR_RETURN(const auto backend, open_plugin(FTH_VULKAN_PLUGIN, options));
          FTH_ASSIGN_OR_RETURN(const Problem got, run_once(backend->device(), p));
          if (const std::string why = compare(p, got, run_reference(p), *parse_tolerance("nmse:1e-5")); !why.empty())
            return fail(Code::data_loss, why);
          return {};
        };
        const Result<> done = whole();
        ASSERT_EQ(live_objects(), 0) << options << ' ' << after << ": " << (done ? "" : done.error().message);
        const bool met = fault().call.empty();
        fault() = {};
        if (!met) {
          EXPECT_TRUE(done) << done.error().message;
          break;
        }
        failed += !done;
        if (!done) {
          EXPECT_EQ(done.error().code, result == VK_ERROR_DEVICE_LOST ? Code::unavailable : Code::resource_exhausted)
              << done.error().message;
        }
      }
      EXPECT_GT(failed, 30) << options;
      EXPECT_LT(failed, 2000) << options;
    }
  }
}

}  // namespace
}  // namespace fth::conformance
