// The engine on the bundled trained model: the properties that every placement, batch size, thread count and instruction set must keep.
#include "core/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "core/device/thread_pool.h"
#include "tests/engine/npy.h"

namespace fth {
namespace {

using testing::HasSubstr;

std::filesystem::path from_env(const char* variable, const char* rest) {
  const char* root = std::getenv(variable);
  return std::filesystem::path(root == nullptr ? "." : root) / rest;
}

EngineOptions options() {
  EngineOptions o;
  o.model = from_env("FTH_SOURCE_DIR", "tools/tiny_model/tiny-smallthinker-q4_0.gguf");
  o.cpu_only = true;
  o.registry.n_threads = 2;
  o.n_ctx = 1024;
  return o;
}

std::unique_ptr<Engine> open(const EngineOptions& o) {
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

constexpr const char* kPrompt = "<|im_start|>user\nTranslate to German: The old teacher buys a red car.<|im_end|>\n<|im_start|>assistant\n";

std::vector<float> logits_after(Session& session, std::span<const int32_t> ids) {
  auto logits = session.prefill(ids);
  EXPECT_TRUE(logits) << logits.error().message;
  return logits ? std::vector<float>(logits->begin(), logits->end()) : std::vector<float>();
}

int32_t arg_max(std::span<const float> v) { return static_cast<int32_t>(std::max_element(v.begin(), v.end()) - v.begin()); }

std::string greedy(Engine& engine, std::string_view prompt, int n) {
  auto session = engine.new_session();
  EXPECT_TRUE(session) << session.error().message;
  auto logits = session->prefill(engine.tokenizer().encode(prompt, SpecialTokens::parse));
  std::vector<int32_t> out;
  for (int i = 0; i < n && logits; ++i) {
    const int32_t id = arg_max(*logits);
    if (engine.tokenizer().is_end(id)) break;
    out.push_back(id);
    logits = session->decode(id);
  }
  EXPECT_TRUE(logits) << logits.error().message;
  return engine.tokenizer().decode(out);
}

// A prompt longer than the model's window of 128, so that rings wrap.
std::vector<int32_t> long_prompt(Engine& engine) {
  std::string text;
  for (int i = 0; i < 12; ++i) text += kPrompt + std::string("Der alte Lehrer kauft ein rotes Auto.<|im_end|>\n");
  return engine.tokenizer().encode(text, SpecialTokens::parse);
}

TEST(Engine, ALayerOfADecodedTokenHasFewBarriersAndSaysWhatLives) {
  const auto engine = open(options());
  auto session = engine->new_session();
  ASSERT_TRUE(session);
  auto logits = session->prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse));
  ThreadPool& pool = engine->registry().pool();
  if (pool.n_threads() < 2) GTEST_SKIP() << "one thread: no barriers";
  const uint64_t before = pool.n_loops();
  constexpr uint64_t kTokens = 8;
  for (uint64_t i = 0; i < kTokens; ++i) {
    ASSERT_TRUE(logits);
    logits = session->decode(arg_max(*logits));
  }
  // Router; Q, K and V; attention and its output; experts. One more for the head.
  const auto layers = static_cast<uint64_t>(engine->model().config.n_layer);
  EXPECT_LE(pool.n_loops() - before, kTokens * (4 * layers + 1));

