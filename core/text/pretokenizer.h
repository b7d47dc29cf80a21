#pragma once
// Cuts text into the pieces that BPE merges within, by the regular expressions of the model families.
// Immutable after make(); callable from any thread.

#include <memory>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth {

class PreTokenizer {
 public:
  // `name` is tokenizer.ggml.pre. unimplemented, with the list of those that are known, for any other.
  static Result<PreTokenizer> make(std::string_view name);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  // Appends the pieces of `text`, in order; together they are the text. Each byte that is not part of a UTF-8 character is a piece.
  // Linear in the text's length.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

  std::string_view name() const;  // as the file wrote it
  // Llama 3: a piece that is a token is that token, whatever the merges make of it; and a BOS unless the file says otherwise.
  bool whole_piece_first() const;
  bool adds_bos_by_default() const;

 private:
  struct Impl;
  explicit PreTokenizer(std::unique_ptr<const Impl> impl);
  void split_valid(std::string_view text, std::vector<std::string_view>& pieces) const;
  std::unique_ptr<const Impl> impl_;
};

}  // namespace fth
