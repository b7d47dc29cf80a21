// Random damage: whatever bytes are flipped, cut or repeated, loading ends in a model or a typed error, and what loads can be read to its last byte.

#include <gtest/gtest.h>

#include <random>

#include "tests/model/load.h"
#include "tests/model/tiny_models.h"
#include "tests/model/touch.h"

namespace fth::test {
namespace {

TEST(Mutation, DamagedModelsLoadOrFailCleanly) {
  TinyShape shape;
  shape.n_layer = 2;
  shape.n_vocab = 32;
  shape.n_expert = 2;
  GgufWriter w = tiny_smallthinker(shape);
  w.texts("tokenizer.ggml.tokens", {"a", "b", "c"}).array<int32_t>("tokenizer.ggml.token_type", MetaType::i32, {1, 1, 3});
  const Bytes original = w.bytes();
  const size_t directory = original.size() - [&] {
    size_t data = 0;
    for (const auto& t : w.tensors) data += (t.bytes.size() + 31) / 32 * 32;
    return data;
  }();
  std::mt19937 random(20250721);
  const auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  int loaded = 0, refused = 0;
  for (int round = 0; round < 6000; ++round) {
    Bytes file = original;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      const size_t at = below(round % 4 == 0 ? file.size() : std::min(directory, file.size()));
      switch (below(5)) {
        case 0: file[at] ^= static_cast<std::byte>(1u << below(8)); break;
        case 1: file[at] = static_cast<std::byte>(below(256)); break;
        case 2: file[at] = std::byte{0xff}; break;
        case 3:
          file.erase(file.begin() + static_cast<ptrdiff_t>(at),
                     file.begin() + static_cast<ptrdiff_t>(std::min(at + 1 + below(16), file.size())));
          break;
        default: {
          const Bytes again(file.begin() + static_cast<ptrdiff_t>(at),
                            file.begin() + static_cast<ptrdiff_t>(std::min(at + 1 + below(16), file.size())));
          file.insert(file.begin() + static_cast<ptrdiff_t>(at), again.begin(), again.end());
        }
      }
      if (file.empty()) file.push_back(std::byte{});
    }
    auto g = Gguf::parse(file, "damaged");
    if (!g) {
      ASSERT_FALSE(g.error().message.empty());
      ++refused;
      continue;
    }
    touch(*g);
    auto model = load_model(std::move(*g));
    if (model) {
      touch(*model);
      ++loaded;
    } else {
      ASSERT_FALSE(model.error().message.empty());
      ++refused;
    }
  }
  // Both happen: the test would prove nothing if every file failed at its first byte.
  EXPECT_GT(loaded, 100);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace fth::test
