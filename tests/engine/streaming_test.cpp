// Streamed experts against resident ones: the same bits, whatever the slots, the reader, the order of arrival or the file's layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "core/engine/engine.h"
#include "core/model/pack.h"

namespace fth {
namespace {

using testing::HasSubstr;

std::filesystem::path tiny() {
  const char* root = std::getenv("FTH_SOURCE_DIR");
  return std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
}

EngineOptions options() {
  EngineOptions o;
  o.model = tiny();
  o.cpu_only = true;
  o.registry.n_threads = 2;
  o.n_ctx = 512;
  o.ubatch = 64;
  return o;
}

EngineOptions streamed(int64_t slots) {
  EngineOptions o = options();
  o.experts = ExpertPlacement::streamed;
  o.stream.slots = slots;
  return o;
}

// The bundled model, packed once for this program.
const std::filesystem::path& packed() {
  static const std::filesystem::path path = [] {
    const auto to = std::filesystem::temp_directory_path() / ("streaming_test." + std::to_string(::getpid()) + ".gguf");
    PackOptions o;
    o.in = tiny();
    o.out = to;
    const auto done = pack_model(o);
    EXPECT_TRUE(done) << done.error().message;
    return to;
  }();
  return path;
}

struct RemovePacked : testing::Environment {
  void TearDown() override {
    std::error_code ignored;
    std::filesystem::remove(packed(), ignored);
  }
};
[[maybe_unused]] const auto* const kRemove = testing::AddGlobalTestEnvironment(new RemovePacked);

// Logits after a prompt of 150 tokens in ubatches and after each of 12 decoded ones, all in a row.
std::vector<float> logits_of(const EngineOptions& o, IoStats* io = nullptr) {
  std::vector<float> out;
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return out;
  auto session = (*engine)->new_session();
  std::vector<int32_t> ids(150);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 37 + i * i * 11) % 2000 + 20);
  auto logits = session->prefill(ids);
  for (int i = 0;; ++i) {
    EXPECT_TRUE(logits) << logits.error().message;
    if (!logits) return out;
    out.insert(out.end(), logits->begin(), logits->end());
    if (i == 12) break;
    logits = session->decode(static_cast<int32_t>(std::max_element(logits->begin(), logits->end()) - logits->begin()));
  }
  if (io != nullptr) {
    *io = session->stats().prompt_io;
    *io += session->stats().decode_io;
  }
  return out;
}

const std::vector<float>& resident() {
  static const std::vector<float> logits = logits_of(options());
  return logits;
}

TEST(Streaming, AnySlotsAndReaderGiveTheBitsOfAResidentRun) {
  auto engine = Engine::open(options());
  ASSERT_TRUE(engine);
  const Config& c = (*engine)->model().config;
  uint64_t early = 0;
  for (const auto& model : {tiny(), packed()})
    for (const int64_t slots : {c.top_k, c.top_k + 1, 2 * c.top_k, c.n_expert + 3, c.n_layer * c.top_k, c.n_layer * c.n_expert})
      for (const char* reader : {"uring", "pread"})
        for (const uint32_t depth : {1u, 5u}) {
          EngineOptions o = streamed(slots);
          o.model = model;
          o.stream.reader = reader;
          o.stream.queue_depth = depth;
          o.stream.guess = depth != 1 ? Guess::on : Guess::off;
          o.registry.n_threads = depth == 1 ? 1 : 2;
          if (auto opened = Engine::open(o); !opened && opened.error().code == Code::unavailable) continue;  // io_uring forbidden here
          IoStats io;
          EXPECT_EQ(logits_of(o, &io), resident()) << model << ", " << slots << " slots, " << reader << ", depth " << depth;
          EXPECT_GT(io.bytes_read, 0u);
          EXPECT_EQ(io.requested, io.hits + io.late + io.misses);
          early += io.early;
          if (slots == c.n_layer * c.n_expert) {
            const Layer& l = (*engine)->model().layers[0];
            const uint64_t expert = l.gate.expert_bytes() + l.up.expert_bytes() + l.down.expert_bytes();
            EXPECT_LE(io.bytes_read, static_cast<uint64_t>(slots) * (expert + 3 * 8192)) << "each is read once, in whole blocks";
          }
        }
  EXPECT_GT(early, 0u) << "no gate was computed before its up and down had come";
}

