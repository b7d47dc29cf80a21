#pragma once
// Element types of tensors. The numbers are the plugin boundary's (plugins/abi/fth_backend.h, FTH_DTYPE_*): both sides use them.
// The quantised block layouts are ggml's, as GGUF files store them; docs/file-format.md writes them out.

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace fth {

enum class DType : uint16_t { f32 = 0, f16 = 1, bf16 = 2, q8_0 = 3, q4_0 = 4, q4_1 = 5, q6_k = 6, q4_k = 7, i32 = 8 };
inline constexpr size_t kDTypeCount = 9;

struct DTypeTraits {
  std::string_view name;
  uint32_t block;        // values per block
  uint32_t block_bytes;  // bytes per block
};

inline constexpr std::array<DTypeTraits, kDTypeCount> kDTypes{{
    {"f32", 1, 4},
    {"f16", 1, 2},
    {"bf16", 1, 2},
    {"q8_0", 32, 34},    // f16 scale, 32 x i8
    {"q4_0", 32, 18},    // f16 scale, 32 nibbles, value = d * (q - 8); low nibbles first, then high
    {"q4_1", 32, 20},    // f16 scale, f16 min, 32 nibbles, value = d * q + m
    {"q6_k", 256, 210},  // 128 low nibbles, 64 high pairs, 16 x i8 scales, f16 super-scale
    {"q4_k", 256, 144},  // f16 d, f16 dmin, 12 bytes of 6-bit scales and mins, 128 nibbles
    {"i32", 1, 4},
}};

constexpr const DTypeTraits& traits(DType t) { return kDTypes[static_cast<size_t>(t)]; }
constexpr std::string_view name(DType t) { return traits(t).name; }

constexpr std::optional<DType> dtype_from_name(std::string_view n) {
  for (size_t i = 0; i < kDTypeCount; ++i)
    if (kDTypes[i].name == n) return static_cast<DType>(i);
  return std::nullopt;
}

// Bytes of a row of `k` values; `k` must be a multiple of the block.
constexpr uint64_t row_bytes(DType t, int64_t k) { return static_cast<uint64_t>(k) / traits(t).block * traits(t).block_bytes; }

}  // namespace fth
