// Packed models in the engine: the bundled trained model before and after packing, resident and streamed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/engine/engine.h"
#include "core/model/pack.h"
#include "tests/model/files.h"

namespace fth {
namespace {

using testing::HasSubstr;

constexpr const char* kPrompt = "<|im_start|>user\nTranslate to German: The old teacher buys a red car.<|im_end|>\n<|im_start|>assistant\n";

std::filesystem::path bundled() {
  const char* root = std::getenv("FTH_SOURCE_DIR");
  return std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
}

std::filesystem::path packed(const test::TempDir& dir, PackDown down, PackGate gate = PackGate::automatic) {
  PackOptions o;
  o.in = bundled();
  o.out = dir / "packed.gguf";
  o.down = down;
  o.gate = gate;
  const auto report = pack_model(o);
  EXPECT_TRUE(report) << report.error().message;
  return o.out;
}

// streamed: so few slots that experts are read again and again, and every checksum is looked at.
std::unique_ptr<Engine> open(const std::filesystem::path& model, bool streamed) {
  EngineOptions o;
  o.model = model;
  o.cpu_only = true;
  o.registry.n_threads = 2;
  o.n_ctx = 512;
  if (streamed) {
    o.experts = ExpertPlacement::streamed;
    o.stream.slots = 24;
    o.stream.verify = true;
  }
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

// Logits after the prompt and after each of the 12 tokens that follow it, and the text of these.
struct Answer {
  std::vector<std::vector<float>> logits;
  std::string text;
};
Answer answer(const std::filesystem::path& model, bool streamed) {
  Answer out;
  auto engine = open(model, streamed);
  if (!engine) return out;
  auto session = engine->new_session();
  EXPECT_TRUE(session) << session.error().message;
  auto logits = session->prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse));
  std::vector<int32_t> ids;
  while (logits && ids.size() < 12) {
    out.logits.emplace_back(logits->begin(), logits->end());
    ids.push_back(static_cast<int32_t>(std::max_element(logits->begin(), logits->end()) - logits->begin()));
    logits = session->decode(ids.back());
  }
  EXPECT_TRUE(logits) << logits.error().message;
  out.text = engine->tokenizer().decode(ids);
  return out;
}

TEST(PackedEngine, TheSameBitsInEitherOrderResidentAndStreamed) {
  const Answer plain = answer(bundled(), false);
  ASSERT_EQ(plain.logits.size(), 12u);
  EXPECT_THAT(plain.text, HasSubstr("Der alte Lehrer"));
  for (const PackDown down : {PackDown::row_major, PackDown::neuron_major})
    for (const PackGate gate : {PackGate::row_major, PackGate::interleaved}) {
      const test::TempDir dir;
      const auto model = packed(dir, down, gate);
      EXPECT_EQ(answer(model, false).logits, plain.logits);
      EXPECT_EQ(answer(model, true).logits, plain.logits);
    }
}

// Where the file has them, and nowhere else.
TEST(PackedEngine, InterleavedGatesAreUsedWhereTheyLie) {
  const test::TempDir dir;
  const auto path = packed(dir, PackDown::automatic);
  const auto file = load_model(path);
  ASSERT_TRUE(file) << file.error().message;
  for (const bool streamed : {false, true}) {
    const auto engine = open(path, streamed);
    ASSERT_TRUE(engine);
    for (size_t i = 0; i < file->layers.size(); ++i) {
      const Weight &there = file->layers[i].gate, &used = engine->model().layers[i].gate;
      ASSERT_TRUE(there.interleaved);
      EXPECT_TRUE(used.interleaved);
      EXPECT_EQ(used.stride, there.stride);  // that of slabs; a copy has its own
    }
    EXPECT_TRUE(engine->model().layers[0].q.interleaved);
    EXPECT_THAT(engine->repacked(), HasSubstr("interleaved"));
  }
  // Row-major ones of a resident model move, as they always did.
  const test::TempDir other;
  const auto engine = open(packed(other, PackDown::automatic, PackGate::row_major), false);
  ASSERT_TRUE(engine);
  EXPECT_TRUE(engine->model().layers[0].gate.interleaved);
  EXPECT_NE(engine->model().layers[0].gate.stride, file->layers[0].gate.stride);
}

TEST(PackedEngine, ADamagedExpertIsAnErrorAndNoWrongToken) {
  const test::TempDir dir;
  const auto path = packed(dir, PackDown::automatic);
  {
    const auto model = load_model(path);
    ASSERT_TRUE(model) << model.error().message;
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    for (const Layer& l : model->layers)
      for (uint64_t e = 0; e < l.xxh3.size(); ++e) {
        file.seekp(static_cast<std::streamoff>(l.up.offset + e * l.up.stride + 5));
        file.put(static_cast<char>(static_cast<uint8_t>(l.up.data[e * l.up.stride + 5]) ^ 1));
      }
  }
  auto engine = open(path, true);
  ASSERT_TRUE(engine);
  auto session = engine->new_session();
  ASSERT_TRUE(session) << session.error().message;
  const auto logits = session->prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse));
  ASSERT_FALSE(logits);
  EXPECT_EQ(logits.error().code, Code::data_loss) << logits.error().message;
}

}  // namespace
}  // namespace fth
