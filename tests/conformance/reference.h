#pragma once
// What the ops mean, slowly and obviously: plugins/abi/fth_ops.def in double, one loop per index, no blocking, no shared code with any backend.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "tests/conformance/problem.h"

namespace fth::conformance {

// A row of k values by the definition of its type (docs/file-format.md).
std::vector<double> dequantize(uint16_t dtype, int64_t k, const std::byte* row);

double f16_value(uint16_t bits);
uint16_t f16_bits(double value);  // nearest, ties to even

// The value of every tensor after the run, by tensor; what no op writes and no input gives is NaN. STATE tensors hold the state afterwards, as
// rounded by their type. Rows of tokens that are not there keep NaN (OUTPUT, TEMP) or their input.
std::vector<std::vector<double>> run_reference(const Problem& p);

}  // namespace fth::conformance
