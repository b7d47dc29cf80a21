// The template backend, loaded as a plugin. argv[1], if given, is the file to load instead of the tree's own (the out-of-tree test gives it).

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/device/elf_file.h"
#include "core/device/registry.h"
#include "tests/device/segment_maker.h"

namespace fth {

std::span<const fth_backend_query_fn> builtin_backends() { return {}; }

namespace {

using ::testing::HasSubstr;
std::string g_plugin = FTH_NULL_PLUGIN;

class NullBackend : public ::testing::Test {
 protected:
  void SetUp() override {
    RegistryOptions options;
    options.n_threads = 1;
    options.plugin_paths = {g_plugin};
    auto r = Registry::open(options);
    ASSERT_TRUE(r) << r.error().message;
    registry_ = *std::move(r);
    ASSERT_EQ(registry_->backends()[0].path, g_plugin);
    ASSERT_TRUE(registry_->find("null:0"));
    device_ = &registry_->devices()[*registry_->find("null:0")].device;
  }
  std::unique_ptr<Registry> registry_;
  Device* device_ = nullptr;
};

TEST_F(NullBackend, MemoryWorks) {
  const auto b = device_->alloc(16);
  ASSERT_TRUE(b);
  ASSERT_TRUE(b->write(4, "ab", 2));
  char text[3] = {};
  ASSERT_TRUE(b->read(4, text, 2));
  EXPECT_STREQ(text, "ab");
  EXPECT_EQ(b->read(15, text, 2).error().code, Code::out_of_range);
  EXPECT_EQ(b->read(UINT64_MAX, text, 2).error().code, Code::out_of_range);
  char host[8] = {};
  const auto imported = device_->import_host(host, sizeof host);
  ASSERT_TRUE(imported);
  ASSERT_TRUE(imported->write(0, "xyz", 3));
  EXPECT_STREQ(host, "xyz");
  if (own_sanitizer().empty()) {  // a sanitizer's allocator ends the process instead
    for (const uint64_t bytes : {uint64_t{1} << 62, UINT64_MAX}) EXPECT_EQ(device_->alloc(bytes).error().code, Code::resource_exhausted);
  }
  EXPECT_TRUE(device_->alloc(0));
}

TEST_F(NullBackend, RefusesEveryOpByNameAndNumber) {
  for (uint16_t kind = 1; kind < FTH_OP_KIND_END; ++kind) {
    test::TestSegment s = test::TestSegment::add(3, 7);
    s.ops[0].kind = kind;
    const fth_segment raw = s.view();
    const auto e = device_->estimate(raw);
    ASSERT_FALSE(e);
    EXPECT_EQ(e.error().code, Code::unimplemented);
    EXPECT_THAT(e.error().message, HasSubstr("test.add: op 0 ("));
    EXPECT_THAT(e.error().message, HasSubstr("to tensor 2 f32 [3, 7]: null runs no op"));
    EXPECT_EQ(device_->compile(raw, {}).error().code, Code::unimplemented);
  }
}

TEST_F(NullBackend, IsListedAndNotChosen) {
  EXPECT_THAT(registry_->devices()[*registry_->find("null:0")].refusal, HasSubstr("listed, not chosen"));
  EXPECT_THAT(registry_->backends()[0].build, HasSubstr("forethought "));
}

}  // namespace
}  // namespace fth

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc > 1) fth::g_plugin = argv[1];
  return RUN_ALL_TESTS();
}
