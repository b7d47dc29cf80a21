#pragma once
// The interleaved order of a weight matrix: sixteen rows lie together, so that a load has four codes of each of eight rows or of all sixteen, and products
// need no bringing together of rows. Memory is read in one direction.
//
// A row-major matrix [M, K] has, in row r, block g with the weights of columns 32g .. 32g + 31. Interleaved keeps every byte of every block and moves it: rows
// 16p .. 16p + 15 become panel p, in the bytes where those rows lay; for g = 0 .. K/32 - 1 it has a group of 16 * block_bytes bytes,
//   f16 scale[16]                        of blocks (16p + r, g)
//   f16 minimum[16]                      of the same, q4_1 only
//   bytes[16][4], for each i = 0 .. 3    bytes 4i .. 4i + 3 of the codes of blocks (16p + r, g)
// The low nibbles of a row's four bytes are codes 4i .. 4i + 3 of its group, the high ones codes 16 + 4i .. 16 + 4i + 3.

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/result.h"

namespace fth {

inline constexpr int64_t kInterleavedRows = 16;

// Whether a matrix has this order: a q4_0 or q4_1 one of a positive multiple of 16 rows and of 32 columns. unimplemented for other types, invalid_argument for other sizes.
Result<> check_interleaved(DType type, int64_t rows, int64_t cols);

// Row-major to interleaved and back, exact both ways. src and dst are rows * row_bytes(type, cols) bytes, of any alignment, and do not overlap; nothing is
// allocated. Panels are independent: any of them may be converted by itself. Any thread. Errors as check_interleaved(), before dst is touched.
Result<> to_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst);
Result<> from_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst);

}  // namespace fth