  const auto live = engine->live_neurons();
  ASSERT_EQ(live.size(), layers);
  const Config& c = engine->model().config;
  for (const Engine::LiveNeurons& n : live) {
    EXPECT_GE(n.all, kTokens * static_cast<uint64_t>(c.top_k * engine->model().layers[0].gate.rows));
    EXPECT_GT(n.live, 0u);
    EXPECT_LT(n.live, n.all);
  }
}

TEST(Engine, AnswersAsTheModelWasTrainedTo) {
  auto engine = open(options());
  ASSERT_TRUE(engine);
  EXPECT_EQ(greedy(*engine, kPrompt, 40), "Der alte Lehrer kauft ein rotes Auto.");
}

TEST(Engine, PrefillInAnyPiecesAndThreadsGivesTheSameBitsAsDecoding) {
  auto engine = open(options());
  ASSERT_TRUE(engine);
  const auto ids = long_prompt(*engine);
  ASSERT_GT(ids.size(), 300u);
  auto session = engine->new_session();
  std::vector<float> one_by_one;
  for (const int32_t id : ids) {
    auto logits = session->decode(id);
    ASSERT_TRUE(logits) << logits.error().message;
    one_by_one.assign(logits->begin(), logits->end());
  }
  for (const int64_t ubatch : {1, 7, 32, 200, 512})
    for (const uint32_t threads : {1u, 2u, 3u}) {
      EngineOptions o = options();
      o.ubatch = ubatch;
      o.registry.n_threads = threads;
      auto other = open(o);
      ASSERT_TRUE(other);
      auto s = other->new_session();
      EXPECT_EQ(logits_after(*s, ids), one_by_one) << "ubatch " << ubatch << ", threads " << threads;
    }
}

TEST(Engine, EveryInstructionSetGivesTheSameText) {
  int ran = 0;
  for (const char* isa : {"generic", "avx2", "avx512", "avx512_vnni", "avx_vnni", "neon_dotprod", "neon_i8mm"}) {
    EngineOptions o = options();
    o.registry.cpu_options = std::string("isa=") + isa;
    auto engine = Engine::open(o);
    if (!engine) continue;  // refused, which the kernel tests look at
    ++ran;
    EXPECT_EQ(greedy(**engine, kPrompt, 40), "Der alte Lehrer kauft ein rotes Auto.") << isa;
    EXPECT_THAT(greedy(**engine, "<|im_start|>user\nWhat is 38 + 47?<|im_end|>\n<|im_start|>assistant\n", 60), HasSubstr("= 85")) << isa;
  }
  EXPECT_GE(ran, 1);
}

TEST(Engine, AttentionOnADeviceWithItsOwnMemoryGivesTheSameBits) {
  auto cpu = open(options());
  ASSERT_TRUE(cpu);
  const auto ids = long_prompt(*cpu);
  auto session = cpu->new_session();
  const auto expected = logits_after(*session, ids);
  const std::string text = greedy(*cpu, kPrompt, 20);
  for (const char* where : {"layer.*.attention", "layer.3.attention", "head"}) {
    EngineOptions o = options();
    o.cpu_only = false;
    o.registry.plugin_paths = {from_env("FTH_BUILD_DIR", "tests/fake_plugins/libfth_copying.so")};
    o.rules = {{where, "copying:0"}};
    auto mixed = open(o);
    ASSERT_TRUE(mixed);
    auto s = mixed->new_session();
    EXPECT_EQ(logits_after(*s, ids), expected) << where;
    EXPECT_GT(s->stats().copied_bytes, 0u);
    EXPECT_EQ(greedy(*mixed, kPrompt, 20), text) << where;
  }
}

TEST(Session, RefusesWhatDoesNotFitTheContextAndKeepsWhatItHad) {
  EngineOptions o = options();
  o.n_ctx = 16;
  auto engine = open(o);
  ASSERT_TRUE(engine);
  auto session = engine->new_session();
  const std::vector<int32_t> ids(12, 5);
  ASSERT_TRUE(session->prefill(ids));
  const auto refused = session->prefill(ids);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::out_of_range);
  EXPECT_EQ(refused.error().message,
            "12 + 12 tokens do not fit the context of 16; raise --ctx (the model allows 1024) or shorten the prompt");
  EXPECT_EQ(session->n_past(), 12);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(session->decode(7));
  EXPECT_EQ(session->decode(7).error().code, Code::out_of_range);
}

TEST(Session, RefusesIdsOutsideTheVocabulary) {
  auto engine = open(options());
  ASSERT_TRUE(engine);
  auto session = engine->new_session();
  EXPECT_EQ(session->decode(-1).error().code, Code::invalid_argument);
  EXPECT_EQ(session->decode(2048).error().message, "token 2048 is outside the vocabulary of 2048");
  EXPECT_EQ(session->prefill({}).error().code, Code::invalid_argument);
  EXPECT_EQ(session->n_past(), 0);
}

TEST(Session, ReuseKeepsTheSharedPrefixAndGivesTheSameBitsAsAFreshRun) {
  auto engine = open(options());
  ASSERT_TRUE(engine);
  const auto all = long_prompt(*engine);
  const std::vector<int32_t> first(all.begin(), all.begin() + 330);
  std::vector<int32_t> second(all.begin(), all.begin() + 300);
  second.insert(second.end(), {9, 8, 7, 6});
  auto fresh = engine->new_session();
  const auto expected = logits_after(*fresh, second);

  auto session = engine->new_session();
  logits_after(*session, first);
  const int64_t kept = session->reuse(second);
  EXPECT_EQ(kept, 300);
  EXPECT_EQ(logits_after(*session, std::span<const int32_t>(second).subspan(static_cast<size_t>(kept))), expected);
  // The whole prompt again: one token is left to prefill.
  EXPECT_EQ(session->reuse(second), static_cast<int64_t>(second.size()) - 1);
}

TEST(Session, ReuseStartsAgainWhereTheRingNoLongerHoldsTheWindow) {
  EngineOptions o = options();
  o.ubatch = 8;  // rings of 128 + 8 - 1 cells
  auto engine = open(o);
  ASSERT_TRUE(engine);
  const auto all = long_prompt(*engine);
  auto fresh = engine->new_session();
  const std::vector<int32_t> target(all.begin(), all.begin() + 250);
  const auto expected = logits_after(*fresh, target);
  for (const size_t past : {252u, 256u, 257u, 258u, 300u}) {
    auto session = engine->new_session();
    std::vector<int32_t> ids(all.begin(), all.begin() + 249);
    ids.resize(past, 11);
    logits_after(*session, ids);
    const int64_t kept = session->reuse(target);
    EXPECT_TRUE(kept == 249 || kept == 0) << kept;
    EXPECT_EQ(kept == 249, past <= 257)  // position 249 sees 122 .. 249; 257 - 135 = 122
        << "going back " << past - 249;
    EXPECT_EQ(logits_after(*session, std::span<const int32_t>(target).subspan(static_cast<size_t>(kept))), expected) << past;
  }
}

