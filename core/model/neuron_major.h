#pragma once
// The neuron-major order of an expert's down matrix: the bytes of a neuron's weights are adjacent, so that a dead neuron's are never read.
//
// A row-major matrix [E, F] of q4_0 or q8_0 has, in row e, block g with the weights of neurons 32g .. 32g + 31 and one f16 scale. Neuron-major
// keeps every code and every scale and moves them: for g = 0 .. F/32 - 1 a group of E * block_bytes bytes,
//   f16 scale[E]             of blocks (e, g)
//   codes of neuron 32g      of outputs 0 .. E - 1, then of neuron 32g + 1, and so on to 32g + 31
// q8_0: E int8 a neuron. q4_0: E/2 bytes a neuron, of which every 16 hold 32 outputs: byte i the nibble of output i low, that of output 16 + i
// high (the order that q4_0 has inside a block). The total is that of the row-major matrix: E * F/32 * block_bytes.

#include <cstddef>
#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/result.h"

namespace fth {

// Whether a matrix has this order: a q4_0 or q8_0 one whose E and F are positive multiples of 32. unimplemented for other types,
// invalid_argument for other sizes.
Result<> check_neuron_major(DType type, int64_t rows_e, int64_t cols_f);

// Row-major to neuron-major and back, exact both ways. src and dst are rows_e * row_bytes(type, cols_f) bytes, of any alignment, and do not
// overlap; nothing is allocated. Any thread. Errors as check_neuron_major(), before dst is touched.
Result<> to_neuron_major(DType type, int64_t rows_e, int64_t cols_f, const std::byte* src, std::byte* dst);
Result<> from_neuron_major(DType type, int64_t rows_e, int64_t cols_f, const std::byte* src, std::byte* dst);

}  // namespace fth
