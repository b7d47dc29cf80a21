#pragma once
// The tokens of a GGUF file, checked: their texts and types, the index from text to id, the special tokens among a text's characters.
// Owns copies: the file may be closed. Immutable after read().

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth {

class Gguf;

// tokenizer.ggml.token_type
enum class TokenType : uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };

class Vocabulary {
 public:
  // data_loss: tokens or token types missing, empty, of a wrong element type, too few types, a type outside 1..6, a byte token that is not
  // <0xHH>, a special token longer than 1024 bytes. Two tokens of one text are accepted: both decode, the first is found.
  static Result<Vocabulary> read(const Gguf& file);

  int32_t size() const { return static_cast<int32_t>(types_.size()); }
  bool contains(int32_t id) const { return id >= 0 && id < size(); }
  std::string_view text(int32_t id) const {  // as the file has it
    const auto i = static_cast<size_t>(id);
    return std::string_view(texts_).substr(begins_[i], begins_[i + 1] - begins_[i]);
  }
  TokenType type(int32_t id) const { return types_[static_cast<size_t>(id)]; }
  int32_t find(std::string_view text) const;  // -1: none
  // The token of one byte: its character of the byte alphabet, or else <0xHH>. -1: none.
  int32_t byte_token(uint8_t byte) const;

 private:
  void index();
  std::string texts_;             // one after the other
  std::vector<uint64_t> begins_;  // [size + 1]
  std::vector<TokenType> types_;
  struct Slot {
    uint32_t tag = 0;  // upper half of the hash: spares most comparisons
    int32_t id = -1;
  };
  std::vector<Slot> slots_;  // open addressing, a power of two
  uint64_t seed_ = 0;
};

// Finds special tokens in text: the leftmost, and of those that begin there the longest, as Hugging Face's tokenizers do.
// Time: the text's length times the longest special token (at most 1024 bytes), however many there are.
class SpecialTokenIndex {
 public:
  SpecialTokenIndex(const Vocabulary& vocabulary, std::vector<int32_t> ids);
  struct Match {
    size_t begin = 0, bytes = 0;  // begin is text.size() when there is none
    int32_t id = -1;
  };
  Match next(const Vocabulary& vocabulary, std::string_view text, size_t from) const;

 private:
  Match longest_at(const Vocabulary& vocabulary, std::string_view text, size_t begin) const;
  std::vector<int32_t> sorted_;           // by text
  std::array<uint32_t, 257> by_first_{};  // sorted_[by_first_[b] .. by_first_[b + 1]) begin with byte b
};

}  // namespace fth