// A device whose memory is its own (the cpu backend behind copies) takes what leaves the slots.
TEST(Streaming, SpareDeviceMemoryHoldsMoreExpertsAndTheBitsStay) {
  const char* build = std::getenv("FTH_BUILD_DIR");
  ASSERT_NE(build, nullptr);
  EngineOptions o = streamed(12);
  o.cpu_only = false;
  o.registry.plugin_paths = {std::filesystem::path(build) / "tests/fake_plugins/libfth_copying.so"};
  o.device = "cpu";
  o.stream.tier = "copying:0";
  o.vram_budget = uint64_t{64} << 20;
  auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  EXPECT_THAT((*engine)->streaming(), HasSubstr("more in copying:0"));
  IoStats io;
  EXPECT_EQ(logits_of(o, &io), resident());
  EXPECT_GT(io.tier, 0u);
  o.stream.tier = "copying:7";
  engine = Engine::open(o);
  ASSERT_FALSE(engine);
  EXPECT_THAT(engine.error().message, HasSubstr("copying:0"));
}

TEST(Streaming, PackedResidentGivesTheSameBits) {
  EngineOptions o = options();
  o.model = packed();
  EXPECT_EQ(logits_of(o), resident());
}

TEST(Streaming, APromptReadsEachExpertAtMostOnceALayerAndUbatch) {
  auto engine = Engine::open(options());
  ASSERT_TRUE(engine);
  const Config& c = (*engine)->model().config;
  EngineOptions o = streamed(2 * c.top_k);
  o.ubatch = 128;
  auto small = Engine::open(o);
  ASSERT_TRUE(small) << small.error().message;
  auto session = (*small)->new_session();
  std::vector<int32_t> ids(128);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 13 + 20);
  ASSERT_TRUE(session->prefill(ids));
  const IoStats io = session->stats().prompt_io;
  EXPECT_LE(io.misses + io.late, static_cast<uint64_t>(c.n_layer * c.n_expert));
  EXPECT_GT(io.misses, static_cast<uint64_t>(c.n_layer * 2 * c.top_k)) << "most of a layer's experts are used";
}

TEST(Streaming, WarmSetIsKeptAndReadAgain) {
  const auto path = std::filesystem::temp_directory_path() / ("streaming_test." + std::to_string(::getpid()) + ".warm");
  const EngineOptions o = streamed(40);
  uint64_t cold = 0, warm = 0;
  std::vector<float> logits[2];
  for (const bool first : {true, false}) {
    auto engine = Engine::open(o);
    ASSERT_TRUE(engine) << engine.error().message;
    EXPECT_TRUE((*engine)->save_warm_set(path));
    EXPECT_EQ(std::filesystem::exists(path), !first) << "nothing is written before an expert was used";
    const auto loaded = (*engine)->load_warm_set(path);
    EXPECT_EQ(loaded ? *loaded > 0 : false, !first);
    auto session = (*engine)->new_session();
    const auto out = session->decode(50);
    ASSERT_TRUE(out);
    logits[first ? 0 : 1].assign(out->begin(), out->end());
    (first ? cold : warm) = session->stats().decode_io.misses;
    ASSERT_TRUE((*engine)->save_warm_set(path));
  }
  EXPECT_LT(warm, cold);
  EXPECT_EQ(logits[0], logits[1]);
  std::filesystem::resize_file(path, 10);
  auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  EXPECT_EQ((*engine)->load_warm_set(path).error().code, Code::data_loss);
  EXPECT_EQ((*engine)->save_warm_set(path / "below a file").has_value(), true) << "nothing was used, nothing is written";
  std::filesystem::remove(path);
}

