#pragma once
// Byte counts: checked arithmetic, alignment, and their text form. Sizes are uint64_t everywhere.

#include <charconv>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

namespace fth {

inline constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB;

// Empty on overflow.
constexpr std::optional<uint64_t> checked_mul(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_mul_overflow(a, b, &r)) return std::nullopt;
  return r;
}
constexpr std::optional<uint64_t> checked_add(uint64_t a, uint64_t b) {
  uint64_t r = 0;
  if (__builtin_add_overflow(a, b, &r)) return std::nullopt;
  return r;
}

// The next multiple of `alignment`, a power of two. The caller keeps n below 2^64 - alignment.
constexpr uint64_t align_up(uint64_t n, uint64_t alignment) { return (n + alignment - 1) & ~(alignment - 1); }

// 1536 -> "1.50 KiB"
inline std::string format_bytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024.0 && unit + 1 < std::size(kUnits)) value /= 1024.0, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return text;
}

// "1GiB", "800MB", "1.5 GiB", "4096": KiB, MiB, GiB, TiB are powers of 1024; kB, MB, GB, TB of 1000; K, M, G, T mean KiB... Empty if
// it is anything else, negative, or too large for 64 bits.
inline std::optional<uint64_t> parse_bytes(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, std::chars_format::fixed);
  if (error != std::errc{} || !(value >= 0)) return std::nullopt;
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  double scale = 1;
  if (!unit.empty() && unit != "B" && unit != "b") {
    constexpr std::string_view kLetters = "kmgt";
    const char letter = static_cast<char>(unit.front() | 0x20);
    const size_t power = kLetters.find(letter);
    if (power == std::string_view::npos) return std::nullopt;
    const std::string_view rest = unit.substr(1);
    double base = 0;
    if (rest.empty() || rest == "iB" || rest == "ib" || rest == "i") base = 1024;
    if (rest == "B" || rest == "b") base = 1000;
    if (base == 0) return std::nullopt;
    for (size_t i = 0; i <= power; ++i) scale *= base;
  }
  const double bytes = value * scale;
  if (bytes >= 18446744073709551615.0) return std::nullopt;
  return static_cast<uint64_t>(bytes);
}

}  // namespace fth
