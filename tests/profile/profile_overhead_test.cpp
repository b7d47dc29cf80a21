// What recording costs: tokens decoded in turns with and without a recorder. FTH_OVERHEAD_MODEL takes another model than the bundled one, which has the
// shortest tokens and so the highest share.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "core/engine/engine.h"

namespace fth {
namespace {

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

TEST(ProfileOverhead, RecordingCostsLittle) {
  const char *root = std::getenv("FTH_SOURCE_DIR"), *other = std::getenv("FTH_OVERHEAD_MODEL");
  EngineOptions o;
  o.model = std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
  if (other != nullptr) o.model = other;
  o.cpu_only = true;
  o.n_ctx = 1024;
  o.ubatch = 64;
  auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  const auto recorder = (*engine)->new_recorder();
  auto session = (*engine)->new_session();
  ASSERT_TRUE(session) << session.error().message;
  // The same 32 positions again and again, so that every token has the same work.
  constexpr int kBefore = 32, kTokens = 32;
  const int rounds = other == nullptr ? 120 : 16;
  std::vector<int32_t> ids(kBefore);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 29 % 1000 + 20);
  std::vector<double> seconds[2];
  for (int round = -2; round < rounds; ++round) {
    session->clear();
    ASSERT_TRUE(session->prefill(ids));
    recorder->clear();
    for (int i = 0; i < kTokens; ++i) {
      const int on = (round + i) & 1;  // in turns, and at each position as often with as without
      const size_t before = recorder->engine().events().size();
      (*engine)->set_recorder(on == 1 ? recorder.get() : nullptr);
      const auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE(session->decode(20 + i));
      const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      (*engine)->set_recorder(nullptr);
      ASSERT_EQ(recorder->engine().events().size() > before, on == 1);
      if (round >= 0) seconds[on].push_back(took);
    }
  }
  const double least = *std::min_element(seconds[1].begin(), seconds[1].end()) / *std::min_element(seconds[0].begin(), seconds[0].end());
  const double middle = median(seconds[1]) / median(seconds[0]);
  std::printf("a token recorded takes %.3f of one that is not (least), %.3f (median); %.1f us, %zu tokens each\n", least, middle,
              1e6 * median(seconds[0]), seconds[0].size());
  // 3 % on a quiet machine (docs/profiling.md); this bound holds beside other programs and under a sanitizer too.
  EXPECT_LT(std::min(least, middle), 1.25);
}

}  // namespace
}  // namespace fth