TEST(Streaming, PinnedExpertsStayAndChangeNoBit) {
  const auto path = std::filesystem::temp_directory_path() / ("streaming_test." + std::to_string(::getpid()) + ".pin.warm");
  const Config c = [] {
    auto plan = Engine::open(options());
    return (*plan)->model().config;
  }();
  const int64_t slots = 3 * c.top_k, pinned = slots - c.top_k;
  std::vector<int32_t> ids(128);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 13 + 20);
  {
    auto engine = Engine::open(streamed(slots));
    ASSERT_TRUE(engine) << engine.error().message;
    const auto none = (*engine)->pin_most_used(pinned);
    ASSERT_TRUE(none);
    EXPECT_EQ(*none, 0) << "nothing was used yet";
    auto session = (*engine)->new_session();
    ASSERT_TRUE(session->prefill(ids));
    ASSERT_TRUE((*engine)->save_warm_set(path));
  }
  std::vector<float> with, without;
  for (const bool pin : {false, true}) {
    auto engine = Engine::open(streamed(slots));
    ASSERT_TRUE(engine) << engine.error().message;
    ASSERT_TRUE((*engine)->load_warm_set(path));
    if (pin) {
      const auto refused = (*engine)->pin_most_used(pinned + 1);
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code, Code::resource_exhausted);
      EXPECT_THAT(refused.error().message, HasSubstr("at most " + std::to_string(pinned)));
      const auto kept = (*engine)->pin_most_used(pinned);
      ASSERT_TRUE(kept) << kept.error().message;
      EXPECT_EQ(*kept, pinned);
    }
    auto session = (*engine)->new_session();
    ASSERT_TRUE(session->prefill(ids)) << "more experts a layer than slots are left";
    const auto out = session->decode(50);
    ASSERT_TRUE(out) << out.error().message;
    (pin ? with : without).assign(out->begin(), out->end());
  }
  EXPECT_EQ(with, without);
  auto whole = Engine::open(options());
  ASSERT_TRUE(whole);
  EXPECT_EQ((*whole)->pin_most_used(1).error().code, Code::failed_precondition);
  EXPECT_EQ((*whole)->load_warm_set(path).error().code, Code::failed_precondition);
  std::filesystem::remove(path);
}

TEST(Streaming, RequestsAfterAttentionGiveTheSameBits) {
  EngineOptions o = streamed(20);
  o.stream.prefetch = false;
  EXPECT_EQ(logits_of(o), resident());
}

TEST(Streaming, ABudgetBetweenFloorAndResidentStreams) {
  auto whole = Engine::open(options());
  ASSERT_TRUE(whole);
  const uint64_t full = (*whole)->plan().ram_bytes;
  whole->reset();
  EngineOptions o = options();
  o.model = packed();
  o.ram_budget = full - (2u << 20);
  auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  EXPECT_GT((*engine)->plan().expert_slots, 0);
  EXPECT_LE((*engine)->plan().ram_bytes, o.ram_budget);
  EXPECT_FALSE((*engine)->streaming().empty());
}

TEST(Streaming, RefusesWhatCannotBe) {
  EXPECT_EQ(Engine::open(streamed(1)).error().code, Code::invalid_argument);
  EXPECT_EQ(Engine::open(streamed(100000)).error().code, Code::invalid_argument);
  EngineOptions o = streamed(20);
  o.stream.reader = "tape";
  EXPECT_THAT(Engine::open(o).error().message, HasSubstr("tape"));
  EngineOptions small = options();
  small.ram_budget = 4 << 20;
  EXPECT_THAT(Engine::open(small).error().message, HasSubstr("the smallest budget that works is --ram"));
}

}  // namespace
}  // namespace fth
