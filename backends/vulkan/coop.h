#pragma once
// Products in cooperative matrices (VK_KHR_cooperative_matrix): which of the sizes that a device lists, and how a product is cut into them. No Vulkan
// here: tests ask with lists of their own.

#include <cstdint>
#include <optional>
#include <span>

#include "core/base/dtype.h"

namespace fth::vulkan {

// One line of the device's list: an m x k matrix times a k x n one, added to an m x n one.
struct CoopSize {
  uint32_t m = 0, n = 0, k = 0;
  bool f16_factors = false, f32_sums = false, subgroup_scope = false, saturating = false;
};

// What a device's products use. None: m is 0.
struct Coop {
  uint32_t m = 0, n = 0, k = 0;  // of a tile: tokens, rows of weights, values
  uint32_t lanes = 0;            // of a subgroup
  uint32_t subgroups = 1;        // of a workgroup, at most
  uint64_t shared_bytes = 0;     // of a workgroup, at most
  explicit operator bool() const { return m > 0; }
};

// How a workgroup is laid out, see shaders/matmul_coop.comp.
struct CoopTiles {
  uint32_t token_tiles = 1, row_tiles = 1, token_groups = 1, row_groups = 1, chunk = 64;
  uint32_t tokens(const Coop& c) const { return c.m * token_tiles * token_groups; }
  uint32_t rows(const Coop& c) const { return c.n * row_tiles * row_groups; }
  uint32_t threads(const Coop& c) const { return c.lanes * token_groups * row_groups; }
  uint64_t shared_bytes(const Coop& c) const {
    return uint64_t{2} * (tokens(c) + rows(c)) * (chunk + 8) + uint64_t{4} * token_groups * row_groups * c.m * c.n;
  }
};

// Tokens of a bucket from which on a product is made of tiles; up to it weights are read once anyway.
inline constexpr int64_t kCoopTokens = 9;

// Of f16 factors and f32 sums in a subgroup, each side 8, 16 or 32: 16 x 16 x 16 if it is there, else the largest. Empty: none is of use.
std::optional<CoopSize> choose_coop_size(std::span<const CoopSize> sizes);

// Are weights of this type multiplied in tiles? Quantised ones are; f32, f16 and bf16 would lose what f16 cannot hold.
bool coop_type(DType type);

// Empty where the tiles do not fit in shared memory.
std::optional<CoopTiles> coop_tiles(const Coop& coop, DType type, uint64_t tokens, uint64_t rows);

}  // namespace fth::vulkan
