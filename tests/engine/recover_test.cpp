// Devices that fail while they are in use: the text goes on as the CPU alone would have written it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>

#include "core/base/bytes.h"
#include "core/engine/engine.h"
#include "core/engine/memory.h"

namespace fth {
namespace {

using testing::HasSubstr;

std::filesystem::path from_env(const char* variable, const char* rest) {
  const char* root = std::getenv(variable);
  return std::filesystem::absolute(std::filesystem::path(root == nullptr ? "." : root) / rest);
}

std::string g_log;

EngineOptions options(const std::string& fail) {
  EngineOptions o;
  o.model = from_env("FTH_SOURCE_DIR", "tools/tiny_model/tiny-smallthinker-q4_0.gguf");
  o.registry.n_threads = 2;
  o.registry.plugin_paths = {from_env("FTH_BUILD_DIR", "tests/fake_plugins/libfth_faulty.so")};
  o.registry.named_only = true;
  o.registry.log = [](void*, int32_t level, const char* text) {
    if (level <= FTH_LOG_WARNING) g_log += std::string(text) + "\n";
  };
  o.n_ctx = 512;
  o.ubatch = 8;
  o.device = "faulty:0";
  if (!fail.empty()) o.registry.device_options = {{"faulty", 0, "fail=" + fail, true}};
  // The second device opens after the first and would clear what the first was told.
  if (!fail.empty()) o.registry.device_options.push_back({"faulty", 1, "fail=" + fail, true});
  return o;
}

constexpr const char* kPrompt = "<|im_start|>user\nTranslate to German: The old teacher buys a red car.<|im_end|>\n<|im_start|>assistant\n";
constexpr const char* kReply = "Der alte Lehrer kauft ein rotes Auto.";

std::string greedy(Engine& engine, Session& session) {
  auto logits = session.prefill(engine.tokenizer().encode(kPrompt, SpecialTokens::parse));
  std::vector<int32_t> out;
  for (int i = 0; i < 40 && logits; ++i) {
    const auto id = static_cast<int32_t>(std::max_element(logits->begin(), logits->end()) - logits->begin());
    if (engine.tokenizer().is_end(id)) break;
    out.push_back(id);
    logits = session.decode(id);
  }
  EXPECT_TRUE(logits) << logits.error().message;
  return engine.tokenizer().decode(out);
}

// One call after the other fails, until one is past the end of the run: then nothing was said. Both devices' copies are timed while the plan is made, with an allocation and three
// writes for each: a failure there leaves the speed unknown and is none of the run's.
int fail_each(const char* call, int step, int first = 1) {
  int failed = 0;
  for (int n = first;; n += step) {
    g_log.clear();
    auto engine = Engine::open(options(call + (":" + std::to_string(n))));
    EXPECT_TRUE(engine) << call << " " << n << ": " << engine.error().message;
    if (!engine) return failed;
    auto session = (*engine)->new_session();
    EXPECT_TRUE(session) << call << " " << n << ": " << session.error().message;
    if (!session) return failed;
    EXPECT_EQ(greedy(**engine, *session), kReply) << call << " " << n;
    const bool moved = g_log.find("run on cpu from here on") != std::string::npos;
    if (!moved) return failed;
    EXPECT_THAT(g_log, HasSubstr(" failed: "));
    for (const Placement& p : (*engine)->plan().placements) {
      const std::string name = (*engine)->plan().devices[p.device].name;
      EXPECT_EQ(g_log.find(name + " failed: "), g_log.npos) << p.segment << " is still on " << name;
    }
    ++failed;
    if (testing::Test::HasFailure()) return failed;
  }
}

TEST(Recover, WorksWhileNothingFails) {
  g_log.clear();
  auto engine = Engine::open(options(""));
  ASSERT_TRUE(engine) << engine.error().message;
  auto session = (*engine)->new_session();
  ASSERT_TRUE(session);
  EXPECT_EQ(greedy(**engine, *session), kReply);
  EXPECT_EQ(g_log, "");
  const Plan& plan = (*engine)->plan();
  EXPECT_TRUE(std::any_of(plan.placements.begin(), plan.placements.end(), [](const Placement& p) { return p.device != 0; }));
}

TEST(Recover, OutOfMemoryInEveryAllocation) { EXPECT_GT(fail_each("alloc", 1, 3), 20); }
TEST(Recover, OutOfMemoryInEveryCompile) { EXPECT_GT(fail_each("compile", 1), 5); }
TEST(Recover, OutOfMemoryInEveryImport) { EXPECT_GT(fail_each("import", 1), 5); }
TEST(Recover, LostInAnyWrite) { EXPECT_GT(fail_each("lost-write", 29, 7), 3); }
TEST(Recover, OutOfMemoryInAnyWrite) { EXPECT_GT(fail_each("write", 43, 7), 2); }
TEST(Recover, LostInAnyRead) { EXPECT_GT(fail_each("lost-read", 29), 3); }
TEST(Recover, OutOfMemoryInAnyRead) { EXPECT_GT(fail_each("read", 43), 2); }
TEST(Recover, OutOfMemoryInAnySubmit) { EXPECT_GT(fail_each("submit", 13), 5); }
TEST(Recover, OutOfMemoryInAnyWait) { EXPECT_GT(fail_each("wait", 17), 4); }
TEST(Recover, LostInAnyWait) { EXPECT_GT(fail_each("lost-wait", 37), 2); }
TEST(Recover, LostForGoodInAnySubmit) { EXPECT_GT(fail_each("lost", 41), 2); }
TEST(Recover, ThrowsThroughTheBoundary) { EXPECT_GT(fail_each("throw", 37), 2); }

// A device that cannot say what a segment costs is refused for that segment, with its words; one that cannot when the segment is compiled has failed.
TEST(Recover, OutOfMemoryInAnyEstimate) {
  int refused = 0;
  for (int n = 1; n < 40; n += 2) {
    g_log.clear();
    auto engine = Engine::open(options("estimate:" + std::to_string(n)));
    ASSERT_TRUE(engine) << n << ": " << engine.error().message;
    auto session = (*engine)->new_session();
    ASSERT_TRUE(session) << n;
    EXPECT_EQ(greedy(**engine, *session), kReply) << n;
    for (const auto& r : (*engine)->plan().refusals) refused += r.reason.find("out of memory in estimate") != std::string::npos;
  }
  EXPECT_GT(refused, 2);
}

// Before there is a device there is nothing to give up: it is listed with its reason, and who does not name it gets the CPU.
TEST(Recover, OutOfMemoryInOpenAndInfo) {
  for (const char* call : {"open", "info"}) {
    EngineOptions o = options(std::string(call) + ":1");
    auto named = Engine::open(o);
    EXPECT_EQ(named.has_value(), false) << call;
    o.device.clear();
    auto engine = Engine::open(o);
    ASSERT_TRUE(engine) << call << ": " << engine.error().message;
    auto session = (*engine)->new_session();
    ASSERT_TRUE(session);
    EXPECT_EQ(greedy(**engine, *session), kReply);
    bool said = false;
    for (const auto& b : (*engine)->registry().backends())
      said = said || b.reason.find(std::string("out of memory in ") + call) != std::string::npos;
    EXPECT_TRUE(said) << call;
  }
}

TEST(Recover, EverySessionFindsItsContextAgain) {
  auto engine = Engine::open(options("submit:50"));
  ASSERT_TRUE(engine) << engine.error().message;
  auto one = (*engine)->new_session();
  auto two = (*engine)->new_session();
  ASSERT_TRUE(one && two);
  const auto ids = (*engine)->tokenizer().encode(kPrompt, SpecialTokens::parse);
  const auto half = std::span(ids).first(ids.size() / 2), rest = std::span(ids).subspan(ids.size() / 2);
  ASSERT_TRUE(two->prefill(half));
  g_log.clear();
  EXPECT_EQ(greedy(**engine, *one), kReply);
  ASSERT_THAT(g_log, HasSubstr("out of memory in submit"));
  auto logits = two->prefill(rest);
  ASSERT_TRUE(logits) << logits.error().message;
  const std::vector<float> recovered(logits->begin(), logits->end());
  EngineOptions alone = options("");
  alone.device.clear();
  alone.cpu_only = true;
  auto cpu = Engine::open(alone);
  ASSERT_TRUE(cpu);
  auto session = (*cpu)->new_session();
  ASSERT_TRUE(session);
  ASSERT_TRUE(session->prefill(half));
  logits = session->prefill(rest);
  ASSERT_TRUE(logits);
  EXPECT_EQ(recovered, std::vector<float>(logits->begin(), logits->end()));
}

TEST(Recover, RowsOfLogitsAreHandedOverOnce) {
  auto engine = Engine::open(options("submit:20"));
  ASSERT_TRUE(engine) << engine.error().message;
  auto session = (*engine)->new_session();
  ASSERT_TRUE(session);
  const auto ids = (*engine)->tokenizer().encode(kPrompt, SpecialTokens::parse);
  int64_t next = 0;
  g_log.clear();
  const auto done = session->prefill_all(ids, [&](int64_t first, int64_t rows, const float*) -> Result<> {
    EXPECT_EQ(first, next);
    next = first + rows;
    return {};
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(next, static_cast<int64_t>(ids.size()));
  EXPECT_THAT(g_log, HasSubstr("failed: "));
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCountsMemory = false;  // what is freed stays with the sanitizer
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kCountsMemory = false;
#else
constexpr bool kCountsMemory = true;
#endif
#else
constexpr bool kCountsMemory = true;
#endif

// RAM that the plan says, while the device has its part of the model in memory of its own.
uint64_t planned_ram(EngineOptions o) {
  o.plan_only = true;
  o.registry.device_options.clear();
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? (*engine)->plan().ram_bytes : 0;
}

// What comes back from the device, about 1.7 MiB of caches and weights, is more than the budgets below leave: a plan is made again.
EngineOptions budgeted(const std::string& fail, ExpertPlacement experts) {
  EngineOptions o = options(fail);
  o.experts = experts;
  o.kv.placement = KvPlacement::memory;
  return o;
}

bool on_faulty(const Engine& engine) {
  const auto& placements = engine.plan().placements;
  return std::any_of(placements.begin(), placements.end(), [](const Placement& p) { return p.device != 0; });
}

// An engine within `more` bytes than what `least` needs. The program's own part of that grows a little with every engine that is opened, so it is looked at twice, and again if that
// was not what the engine then found.
std::unique_ptr<Engine> open_within(EngineOptions* o, const EngineOptions& least, uint64_t more,
                                    const std::function<bool(const Engine&)>& as_meant) {
  for (int i = 0; i < 8; ++i) {
    const uint64_t before = planned_ram(least), now = planned_ram(least);
    o->ram_budget = now + (now - std::min(before, now)) + more;
    g_log.clear();
    auto engine = Engine::open(*o);
    // Where the program grew less than before there is room for all that comes back, and nothing to plan again.
    if (engine && as_meant(**engine) && (*engine)->plan().ram_bytes + kMiB > o->ram_budget) return std::move(*engine);
  }
  ADD_FAILURE() << "no budget was as it was meant";
  return nullptr;
}

TEST(Recover, TheBudgetIsKeptWithFewerSlots) {
  EngineOptions o = budgeted("submit:60", ExpertPlacement::streamed), least = o;
  least.stream.slots = 4;
  constexpr uint64_t kSlot = 48 * kKiB;
  const auto engine = open_within(&o, least, 80 * kSlot, [](const Engine& e) { return on_faulty(e) && e.plan().expert_slots > 60; });
  ASSERT_TRUE(engine);
  ASSERT_EQ(engine->slot_bytes(), kSlot);
  const int64_t before = engine->plan().expert_slots;
  auto one = engine->new_session(), two = engine->new_session();
  ASSERT_TRUE(one && two);
  const auto ids = engine->tokenizer().encode("The old teacher", SpecialTokens::parse);
  ASSERT_TRUE(two->prefill(ids));
  EXPECT_EQ(greedy(*engine, *one), kReply);
  EXPECT_THAT(g_log, HasSubstr("faulty:0 failed: "));
  EXPECT_THAT(g_log, HasSubstr("the plan was made again without it"));
  EXPECT_THAT(g_log, HasSubstr("expert slots instead of " + std::to_string(before)));
  EXPECT_FALSE(on_faulty(*engine));
  EXPECT_LT(engine->plan().expert_slots, before);
  EXPECT_GT(engine->plan().expert_slots, 4);
  EXPECT_LE(engine->plan().ram_bytes, o.ram_budget);
  EXPECT_TRUE(!kCountsMemory || resident_memory() <= o.ram_budget) << resident_memory() << " of " << o.ram_budget;
  // The session that was not at work is laid out for the plan that there is now.
  two->clear();
  EXPECT_EQ(greedy(*engine, *two), kReply);
}

TEST(Recover, ResidentExpertsAreStreamedWhenTheBudgetAsksForIt) {
  EngineOptions o = budgeted("submit:60", ExpertPlacement::automatic);
  const auto engine = open_within(&o, o, kMiB / 2, [](const Engine& e) { return on_faulty(e) && e.plan().expert_slots == 0; });
  ASSERT_TRUE(engine);
  auto session = engine->new_session();
  ASSERT_TRUE(session);
  EXPECT_EQ(greedy(*engine, *session), kReply);
  EXPECT_THAT(g_log, HasSubstr("experts are streamed, with "));
  EXPECT_GT(engine->plan().expert_slots, 4);
  EXPECT_LE(engine->plan().ram_bytes, o.ram_budget);
  EXPECT_TRUE(!kCountsMemory || resident_memory() <= o.ram_budget) << resident_memory() << " of " << o.ram_budget;
}

// Resident experts of a plain file lie in RAM neuron-major and interleaved; what is streamed comes as the file has it. A slot's reader and a kernel that still
// took one for the other would change the text, so everything is compared with a CPU that streamed from the beginning: what is lost is computed again.
TEST(Recover, InterleavedWeightsGoBackToTheFilesOrderWhenTheyAreStreamed) {
  EngineOptions alone = budgeted("", ExpertPlacement::streamed);
  alone.device.clear();
  alone.cpu_only = true;
  alone.stream.slots = 16;
  const auto last_logits = [](Engine& engine, Session& session) {
    const auto logits = session.prefill(engine.tokenizer().encode(" and", SpecialTokens::parse));
    EXPECT_TRUE(logits) << logits.error().message;
    return logits ? std::vector<float>(logits->begin(), logits->end()) : std::vector<float>();
  };
  std::vector<float> wanted;
  {
    auto cpu = Engine::open(alone);
    ASSERT_TRUE(cpu) << cpu.error().message;
    auto reference = (*cpu)->new_session();
    ASSERT_TRUE(reference);
    ASSERT_EQ(greedy(**cpu, *reference), kReply);
    wanted = last_logits(**cpu, *reference);
  }

  uint64_t resident = 0;  // at the end of the last round
  for (const char* fail : {"submit:60", "lost:60", "submit:110", "read:60", "submit:60", "lost:110"}) {
    SCOPED_TRACE(fail);
    EngineOptions o = budgeted(fail, ExpertPlacement::automatic);
    const bool both = std::string(fail).starts_with("lost");  // one device after the other
    if (both) o.rules = {{"head", "faulty:1"}};
    const auto engine = open_within(&o, o, kMiB / 2, [](const Engine& e) { return on_faulty(e) && e.plan().expert_slots == 0; });
    ASSERT_TRUE(engine);
    EXPECT_THAT(engine->repacked(), HasSubstr("in neuron-major order"));
    EXPECT_THAT(engine->repacked(), HasSubstr("weights interleaved"));
    for (const Layer& l : engine->model().layers) {
      EXPECT_TRUE(l.gate.interleaved && !l.q.interleaved);  // attention was the device's
      EXPECT_EQ(l.down_layout, DownLayout::neuron_major);
    }
    auto at_work = engine->new_session(), waiting = engine->new_session();
    ASSERT_TRUE(at_work && waiting);
    const auto ids = engine->tokenizer().encode(kPrompt, SpecialTokens::parse);
    const auto begin = std::span(ids).first(5);
    ASSERT_TRUE(waiting->prefill(begin));
    EXPECT_EQ(greedy(*engine, *at_work), kReply);
    EXPECT_EQ(last_logits(*engine, *at_work), wanted);
    EXPECT_THAT(g_log, HasSubstr("experts are streamed, with "));
    EXPECT_THAT(g_log, HasSubstr("faulty:0 failed: "));
    EXPECT_EQ(g_log.find("faulty:1 failed: ") != g_log.npos, both);
    EXPECT_FALSE(on_faulty(*engine));
    EXPECT_THAT(engine->repacked(), HasSubstr("streamed from the file as it is, since faulty:"));
    EXPECT_THAT(engine->repacked(), testing::Not(HasSubstr("in neuron-major order")));
    for (const Layer& l : engine->model().layers) {
      EXPECT_TRUE(!l.gate.interleaved && l.q.interleaved);  // attention came to the CPU, which interleaves it where it lies
      EXPECT_EQ(l.down_layout, DownLayout::row_major);
    }
    EXPECT_LE(engine->plan().ram_bytes, o.ram_budget);
    EXPECT_TRUE(!kCountsMemory || resident_memory() <= o.ram_budget) << resident_memory() << " of " << o.ram_budget;
    waiting->clear();
    EXPECT_EQ(greedy(*engine, *waiting), kReply);
    resident = resident_memory();
    alone.stream.slots = engine->plan().expert_slots;
  }
  // What was put into another order, 2.2 MiB, is gone: an engine that had nothing but the slots from the beginning is as large.
  auto cpu = Engine::open(alone);
  ASSERT_TRUE(cpu) << cpu.error().message;
  auto one = (*cpu)->new_session(), two = (*cpu)->new_session();
  ASSERT_TRUE(one && two);
  EXPECT_EQ(greedy(**cpu, *one), kReply);
  EXPECT_EQ(greedy(**cpu, *two), kReply);
  EXPECT_TRUE(!kCountsMemory || resident < resident_memory() + kMiB) << resident << " against " << resident_memory();
}

TEST(Recover, WhatCannotFitIsSaid) {
  EngineOptions o = budgeted("submit:20", ExpertPlacement::streamed), least = o;
  least.stream.slots = 4;
  const auto engine = open_within(&o, least, kMiB / 2, [](const Engine& e) { return on_faulty(e); });
  ASSERT_TRUE(engine);
  auto session = engine->new_session();
  ASSERT_TRUE(session);
  const std::vector<int32_t> ids(40, 7);
  for (int i = 0; i < 2; ++i) {  // and again: nothing runs on a device that is gone
    const auto logits = session->prefill(ids);
    ASSERT_FALSE(logits);
    EXPECT_EQ(logits.error().code, Code::resource_exhausted);
    EXPECT_THAT(logits.error().message, HasSubstr("faulty:0 failed ("));
    EXPECT_THAT(logits.error().message, HasSubstr("the smallest budget that works is --ram "));
  }
  EXPECT_FALSE(engine->new_session());
}

// The device fails while the engine opens: the plan is made again before the first session.
TEST(Recover, TheBudgetIsKeptWhenADeviceCannotCompile) {
  EngineOptions o = budgeted("compile:3", ExpertPlacement::automatic);
  const auto replanned = [](const Engine&) { return g_log.find("experts are streamed, with ") != g_log.npos; };
  const auto engine = open_within(&o, o, kMiB / 2, replanned);
  ASSERT_TRUE(engine);
  EXPECT_FALSE(on_faulty(*engine));
  auto session = engine->new_session();
  ASSERT_TRUE(session);
  EXPECT_EQ(greedy(*engine, *session), kReply);
  EXPECT_LE(engine->plan().ram_bytes, o.ram_budget);
}

TEST(Recover, TwoDevicesOfOneKindAreBothListed) {
  auto engine = Engine::open(options(""));
  ASSERT_TRUE(engine);
  EXPECT_TRUE((*engine)->registry().find("faulty:0"));
  EXPECT_TRUE((*engine)->registry().find("faulty:1"));
  EngineOptions missing = options("");
  missing.device = "faulty:2";
  auto none = Engine::open(missing);
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message, HasSubstr("there are: cpu, faulty:0, faulty:1"));
}

TEST(Recover, OptionsThatABackendDoesNotKnow) {
  EngineOptions o = options("");
  o.registry.device_options = {{"faulty", std::nullopt, "turbo=1", true}};
  auto engine = Engine::open(o);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, Code::invalid_argument);
  EXPECT_THAT(engine.error().message, HasSubstr("the one option is fail"));
  o.registry.device_options[0].asked_for = false;  // the program's own wish: the device opens without
  EXPECT_TRUE(Engine::open(o));
  o.registry.device_options = {{"absent", std::nullopt, "turbo=1", true}};
  engine = Engine::open(o);
  ASSERT_FALSE(engine);
  EXPECT_THAT(engine.error().message, HasSubstr("no backend absent is loaded"));
}

}  // namespace
}  // namespace fth
