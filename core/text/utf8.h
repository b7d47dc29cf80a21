#pragma once
// Reads UTF-8 one step at a time, as the Unicode standard defines well-formedness (chapter 3, table 3-7): no overlong forms, no surrogates,
// nothing above U+10FFFF.

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace fth {

enum class Utf8 : uint8_t {
  character,  // a well-formed character
  invalid,    // bytes that begin no character, whatever follows: the maximal subpart, which one U+FFFD replaces
  cut,        // the text ends inside what may still become a character
};

struct Utf8Step {
  Utf8 kind;
  size_t bytes;  // 1 to 4
};

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// What `text`, which is not empty, begins with.
constexpr Utf8Step utf8_step(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Utf8::character, 1};
  size_t length = 0;
  uint8_t low = 0x80, high = 0xBF;  // of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8::invalid, 1};
  }
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8::cut, i};
    if (byte(i) < low || byte(i) > high) return {Utf8::invalid, i};
    low = 0x80, high = 0xBF;
  }
  return {Utf8::character, length};
}

}  // namespace fth
