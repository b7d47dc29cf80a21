// Byte counts: overflow, alignment, and the texts that people type.

#include "core/base/bytes.h"

#include <gtest/gtest.h>

namespace fth {
namespace {

TEST(Bytes, CheckedArithmetic) {
  EXPECT_EQ(checked_mul(1u << 31, 2), uint64_t{1} << 32);
  EXPECT_EQ(checked_mul(UINT64_MAX, 1), UINT64_MAX);
  EXPECT_EQ(checked_mul(UINT64_MAX, 2), std::nullopt);
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(checked_add(UINT64_MAX, 0), UINT64_MAX);
  EXPECT_EQ(checked_add(UINT64_MAX, 1), std::nullopt);
}

TEST(Bytes, AlignUp) {
  EXPECT_EQ(align_up(0, 4096), 0u);
  EXPECT_EQ(align_up(1, 4096), 4096u);
  EXPECT_EQ(align_up(4096, 4096), 4096u);
  EXPECT_EQ(align_up(7, 1), 7u);
}

TEST(Bytes, Parse) {
  EXPECT_EQ(parse_bytes("4096"), 4096u);
  EXPECT_EQ(parse_bytes("0"), 0u);
  EXPECT_EQ(parse_bytes("1GiB"), kGiB);
  EXPECT_EQ(parse_bytes("1.5 GiB"), 3 * kGiB / 2);
  EXPECT_EQ(parse_bytes("800MB"), 800'000'000u);
  EXPECT_EQ(parse_bytes("2k"), 2048u);
  EXPECT_EQ(parse_bytes("2kB"), 2000u);
  EXPECT_EQ(parse_bytes("3T"), 3 * 1024 * kGiB);
  EXPECT_EQ(parse_bytes("7B"), 7u);
}

TEST(Bytes, ParseRefuses) {
  for (const char* bad : {"", " ", "GiB", "-1", "-1GiB", "1 G i B", "1GiBs", "1XB", "1e3", "nan", "inf", "0x10", "1,5GiB", "1GiB ",
                          "99999999TiB", "18446744073709551616"})
    EXPECT_EQ(parse_bytes(bad), std::nullopt) << '"' << bad << '"';
}

TEST(Bytes, Format) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(kGiB), "1.00 GiB");
  EXPECT_EQ(format_bytes(UINT64_MAX), "16.00 EiB");
}

}  // namespace
}  // namespace fth
