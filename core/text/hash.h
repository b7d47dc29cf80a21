#pragma once
// Seeded hashing for tables whose keys come from files and prompts: a file cannot be built to collide without knowing the seed.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace fth {

// Multiplies to 128 bits and folds the halves.
constexpr uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

inline uint64_t hash(uint64_t value, uint64_t seed) { return mix(value ^ seed, 0x9E3779B97F4A7C15u ^ (seed >> 1)); }

inline uint64_t hash(std::string_view text, uint64_t seed) {
  uint64_t h = hash(text.size(), seed);
  while (!text.empty()) {
    uint64_t word = 0;
    const size_t n = text.size() < 8 ? text.size() : 8;
    std::memcpy(&word, text.data(), n);
    h = hash(h ^ word, seed);
    text.remove_prefix(n);
  }
  return h;
}

// Differs between runs; no result depends on it. The address is that of anything of the caller's (address space randomisation).
inline uint64_t table_seed(const void* address) {
  const auto now = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  return mix(now ^ 0xD6E8FEB86659FD93u, reinterpret_cast<uintptr_t>(address) ^ 0xA0761D6478BD642Fu) | 1u;
}

}  // namespace fth
