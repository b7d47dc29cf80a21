// The CPU stands in for a device that compiles, step for step, and hands over (EngineOptions::start_on_cpu). Both sides are the cpu backend: the same bits
// wherever a step ran.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <thread>

#include "core/engine/engine.h"

namespace fth {
namespace {

using testing::HasSubstr;

std::filesystem::path from_env(const char* variable, const char* rest) {
  const char* root = std::getenv(variable);
  return std::filesystem::path(root == nullptr ? "." : root) / rest;
}

struct Lines {
  std::mutex mutex;
  std::string all;
  static void add(void* self, int32_t, const char* message) {
    auto& lines = *static_cast<Lines*>(self);
    const std::lock_guard lock(lines.mutex);
    lines.all += std::string(message) + '\n';
  }
};

EngineOptions options(Lines* log) {
  EngineOptions o;
  o.model = from_env("FTH_SOURCE_DIR", "tools/tiny_model/tiny-smallthinker-q4_0.gguf");
  o.registry.n_threads = 2;
  o.n_ctx = 512;
  if (log == nullptr) {
    o.cpu_only = true;
    return o;
  }
  o.registry.plugin_paths = {FTH_SLOW_PLUGIN};
  o.registry.log = Lines::add;
  o.registry.log_self = log;
  o.device = "slow:0";
  o.start_on_cpu = StartOnCpu::on;
  return o;
}

uint64_t runs(const Session& session, const std::string& device, const std::string& kind) {
  const Stats stats = session.stats();  // kept: the loop refers into it
  for (const SegmentTime& t : stats.segments)
    if (t.device == device && t.kind == kind) return t.count;
  return 0;
}

bool same_bits(std::span<const float> a, std::span<const float> b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

TEST(StartOnCpu, MovesOverBetweenStepsAndKeepsTheBits) {
  Lines log;
  const auto plain = Engine::open(options(nullptr)), moving = Engine::open(options(&log));
  ASSERT_TRUE(plain) << plain.error().message;
  ASSERT_TRUE(moving) << moving.error().message;
  auto wanted = (*plain)->new_session(), got = (*moving)->new_session();
  ASSERT_TRUE(wanted);
  ASSERT_TRUE(got) << got.error().message;
  const std::vector<int32_t> prompt =
      (*plain)->tokenizer().encode("Translate to German: The old teacher buys a red car.", SpecialTokens::parse);
  auto a = (*wanted).prefill(prompt), b = (*got).prefill(prompt);
  ASSERT_TRUE(a);
  ASSERT_TRUE(b) << b.error().message;
  EXPECT_TRUE(same_bits(*a, *b));
  // The prompt's bucket cannot have been compiled before the prompt was there.
  EXPECT_EQ(runs(*got, "slow:0", "attention"), 0u);
  EXPECT_GT(runs(*got, "cpu", "attention"), 0u);

  int after = 0;
  for (int i = 0; i < 400 && after < 5; ++i) {
    const auto id = static_cast<int32_t>(std::max_element(a->begin(), a->end()) - a->begin());
    a = (*wanted).decode(id), b = (*got).decode(id);
    ASSERT_TRUE(a);
    ASSERT_TRUE(b) << b.error().message;
    ASSERT_TRUE(same_bits(*a, *b)) << "token " << i;
    if (runs(*got, "slow:0", "attention") > 0) ++after;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_EQ(after, 5);
  const uint64_t layers = static_cast<uint64_t>((*moving)->model().config.n_layer);
  EXPECT_EQ(runs(*got, "slow:0", "attention") % (layers - 1), 0u);  // all but the one that it cannot compile
  const std::lock_guard lock(log.mutex);
  EXPECT_THAT(log.all, HasSubstr("slow:0: compile layer.5.attention.t1: slow: no room for it; it stays on the CPU"));
  EXPECT_THAT(log.all, HasSubstr("they run there from now on"));
}

// Sessions come and go, and the engine itself goes, while the worker is at work.
TEST(StartOnCpu, SessionsAndEngineMayEndMeanwhile) {
  Lines log;
  const auto engine = Engine::open(options(&log));
  ASSERT_TRUE(engine) << engine.error().message;
  const std::vector<int32_t> prompt = {1, 2, 3};
  for (int i = 0; i < 3; ++i) {
    auto session = (*engine)->new_session();
    ASSERT_TRUE(session) << session.error().message;
    const auto logits = session->prefill(prompt);
    ASSERT_TRUE(logits) << logits.error().message;
  }
}

TEST(StartOnCpu, WithoutItADeviceThatCannotCompileLosesItsWork) {
  Lines log;
  EngineOptions o = options(&log);
  o.start_on_cpu = StartOnCpu::off;
  const auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  const auto on_slow = [](const Placement& p) { return p.device != 0; };
  EXPECT_THAT((*engine)->expert_choice().note, HasSubstr("experts stay on the CPU, timing them failed: slow:0"));
  const auto& placements = (*engine)->plan().placements;
  EXPECT_TRUE(std::none_of(placements.begin(), placements.end(), on_slow));
  const std::lock_guard lock(log.mutex);
  EXPECT_THAT(log.all, HasSubstr("layer.5.attention.t1: slow: no room for it"));
  EXPECT_THAT(log.all, HasSubstr("slow: experts are beyond it"));
  EXPECT_THAT(log.all, HasSubstr("run on cpu from here on"));
}

bool starts(const EngineOptions& o) {
  const auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return false;
  const auto& notes = (*engine)->plan().notes;
  return std::any_of(notes.begin(), notes.end(), [](const std::string& n) { return n.find("cpu begins while slow:0 compiles") != n.npos; });
}

TEST(StartOnCpu, ByItselfForAnNpuAndForWhatIsKnownToBeSlow) {
  Lines log;
  EngineOptions o = options(&log);
  o.start_on_cpu = StartOnCpu::automatic;
  o.plan_only = true;
  std::vector<std::string> asked;
  double took = 0;
  o.compile_times.load = [&](const std::string& key) {
    asked.push_back(key);
    return took > 0 ? std::vector<double>{took} : std::vector<double>();
  };
  const auto with = [&](const char* kind) { o.registry.device_options = {{"slow", 0, kind, true}}; };
  with("kind=npu");
  EXPECT_TRUE(starts(o));
  EXPECT_TRUE(asked.empty());  // nobody has to know how slow an NPU is
  with("kind=gpu");
  EXPECT_FALSE(starts(o));
  took = 0.9 * kSlowCompile;
  EXPECT_FALSE(starts(o));
  took = 1.1 * kSlowCompile;
  EXPECT_TRUE(starts(o));
  ASSERT_FALSE(asked.empty());
  EXPECT_THAT(asked.back(), HasSubstr("compile on slow:0"));
  o.start_on_cpu = StartOnCpu::off;
  EXPECT_FALSE(starts(o));
  // A CPU device compiles on the cores that would stand in for it.
  o.start_on_cpu = StartOnCpu::automatic;
  o.registry.device_options.clear();
  EXPECT_FALSE(starts(o));
}

// What compiling took is kept for the next start, whether somebody waited for it or not.
TEST(StartOnCpu, KeepsWhatCompilingTook) {
  for (const StartOnCpu how : {StartOnCpu::off, StartOnCpu::automatic}) {
    Lines log;
    EngineOptions o = options(&log);
    o.start_on_cpu = how;
    o.registry.device_options = {{"slow", 0, "kind=npu", true}};
    std::vector<double> kept;
    o.compile_times.store = [&](const std::string&, std::span<const double> seconds) { kept.assign(seconds.begin(), seconds.end()); };
    const auto engine = Engine::open(o);
    ASSERT_TRUE(engine) << engine.error().message;
    auto session = (*engine)->new_session();
    ASSERT_TRUE(session);
    ASSERT_TRUE(session->prefill(std::vector<int32_t>{1, 2, 3}));
    for (int i = 0; i < 400 && kept.empty(); ++i) {
      ASSERT_TRUE(session->decode(4));
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    ASSERT_EQ(kept.size(), 1u);
    EXPECT_GT(kept[0], 0.1);  // 20 ms for each of the layers
    EXPECT_LT(kept[0], 60);
  }
}

// A short run does not wait for what nobody will use.
TEST(StartOnCpu, TheEndWaitsForOneCompilationAtMost) {
  Lines log;
  EngineOptions o = options(&log);
  o.registry.device_options = {{"slow", 0, "kind=npu,compile_ms=400", true}};
  std::chrono::steady_clock::time_point begin;
  {
    const auto engine = Engine::open(o);
    ASSERT_TRUE(engine) << engine.error().message;
    EXPECT_GE((*engine)->model().config.n_layer, 8);
    begin = std::chrono::steady_clock::now();
  }
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), 2.5);  // all of them take more than 3 s
}

}  // namespace
}  // namespace fth
