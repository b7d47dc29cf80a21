// Two steps of a prompt at once: a device's attention of one beside the CPU's experts of the other. The device is the cpu backend on a thread of its own
// (beside_backend.cpp), so the bits have to be the CPU's; it says itself when it worked.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "core/base/bytes.h"
#include "core/device/elf_file.h"
#include "core/engine/engine.h"
#include "core/profile/statistics.h"
#include "core/profile/tracks.h"

namespace fth {
namespace {

using testing::HasSubstr;

std::filesystem::path tiny() {
  const char* root = std::getenv("FTH_SOURCE_DIR");
  return std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
}

EngineOptions options(bool beside, const char* speed = "row_us=20") {
  EngineOptions o;
  o.model = tiny();
  o.registry.n_threads = 2;
  o.n_ctx = 512;
  o.ubatch = 32;
  o.cpu_only = !beside;
  if (!beside) return o;
  o.registry.named_only = true;
  o.registry.plugin_paths = {FTH_BESIDE_PLUGIN};
  o.registry.device_options = {{"beside", std::nullopt, speed, true}};
  o.rules = {{"layer.*.attention", "beside:0"}};
  return o;
}

std::vector<int32_t> ids(size_t n) {
  std::vector<int32_t> out(n);
  for (size_t i = 0; i < n; ++i) out[i] = static_cast<int32_t>((i * 37 + i * i * 11) % 2000 + 20);
  return out;
}

struct Outcome {
  std::vector<float> logits;  // after the prompt, then after each of three decoded tokens
  Plan plan;
  int64_t beside_experts_ns = 0;  // that the device and the CPU's experts ran at once
  int64_t device_ns = 0, prompt_ns = 0;
  Stats stats;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Recorder> recorder;
};

std::vector<std::array<int64_t, 2>> device_runs() {
  void* const plugin = ::dlopen(FTH_BESIDE_PLUGIN, RTLD_NOW | RTLD_NOLOAD);
  if (plugin == nullptr) return {};
  const auto runs = reinterpret_cast<size_t (*)(int64_t(*)[2], size_t)>(::dlsym(plugin, "beside_runs"));
  std::vector<std::array<int64_t, 2>> out(20000);
  out.resize(std::min(out.size(), runs(reinterpret_cast<int64_t(*)[2]>(out.data()), out.size())));
  ::dlclose(plugin);
  return out;
}

Outcome outcome_of(const EngineOptions& o, size_t n_prompt) {
  Outcome out;
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return out;
  out.engine = std::move(*engine);
  out.plan = out.engine->plan();
  out.recorder = out.engine->new_recorder();
  auto session = out.engine->new_session();
  EXPECT_TRUE(session) << session.error().message;
  if (!session) return out;
  EXPECT_TRUE(session->prefill(ids(n_prompt)));  // compiles
  session->clear();
  session->reset_stats();
  (void)device_runs();
  out.engine->set_recorder(out.recorder.get());
  auto logits = session->prefill(ids(n_prompt));
  const auto runs = device_runs();
  for (int i = 0;; ++i) {
    EXPECT_TRUE(logits) << logits.error().message;
    if (!logits) return out;
    out.logits.insert(out.logits.end(), logits->begin(), logits->end());
    if (i == 3) break;
    logits = session->decode(100 + i);
  }
  out.engine->set_recorder(nullptr);
  out.stats = session->stats();
  for (const auto& run : runs) {
    out.device_ns += run[1] - run[0];
    for (const Event& e : out.recorder->engine().events())
      if (e.kind == EventKind::segment && e.device == 0 && std::string_view(e.name) == "experts")
        out.beside_experts_ns += std::max<int64_t>(0, std::min(run[1], e.end_ns) - std::max(run[0], e.begin_ns));
  }
  out.prompt_ns = static_cast<int64_t>(1e9 * out.stats.prompt_seconds);
  return out;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

TEST(Overlap, AttentionAndExpertsOfTwoStepsRunAtOnceWithTheSameBits) {
  const Outcome cpu = outcome_of(options(false), 150);
  EXPECT_FALSE(cpu.plan.overlap);
  EngineOptions apart = options(true);
  apart.overlap = false;
  const Outcome turns = outcome_of(apart, 150), both = outcome_of(options(true), 150);  // 32, 32, 32, 32 and 22
  EXPECT_FALSE(turns.plan.overlap);
  EXPECT_TRUE(both.plan.overlap);
  ASSERT_FALSE(cpu.logits.empty());
  EXPECT_TRUE(same_bits(cpu.logits, turns.logits));
  EXPECT_TRUE(same_bits(cpu.logits, both.logits));
  EXPECT_EQ(turns.beside_experts_ns, 0);
  EXPECT_GT(both.beside_experts_ns, 0);
}

TEST(Overlap, WhatTheDeviceTakesIsHiddenBehindTheExperts) {
  EngineOptions apart = options(true, "launch_us=2000");
  apart.overlap = false;
  // A run takes 2 ms, and this model's experts less: four steps of 8 layers are 64 ms of attention either way, and the experts are nearly free.
  const Outcome turns = outcome_of(apart, 128), both = outcome_of(options(true, "launch_us=2000"), 128);
  EXPECT_GE(turns.device_ns, 4 * 8 * 2'000'000);
  EXPECT_GE(both.device_ns, 4 * 8 * 2'000'000);
  const auto& segments = both.stats.segments;
  const auto experts = std::find_if(segments.begin(), segments.end(), [](const SegmentTime& t) { return t.kind == "experts"; });
  ASSERT_NE(experts, segments.end());
  EXPECT_GT(static_cast<double>(both.beside_experts_ns), 0.3e9 * experts->seconds);
}

TEST(Overlap, TheRecordShowsBothTracks) {
  const Outcome both = outcome_of(options(true), 64);
  bool crossed = false;
  for (const Track& t : make_tracks(*both.recorder)) {
    if (t.kind != TrackKind::device) continue;
    for (const Event& e : t.events)
      for (const Event& on_cpu : both.recorder->engine().events())
        crossed |=
            e.kind == EventKind::beside && on_cpu.kind == EventKind::segment && on_cpu.begin_ns > e.begin_ns && on_cpu.end_ns < e.end_ns;
  }
  EXPECT_TRUE(crossed);
  bool attention = false;
  for (const SegmentRow& row : segment_rows(*both.recorder))
    attention |= row.name == "attention" && row.bucket == 32 && row.time.count == 2 * 8;
  EXPECT_TRUE(attention) << "runs that were left running are rows, too";
  EXPECT_EQ(step_row(*both.recorder, Phase::prefill).tokens, 64);
  // Time by segment adds up to no more than the prompt and the tokens took: what ran at once is not counted twice.
  double sum = 0;
  for (const SegmentTime& t : both.stats.segments) sum += t.seconds;
  EXPECT_LE(sum, both.stats.prompt_seconds + both.stats.decode_seconds);
}

TEST(Overlap, StreamedExpertsKeepTheirBits) {
  const Outcome cpu = outcome_of(options(false), 150);
  for (const int64_t slots : {32, 40, 100}) {  // 16 experts a layer
    EngineOptions o = options(true);
    o.experts = ExpertPlacement::streamed;
    o.stream.slots = slots;
    const Outcome both = outcome_of(o, 150);
    EXPECT_TRUE(both.plan.overlap) << slots;
    EXPECT_TRUE(same_bits(cpu.logits, both.logits)) << slots;
    EXPECT_GT(both.beside_experts_ns, 0) << slots;
  }
}

TEST(Overlap, FewerSlotsThanTwoLayersTakeTurnsAndSaySo) {
  EngineOptions o = options(true);
  o.experts = ExpertPlacement::streamed;
  o.stream.slots = 31;
  const Outcome turns = outcome_of(o, 100);
  EXPECT_FALSE(turns.plan.overlap);
  EXPECT_EQ(turns.beside_experts_ns, 0);
  EXPECT_THAT(turns.plan.notes, testing::Contains(HasSubstr("31 expert slots do not hold two layers' experts (32)")));
}

TEST(Overlap, TheSecondActivationsAreInTheBudgetOrThereAreNone) {
  if (!own_sanitizer().empty()) GTEST_SKIP() << "a sanitizer's own memory grows from plan to plan";
  EngineOptions o = options(true);
  o.plan_only = true;
  o.n_ctx = 1024;
  o.ubatch = 512;
  o.experts = ExpertPlacement::resident;
  const auto roomy = Engine::open(o);
  ASSERT_TRUE(roomy) << roomy.error().message;
  const Plan& plan = (*roomy)->plan();
  ASSERT_TRUE(plan.overlap);
  const auto second =
      std::find_if(plan.arenas.begin(), plan.arenas.end(), [](const Arena& a) { return a.name == "activations of a second step"; });
  ASSERT_NE(second, plan.arenas.end());
  ASSERT_GT(second->bytes, 3 * kMiB);
  o.overlap = false;
  const auto without = Engine::open(o);
  ASSERT_TRUE(without) << without.error().message;
  EXPECT_FALSE((*without)->plan().overlap);
  o.overlap = true;
  o.ram_budget = (*without)->plan().ram_bytes + second->bytes / 2;  // this program itself grows a little meanwhile
  const auto tight = Engine::open(o);
  ASSERT_TRUE(tight) << tight.error().message;
  EXPECT_FALSE((*tight)->plan().overlap);
  EXPECT_THAT((*tight)->plan().notes, testing::Contains(HasSubstr("a second set of activations")));
}

// Whichever run of a pair fails, another one being under way or not: the CPU takes over and the text is the same.
TEST(Overlap, ADeviceThatIsLostInAPair) {
  const Outcome cpu = outcome_of(options(false), 150);
  for (const int n : {1, 2, 3, 16, 17, 33, 40}) {  // of the prompt that is read to compile; 8 layers
    const Outcome lost = outcome_of(options(true, ("fail_run=" + std::to_string(n)).c_str()), 150);
    EXPECT_TRUE(same_bits(cpu.logits, lost.logits)) << n;
    EXPECT_THAT(lost.engine->plan().notes, testing::Contains(HasSubstr("beside:0 failed: ")));
  }
}

TEST(Overlap, APromptOfOneStepIsOne) {
  const Outcome one = outcome_of(options(true), 32);
  EXPECT_EQ(one.beside_experts_ns, 0);
}

TEST(Overlap, ValuesThatAreLookedAtComeInOrder) {
  auto engine = Engine::open(options(true));
  ASSERT_TRUE(engine);
  auto session = (*engine)->new_session();
  ASSERT_TRUE(session);
  int64_t last = -1;
  session->set_inspect([&](std::string_view, int64_t first, int64_t, int64_t, const float*) {
    EXPECT_GE(first, last);
    last = first;
  });
  EXPECT_TRUE(session->prefill(ids(100)));
  EXPECT_EQ(last, 96 + 3);  // the head's only row
}

}  // namespace
}  // namespace fth