TEST(Session, AStoppedPrefillKeepsWhatWasDone) {
  EngineOptions o = options();
  o.ubatch = 32;
  auto engine = open(o);
  ASSERT_TRUE(engine);
  const auto ids = long_prompt(*engine);
  auto fresh = engine->new_session();
  const auto expected = logits_after(*fresh, ids);
  auto session = engine->new_session();
  const auto stopped = session->prefill(ids, [](int64_t done, int64_t) { return done < 64; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Code::cancelled);
  EXPECT_EQ(session->n_past(), 64);
  EXPECT_EQ(logits_after(*session, std::span<const int32_t>(ids).subspan(64)), expected);
}

TEST(Engine, RefusesABudgetThatCannotHoldTheModel) {
  EngineOptions o = options();
  o.ram_budget = 1 << 20;
  const auto engine = Engine::open(o);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, Code::resource_exhausted);
  EXPECT_THAT(engine.error().message, HasSubstr("the smallest budget that works is --ram"));
}

TEST(Engine, RefusesAContextBeyondTheModels) {
  EngineOptions o = options();
  o.n_ctx = 4096;
  EXPECT_THAT(Engine::open(o).error().message, HasSubstr("the model allows 1 to 1024"));
  o.overrides = {{"context_length", "4096"}};
  EXPECT_TRUE(Engine::open(o));
}

// Quantised weights and activations against exact arithmetic on the same weights, layer by layer, with the reference's experts: otherwise a rounding
// that swaps two experts would be all that is measured.
TEST(Engine, QuantisedLayersStayCloseToExactArithmeticWithTheSameRouting) {
  EngineOptions o = options();
  for (const auto& place : {from_env("FTH_BUILD_DIR", "tests/models"), from_env("FTH_SHARED_DIR", "reference/models")})
    if (std::filesystem::exists(place / "tiny-Q4_0.gguf")) o.model = place / "tiny-Q4_0.gguf";
  if (o.model.filename() != "tiny-Q4_0.gguf") GTEST_SKIP() << "tiny-Q4_0.gguf has not been generated (tests/e2e/make_models.py)";
  o.kv.dtype = DType::f32;
  o.n_ctx = 128;
  auto engine = open(o);
  ASSERT_TRUE(engine);
  std::vector<int32_t> ids;
  std::ifstream in(from_env("FTH_SOURCE_DIR", "tests/reference/logits/tokens-tiny-64.txt"));
  for (int32_t id = 0; in >> id;) ids.push_back(id);
  ASSERT_EQ(ids.size(), 64u);

  const Config& c = engine->model().config;
  const auto reference = [&](const std::string& name) {
    return test::read_npy(from_env("FTH_SOURCE_DIR", "tests/reference/layers") / ("tiny-Q4_0." + name + ".npy"));
  };
  std::map<int64_t, std::vector<int32_t>> experts;
  for (int64_t layer = 0; layer < c.n_layer; ++layer) {
    experts[layer] = reference("ffn_moe_topk-" + std::to_string(layer)).values<int32_t>();
    ASSERT_EQ(experts[layer].size(), ids.size() * static_cast<size_t>(c.top_k));
  }
  std::map<std::string, std::vector<float>> seen;
  auto session = engine->new_session();
  session->set_force_routing([&](int64_t layer, int64_t first_pos, int64_t rows, int32_t* chosen) {
    std::copy_n(experts[layer].begin() + first_pos * c.top_k, rows * c.top_k, chosen);
  });
  session->set_inspect([&](std::string_view name, int64_t, int64_t rows, int64_t cols, const float* values) {
    auto& v = seen[std::string(name)];
    v.insert(v.end(), values, values + rows * cols);
  });
  logits_after(*session, ids);
  for (int64_t layer = 0; layer < c.n_layer; ++layer) {
    const std::string name = "l_out-" + std::to_string(layer);
    const auto expected = reference(name).values<float>();
    const auto& got = seen[name];
    ASSERT_EQ(got.size(), expected.size());
    double error = 0, power = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      error += std::pow(static_cast<double>(got[i]) - static_cast<double>(expected[i]), 2);
      power += std::pow(static_cast<double>(expected[i]), 2);
    }
    std::printf("%s: NMSE %.2e\n", name.c_str(), error / power);
    EXPECT_LE(error / power, 1e-4) << name;
  }
}

}  // namespace
}  // namespace fth
