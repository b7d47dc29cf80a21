#pragma once
// The interleaved order of a weight matrix: sixteen rows lie together, so that a load has four codes of each of eight rows or of all sixteen, and products
// need no bringing together of rows. Memory is read in one direction.
//
// Rows 16p .. 16p + 15 of a row-major matrix become panel p, in the bytes where those rows lay. Nothing is rounded again. A panel has, of block after block along
// the columns, for rows r = 0 .. 15 and j = 0 .. 3:
//   q4_0, blocks of 32
//     f16 scale[16]
//     nibbles[4][16][4]     byte (i, r, j): low, code 4i + j; high, code 16 + 4i + j
//   q4_1, blocks of 32
//     f16 scale[16]
//     f16 minimum[16]
//     nibbles[4][16][4]     as q4_0's
//   q8_0, blocks of 32
//     f16 scale[16]
//     int8 codes[8][16][4]  (i, r, j): code 4i + j
//   q6_k, blocks of 256 in 8 groups of 32
//     f16 d[16]
//     int8 scale[16][16]    (s, r): of codes 16s .. 16s + 15
//     nibbles[8][4][16][4]  group after group as in q4_0, the lower four bits of each code
//     pairs[8][2][16][4]    byte (g, h, r, j), bits 2i and 2i + 1: the upper two bits of code 16h + 4i + j of group g

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/result.h"

namespace fth {

inline constexpr int64_t kInterleavedRows = 16;

// Whether a matrix has this order: a q4_0, q4_1, q8_0 or q6_k one of a positive multiple of 16 rows and of 32 or 256 columns. unimplemented for other types, invalid_argument
// for other sizes.
Result<> check_interleaved(DType type, int64_t rows, int64_t cols);

// Row-major to interleaved and back, exact both ways. src and dst are rows * row_bytes(type, cols) bytes, of any alignment, and do not overlap; nothing is
// allocated. Panels are independent: any of them may be converted by itself. Any thread. Errors as check_interleaved(), before dst is touched.
Result<> to_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst);
Result<> from_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst);

}  // namespace fth
