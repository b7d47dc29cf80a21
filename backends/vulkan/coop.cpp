// The choice of sizes for products in cooperative matrices.

#include "backends/vulkan/coop.h"

#include <algorithm>

namespace fth::vulkan {

std::optional<CoopSize> choose_coop_size(std::span<const CoopSize> sizes) {
  const auto side = [](uint32_t v) { return v == 8 || v == 16 || v == 32; };
  const auto worth = [](const CoopSize& s) { return s.m == 16 && s.n == 16 && s.k == 16 ? 1u << 16 : s.m * s.n * s.k; };
  std::optional<CoopSize> best;
  for (const CoopSize& s : sizes) {
    if (!s.f16_factors || !s.f32_sums || !s.subgroup_scope || s.saturating || !side(s.m) || !side(s.n) || !side(s.k)) continue;
    if (!best || worth(s) > worth(*best)) best = s;
  }
  return best;
}

bool coop_type(DType type) {
  return type == DType::q8_0 || type == DType::q4_0 || type == DType::q4_1 || type == DType::q4_k || type == DType::q6_k;
}

std::optional<CoopTiles> coop_tiles(const Coop& coop, DType type, uint64_t tokens, uint64_t rows) {
  constexpr uint64_t kBusy = 64;  // workgroups
  const uint64_t tiles_of_tokens = (tokens + coop.m - 1) / coop.m;
  const uint32_t groups = coop.subgroups >= 4 ? 4 : 1;
  CoopTiles t;
  t.chunk = type == DType::q6_k ? 128 : 64;  // its units of 8 values span so many
  t.token_tiles = tiles_of_tokens >= 2 ? 2 : 1;
  t.row_tiles = 2;
  t.token_groups = groups == 4 && tiles_of_tokens > 2 ? 2 : 1;
  t.row_groups = groups / t.token_groups;
  const auto workgroups = [&] { return ((tokens + t.tokens(coop) - 1) / t.tokens(coop)) * ((rows + t.rows(coop) - 1) / t.rows(coop)); };
  if (workgroups() < kBusy) t.row_tiles = 1;
  for (uint32_t* const part : {&t.row_tiles, &t.token_tiles, &t.row_groups, &t.token_groups})
    if (t.shared_bytes(coop) > coop.shared_bytes) *part = 1;
  if (t.shared_bytes(coop) > coop.shared_bytes) return std::nullopt;
  return t;
}

}  // namespace fth::vulkan
