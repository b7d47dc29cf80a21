// The fuzzer's seeds, and what it has found: each file is a regression test.

#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/model/load.h"
#include "tests/model/touch.h"

namespace fth::test {
namespace {

TEST(Corpus, EveryFileEndsAsItsNameSays) {
  const char* source = std::getenv("FTH_SOURCE_DIR");
  if (source == nullptr) GTEST_SKIP() << "FTH_SOURCE_DIR is not set";
  const std::filesystem::path folder = std::filesystem::path(source) / "tests/fuzz/corpus/gguf";
  int good = 0, bad = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    SCOPED_TRACE(entry.path());
    const auto model = load_model(entry.path());
    if (entry.path().filename().string().starts_with("good-")) {
      ASSERT_TRUE(model) << model.error().message;
      EXPECT_GT(touch(*model), 0u);
      ++good;
    } else {
      ASSERT_FALSE(model);
      EXPECT_FALSE(model.error().message.empty());
      ++bad;
    }
  }
  EXPECT_GE(good, 4);
  EXPECT_GE(bad, 10);
}

}  // namespace
}  // namespace fth::test
