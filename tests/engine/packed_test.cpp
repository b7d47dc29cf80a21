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

std::filesystem::path packed(const test::TempDir& dir, PackDown down) {
  PackOptions o;
  o.in = bundled();
  o.out = dir / "packed.gguf";
  o.down = down;
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
  for (const PackDown down : {PackDown::row_major, PackDown::neuron_major}) {
    const test::TempDir dir;
    const auto model = packed(dir, down);
    EXPECT_EQ(answer(model, false).logits, plain.logits);
    EXPECT_EQ(answer(model, true).logits, plain.logits);
  }
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
