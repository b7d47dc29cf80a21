// Which of the sizes that a device lists its products use, and how they are cut into tiles. No device: the lists are made here.

#include <gtest/gtest.h>

#include "backends/vulkan/coop.h"

namespace fth::vulkan {
namespace {

CoopSize size(uint32_t m, uint32_t n, uint32_t k) {
  return {.m = m, .n = n, .k = k, .f16_factors = true, .f32_sums = true, .subgroup_scope = true, .saturating = false};
}

TEST(CoopChoice, TakesF16IntoF32InSubgroupsOnly) {
  EXPECT_FALSE(choose_coop_size({}));
  std::vector<CoopSize> sizes(6, size(16, 16, 16));
  sizes[0].f16_factors = false;
  sizes[1].f32_sums = false;
  sizes[2].subgroup_scope = false;
  sizes[3].saturating = true;
  sizes[4].k = 64;  // beyond a piece of k
  sizes[5].m = 12;
  EXPECT_FALSE(choose_coop_size(sizes));
  sizes.push_back(size(8, 8, 8));
  ASSERT_TRUE(choose_coop_size(sizes));
  EXPECT_EQ(choose_coop_size(sizes)->m, 8u);
}

TEST(CoopChoice, PrefersCubesOf16ThenTheLargest) {
  const std::vector<CoopSize> with{size(16, 8, 8), size(32, 32, 16), size(16, 16, 16), size(16, 8, 16)};
  EXPECT_EQ(choose_coop_size(with)->n, 16u);
  EXPECT_EQ(choose_coop_size(with)->m, 16u);
  const std::vector<CoopSize> without{size(16, 8, 8), size(16, 8, 16), size(8, 8, 16)};
  EXPECT_EQ(choose_coop_size(without)->m, 16u);
  EXPECT_EQ(choose_coop_size(without)->k, 16u);
}

TEST(CoopChoice, QuantisedWeightsAlone) {
  for (const DType type : {DType::q8_0, DType::q4_0, DType::q4_1, DType::q4_k, DType::q6_k}) EXPECT_TRUE(coop_type(type));
  for (const DType type : {DType::f32, DType::f16, DType::bf16}) EXPECT_FALSE(coop_type(type));
}

TEST(CoopChoice, TilesFitSharedMemoryOrAreRefused) {
  for (const uint32_t side : {8u, 16u, 32u})
    for (const uint64_t shared : {4096u, 16384u, 32768u, 49152u, 65536u})
      for (const uint32_t subgroups : {1u, 3u, 4u, 32u})
        for (const uint64_t tokens : {9u, 16u, 17u, 40u, 512u})
          for (const uint64_t rows : {1u, 64u, 4096u, 150000u})
            for (const DType type : {DType::q4_0, DType::q6_k}) {
              const Coop coop{.m = side, .n = side, .k = side, .lanes = 32, .subgroups = subgroups, .shared_bytes = shared};
              const auto t = coop_tiles(coop, type, tokens, rows);
              if (!t) {
                EXPECT_GE(side * (type == DType::q6_k ? 2 : 1), shared / 512) << side << " in " << shared;
                continue;
              }
              EXPECT_LE(t->shared_bytes(coop), shared);
              EXPECT_LE(t->token_groups * t->row_groups, subgroups);
              EXPECT_LE(t->tokens(coop), 4 * side);  // what rows of x are padded to
              EXPECT_EQ(t->chunk % side, 0u);
            }
}

TEST(CoopChoice, LargeProductsGetWholeWorkgroups) {
  const Coop coop{.m = 16, .n = 16, .k = 16, .lanes = 32, .subgroups = 16, .shared_bytes = 49152};
  const auto t = coop_tiles(coop, DType::q4_0, 512, 4096);
  ASSERT_TRUE(t);
  EXPECT_EQ(t->threads(coop), 128u);
  EXPECT_EQ(t->tokens(coop), 64u);
  EXPECT_EQ(t->rows(coop), 64u);
  EXPECT_EQ(coop_tiles(coop, DType::q4_0, 16, 4096)->tokens(coop), 16u);
}

}  // namespace
}  // namespace fth::vulkan
