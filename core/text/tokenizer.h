#pragma once
// Byte-level BPE as GPT-2 introduced it, from a GGUF's vocabulary: text to ids and back. Pre-tokenizers: qwen2, llama-bpe (Llama 3), smollm,
// gpt-2. Immutable after construction; callable from any thread.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth {

class Gguf;

enum class SpecialTokens { parse, as_text };  // is "<|im_start|>" in the text the control token, or thirteen characters?

class Tokenizer {
 public:
  // Reads tokenizer.ggml.*. data_loss for a malformed vocabulary (merges out of range, ids out of range, too few token types ...),
  // unimplemented for a tokenizer model or pre-tokenizer that is not known; the message lists those that are.
  static Result<Tokenizer> from_gguf(const Gguf& file);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Appends no BOS: see adds_bos(). Invalid UTF-8 is encoded byte by byte, so that decode(encode(s)) == s for every s. The exception: a byte
  // that the vocabulary has no token for (SmolLM2 lacks 21) becomes the unknown token; a file with neither is refused.
  std::vector<int32_t> encode(std::string_view text, SpecialTokens special) const;
  // The bytes of one token; control tokens give their text only when asked. Ids out of range give "".
  std::string piece(int32_t id, bool control = false) const;
  std::string decode(std::span<const int32_t> ids, bool control = false) const;

  int32_t size() const;
  int32_t bos() const;  // -1: none
  int32_t eos() const;  // -1: none
  bool adds_bos() const;
  bool is_end(int32_t id) const;               // eos, eot, eom and their like: generation stops here
  int32_t find(std::string_view token) const;  // id of exactly this token text (as written, e.g. "<|im_end|>"), or -1
  std::string_view pre_tokenizer() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Turns a stream of tokens into a stream of valid UTF-8: bytes of an unfinished character wait for the rest; bytes that can never become one turn
// into U+FFFD. Text that may be the beginning of a stop string waits too. The stop string that is complete first counts; of those that are
// complete at once, the one that begins first. The tokenizer outlives this. One thread at a time.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, std::vector<std::string> stops);
  // The text that is now certain. After a stop string was met: stopped(), and the text ends just before it.
  std::string push(int32_t id);
  std::string finish();  // what was held back
  bool stopped() const { return stopped_; }

 private:
  std::string release(bool last);
  const Tokenizer* tokenizer_;
  std::vector<std::string> stops_;
  std::string bytes_;  // not yet complete UTF-8
  std::string held_;   // complete, may begin a stop string
  bool stopped_ = false;
};

}  // namespace fth
