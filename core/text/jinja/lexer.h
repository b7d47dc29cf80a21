#pragma once
// Cuts a template into text and the tokens of its tags, with the white space control of trim_blocks and lstrip_blocks applied.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth::jinja {

enum class TokenKind : uint8_t { text, block_begin, block_end, variable_begin, variable_end, name, string, integer, floating, symbol, end };

struct Token {
  TokenKind kind;
  std::string text;  // of a string: its value, escapes resolved
  int line = 1, column = 1;
};

// "chat template: line 3, column 7: what"; columns count bytes from 1.
tl::unexpected<Error> fail_at(Code code, int line, int column, const std::string& what);

// The last token is `end`. data_loss for an unclosed tag, comment, string or bracket and for a character that starts nothing.
Result<std::vector<Token>> tokenize(std::string_view source);

}  // namespace fth::jinja
