// Experts on different devices by bucket: what decides, what is kept, and that the session's numbers stay the model's.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "core/engine/engine.h"
#include "core/model/pack.h"
#include "tests/model/files.h"

namespace fth {
namespace {

using testing::HasSubstr;

EngineOptions options() {
  const char* const root = std::getenv("FTH_SOURCE_DIR");
  EngineOptions o;
  o.model = std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
  o.registry.n_threads = 2;
  o.registry.plugin_paths = {FTH_ONEDNN_PLUGIN};
  o.n_ctx = 256;
  o.ubatch = 32;
  return o;
}

// Times under which onednn is the quicker one from 8 rows on: buckets of 32 tokens and more of this model.
std::vector<double> onednn_for_batches() {
  std::vector<double> flat;
  for (const int64_t rows : kTimedRows) flat.insert(flat.end(), {1e-5 * static_cast<double>(rows), 5e-5});
  return flat;
}

std::vector<float> logits_after(Engine& engine, size_t n_tokens, std::set<std::string>* devices) {
  auto session = engine.new_session();
  EXPECT_TRUE(session) << session.error().message;
  std::vector<int32_t> ids;
  for (size_t i = 0; i < n_tokens; ++i) ids.push_back(static_cast<int32_t>(10 + 7 * i % 200));
  auto logits = session->prefill(ids);
  EXPECT_TRUE(logits) << logits.error().message;
  std::vector<float> out = logits ? std::vector<float>(logits->begin(), logits->end()) : std::vector<float>();
  EXPECT_TRUE(session->decode(11));
  for (const SegmentTime& t : session->stats().segments)
    if (t.kind == "experts") devices->insert(t.device);
  return out;
}

TEST(OnednnChoice, TimesAreKeptAndUsedAgain) {
  EngineOptions o = options();
  o.plan_only = true;
  std::string key;
  std::vector<double> kept;
  o.expert_times.store = [&](const std::string& k, std::span<const double> seconds) {
    key = k;
    kept.assign(seconds.begin(), seconds.end());
  };
  auto first = Engine::open(o);
  ASSERT_TRUE(first) << first.error().message;
  const ExpertChoice& choice = (*first)->expert_choice();
  ASSERT_EQ(choice.candidates.size(), 2u) << choice.note;
  EXPECT_EQ(choice.note, "measured now");
  EXPECT_EQ(kept.size(), 2 * std::size(kTimedRows));
  EXPECT_THAT(key, HasSubstr("q4_0"));
  EXPECT_THAT(key, HasSubstr("oneDNN"));

  std::string asked;
  o.expert_times.load = [&](const std::string& k) {
    asked = k;
    return kept;
  };
  o.expert_times.store = nullptr;
  auto second = Engine::open(o);
  ASSERT_TRUE(second) << second.error().message;
  EXPECT_EQ(asked, key);
  EXPECT_EQ((*second)->expert_choice().note, "measured before");
  for (size_t i = 0; i < choice.times.size(); ++i) EXPECT_EQ((*second)->expert_choice().times[i].seconds, choice.times[i].seconds);

  // What is no list of times is measured anew.
  o.expert_times.load = [&](const std::string&) { return std::vector<double>(kept.size(), -1.0); };
  auto third = Engine::open(o);
  ASSERT_TRUE(third) << third.error().message;
  EXPECT_EQ((*third)->expert_choice().note, "measured now");
}

TEST(OnednnChoice, TakesGatesInPanelsResidentStreamedAndPacked) {
  EngineOptions o = options();
  o.expert_times.load = [](const std::string&) { return onednn_for_batches(); };
  EngineOptions as_file = o;
  as_file.repack = Repack::off;
  std::set<std::string> devices;
  auto rows = Engine::open(as_file);
  ASSERT_TRUE(rows) << rows.error().message;
  EXPECT_FALSE((*rows)->model().layers[0].gate.interleaved);
  const std::vector<float> expected = logits_after(**rows, 40, &devices);
  EXPECT_EQ(devices, (std::set<std::string>{"cpu", "onednn:0"}));
  const auto same = [&](const EngineOptions& with) {
    auto engine = Engine::open(with);
    ASSERT_TRUE(engine) << engine.error().message;
    EXPECT_TRUE((*engine)->model().layers[0].gate.interleaved);
    EXPECT_THAT((*engine)->repacked(), testing::Not(HasSubstr("left as they are")));
    std::set<std::string> used;
    EXPECT_EQ(logits_after(**engine, 40, &used), expected);
    EXPECT_EQ(used, devices);
  };
  same(o);
  const test::TempDir dir;
  PackOptions packing;
  packing.in = o.model;
  packing.out = o.model = dir / "packed.gguf";
  ASSERT_TRUE(pack_model(packing));
  same(o);
  o.experts = ExpertPlacement::streamed;
  o.stream.slots = 12;
  same(o);
}

TEST(OnednnChoice, EachBucketHasItsDeviceAndStreamingChangesNoBit) {
  EngineOptions o = options();
  o.expert_times.load = [](const std::string&) { return onednn_for_batches(); };
  auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  const ExpertChoice& choice = (*engine)->expert_choice();
  ASSERT_EQ(choice.buckets.size(), 5u);
  std::vector<size_t> chosen;
  for (const ExpertBucket& bucket : choice.buckets) chosen.push_back(bucket.chosen);
  EXPECT_EQ(chosen, (std::vector<size_t>{0, 0, 1, 1, 1}));
  EXPECT_TRUE(std::any_of((*engine)->plan().arenas.begin(), (*engine)->plan().arenas.end(),
                          [](const Arena& a) { return a.name == "workspace (onednn:0)" && a.bytes > 0; }));

  std::set<std::string> devices, streamed_devices, cpu_devices;
  const std::vector<float> mixed = logits_after(**engine, 40, &devices);  // steps of 32 and of 8
  EXPECT_EQ(devices, (std::set<std::string>{"cpu", "onednn:0"}));

  o.experts = ExpertPlacement::streamed;
  o.stream.slots = 12;
  auto streamed = Engine::open(o);
  ASSERT_TRUE(streamed) << streamed.error().message;
  EXPECT_EQ(logits_after(**streamed, 40, &streamed_devices), mixed);
  EXPECT_EQ(streamed_devices, devices);

  EngineOptions alone = options();
  alone.cpu_only = true;
  auto cpu = Engine::open(alone);
  ASSERT_TRUE(cpu) << cpu.error().message;
  EXPECT_TRUE((*cpu)->expert_choice().candidates.empty());
  const std::vector<float> expected = logits_after(**cpu, 40, &cpu_devices);
  EXPECT_EQ(cpu_devices, std::set<std::string>{"cpu"});
  double error = 0, power = 0;
  ASSERT_EQ(expected.size(), mixed.size());
  for (size_t i = 0; i < mixed.size(); ++i) {
    error += std::pow(static_cast<double>(mixed[i] - expected[i]), 2);
    power += std::pow(static_cast<double>(expected[i]), 2);
  }
  EXPECT_LT(error, 1e-3 * power);
}

}  // namespace
}  // namespace fth
