#pragma once
// GPT-2's byte alphabet: every byte has a printable character, so that a vocabulary is text. Bytes that are printable in Latin-1 stand for
// themselves; the other 68 take U+0100, U+0101 ... in order.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "core/text/utf8.h"

namespace fth {

inline constexpr std::array<uint16_t, 256> kByteToChar = [] {
  std::array<uint16_t, 256> table{};
  uint16_t next = 0x100;
  for (uint16_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    table[b] = printable ? b : next++;
  }
  return table;
}();

inline constexpr std::array<int16_t, 0x144> kCharToByte = [] {
  std::array<int16_t, 0x144> table{};
  table.fill(-1);
  for (int16_t b = 0; b < 256; ++b) table[kByteToChar[static_cast<size_t>(b)]] = b;
  return table;
}();

inline void append_as_alphabet(std::string& out, uint8_t byte) {
  const uint16_t c = kByteToChar[byte];
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

// The bytes that `token` stands for; the token as it is when some character is not of the alphabet (as Hugging Face's decoder does).
inline std::string from_alphabet(std::string_view token) {
  std::string out;
  for (std::string_view rest = token; !rest.empty();) {
    const Utf8Step step = utf8_step(rest);
    if (step.kind != Utf8::character || step.bytes > 2) return std::string(token);
    size_t c = static_cast<uint8_t>(rest[0]);
    if (step.bytes == 2) c = (c & 0x1F) << 6 | (static_cast<uint8_t>(rest[1]) & 0x3F);
    if (c >= kCharToByte.size() || kCharToByte[c] < 0) return std::string(token);
    out += static_cast<char>(kCharToByte[c]);
    rest.remove_prefix(step.bytes);
  }
  return out;
}

// The byte of "<0xHH>", or -1.
constexpr int byte_value(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  int value = 0;
  for (const char c : text.substr(3, 2)) {
    const bool digit = c >= '0' && c <= '9', upper = c >= 'A' && c <= 'F', lower = c >= 'a' && c <= 'f';
    if (!digit && !upper && !lower) return -1;
    value = value * 16 + (digit ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return value;
}

}  // namespace fth
