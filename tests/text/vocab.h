#pragma once
// A small vocabulary for tests: the byte alphabet, some merges, control, user-defined and unused tokens. Every part can be made wrong.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/model/gguf.h"
#include "core/text/byte_alphabet.h"
#include "core/text/tokenizer.h"
#include "tests/model/gguf_writer.h"

namespace fth::test {

struct Vocab {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
  GgufWriter writer;

  Vocab() {
    for (int byte = 0; byte < 256; ++byte) {
      std::string token;
      append_as_alphabet(token, static_cast<uint8_t>(byte));
      add(std::move(token));
    }
    for (const char* merge : {"a a", "aa aa", "aaaa aaaa", "h e", "l l", "he ll", "hell o", "Ġ w", "o r", "l d", "Ġw or", "Ġwor ld", "1 2",
                              "12 3", "Ġ Ġ", "Ċ Ċ", "ð Ł"})
      merge_of(merge);
    add("<|endoftext|>", 3);
    add("<|im_start|>", 3);
    add("<|im_end|>", 3);
    add("<think>", 4);
    add("<think>>", 4);
    add("[PAD0]", 5);
    writer.text("general.architecture", "llama").text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2");
    writer.u32("tokenizer.ggml.bos_token_id", id("<|endoftext|>")).u32("tokenizer.ggml.eos_token_id", id("<|im_end|>"));
    writer.boolean("tokenizer.ggml.add_bos_token", false);
  }

  void add(std::string token, int32_t type = 1) {
    tokens.push_back(std::move(token));
    types.push_back(type);
  }
  void merge_of(const std::string& merge) {
    merges.push_back(merge);
    std::string product = merge;
    product.erase(product.find(' '), 1);
    if (std::find(tokens.begin(), tokens.end(), product) == tokens.end()) add(product);
  }
  uint32_t id(std::string_view token) const {
    return static_cast<uint32_t>(std::find(tokens.begin(), tokens.end(), token) - tokens.begin());
  }

  // With the arrays as they stand.
  Bytes bytes() {
    writer.texts("tokenizer.ggml.tokens", tokens)
        .array("tokenizer.ggml.token_type", MetaType::i32, types)
        .texts("tokenizer.ggml.merges", merges);
    return writer.bytes();
  }
};

// Of a file's bytes; the tokenizer needs none of them afterwards.
inline Result<Tokenizer> load(const Bytes& file) {
  FTH_ASSIGN_OR_RETURN(const Gguf gguf, Gguf::parse(file, "vocab.gguf"));
  return Tokenizer::from_gguf(gguf);
}
inline Result<Tokenizer> load(Vocab vocab, std::string_view pre = "qwen2") {
  vocab.writer.text("tokenizer.ggml.pre", pre);
  return load(vocab.bytes());
}

}  // namespace fth::test
