// The element types, and that their numbers are the boundary's.

#include "core/base/dtype.h"

#include <gtest/gtest.h>

#include "plugins/abi/fth_backend.h"

namespace fth {
namespace {

// Both sides of the boundary use the same numbers.
static_assert(static_cast<int>(DType::f32) == FTH_DTYPE_F32 && static_cast<int>(DType::f16) == FTH_DTYPE_F16);
static_assert(static_cast<int>(DType::bf16) == FTH_DTYPE_BF16 && static_cast<int>(DType::q8_0) == FTH_DTYPE_Q8_0);
static_assert(static_cast<int>(DType::q4_0) == FTH_DTYPE_Q4_0 && static_cast<int>(DType::q4_1) == FTH_DTYPE_Q4_1);
static_assert(static_cast<int>(DType::q6_k) == FTH_DTYPE_Q6_K && static_cast<int>(DType::q4_k) == FTH_DTYPE_Q4_K);
static_assert(static_cast<int>(DType::i32) == FTH_DTYPE_I32);

TEST(DType, NamesGoBothWays) {
  for (size_t i = 0; i < kDTypeCount; ++i) {
    const DType t = static_cast<DType>(i);
    EXPECT_EQ(dtype_from_name(name(t)), t);
  }
  EXPECT_EQ(dtype_from_name("q5_0"), std::nullopt);
  EXPECT_EQ(dtype_from_name(""), std::nullopt);
}

TEST(DType, RowBytes) {
  EXPECT_EQ(row_bytes(DType::f32, 3), 12u);
  EXPECT_EQ(row_bytes(DType::q8_0, 64), 68u);
  EXPECT_EQ(row_bytes(DType::q4_0, 2560), 1440u);
  EXPECT_EQ(row_bytes(DType::q6_k, 256), 210u);
  EXPECT_EQ(row_bytes(DType::q4_k, 512), 288u);
}

}  // namespace
}  // namespace fth
