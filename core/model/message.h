#pragma once
// Builds error messages from untrusted text: every name that a file supplied passes through in_quotes(), so that a message is short, one line and printable.

#include <concepts>
#include <cstdio>
#include <string>
#include <string_view>

namespace fth {

// 'text', at most 96 bytes of it; bytes outside printable ASCII as \xNN.
inline std::string in_quotes(std::string_view text) {
  constexpr size_t kLongest = 96;
  constexpr const char* kHex = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  if (text.size() > kLongest) out += "...";
  return out += "'";
}

namespace detail {
inline void put(std::string& out, std::string_view text) { out += text; }
inline void put(std::string& out, std::integral auto number) { out += std::to_string(number); }
inline void put(std::string& out, double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", number);
  out += text;
}
}  // namespace detail

// "key ", 3, " of ", 4 -> "key 3 of 4"
template <class... Parts>
std::string message(const Parts&... parts) {
  std::string out;
  (detail::put(out, parts), ...);
  return out;
}

}  // namespace fth
