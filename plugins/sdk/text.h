#pragma once
// One string of several parts, for messages.

#include <string>
#include <string_view>
#include <type_traits>

#pragma GCC visibility push(hidden)
namespace fth::sdk {

// text("a buffer of ", 12, " bytes")
template <class... T>
std::string text(const T&... part) {
  std::string s;
  const auto add = [&s](const auto& p) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(p)>>) {
      s += std::to_string(p);
    } else {
      s += p;
    }
  };
  (add(part), ...);
  return s;
}

}  // namespace fth::sdk
#pragma GCC visibility pop
