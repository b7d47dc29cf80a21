#pragma once
// Code points of UTF-8 text, as Python's str counts them. A malformed byte counts as one code point and passes through unchanged.

#include <cstddef>
#include <string>
#include <string_view>

namespace fth::jinja {

struct CodePoint {
  char32_t value;
  size_t bytes;
};

constexpr bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

// The code point at byte i < text.size().
constexpr CodePoint decode(std::string_view text, size_t i) {
  const auto lead = static_cast<unsigned char>(text[i]);
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead >= 0xF0 && lead < 0xF5 ? 4 : lead >= 0xE0 && lead < 0xF0 ? 3 : lead >= 0xC2 && lead < 0xE0 ? 2 : 1;
  if (bytes == 1 || bytes > text.size() - i) return {lead, 1};
  char32_t value = lead & (0x7Fu >> bytes);
  for (size_t k = 1; k < bytes; ++k) {
    if (!is_continuation(text[i + k])) return {lead, 1};
    value = (value << 6) | (static_cast<unsigned char>(text[i + k]) & 0x3Fu);
  }
  return {value, bytes};
}

// The code point that ends at byte `end` > 0.
constexpr CodePoint decode_before(std::string_view text, size_t end) {
  for (size_t bytes = 1; bytes <= 4 && bytes <= end; ++bytes) {
    if (is_continuation(text[end - bytes])) continue;
    const CodePoint point = decode(text, end - bytes);
    if (point.bytes == bytes) return point;
    break;
  }
  return {static_cast<unsigned char>(text[end - 1]), 1};
}

constexpr size_t count_code_points(std::string_view text) {
  size_t n = 0;
  for (size_t i = 0; i < text.size(); i += decode(text, i).bytes) ++n;
  return n;
}

inline void append_utf8(std::string& out, char32_t c) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | (c >> 6));
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | (c >> 12));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | (c >> 18));
    put(0x80 | ((c >> 12) & 0x3F));
    put(0x80 | ((c >> 6) & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

// What str.isspace, str.strip and \s of Python's re count as white space.
constexpr bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

constexpr size_t skip_space(std::string_view text, size_t i) {
  while (i < text.size()) {
    const CodePoint c = decode(text, i);
    if (!is_space(c.value)) break;
    i += c.bytes;
  }
  return i;
}

constexpr std::string_view trim_end(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = decode_before(text, text.size());
    if (!is_space(c.value)) break;
    text.remove_suffix(c.bytes);
  }
  return text;
}

// ASCII only: case mappings beyond it need tables that chat templates do not.
constexpr char to_upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 32) : c; }
constexpr char to_lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
constexpr bool is_alpha(char c) { return to_lower(c) >= 'a' && to_lower(c) <= 'z'; }
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace fth::jinja
