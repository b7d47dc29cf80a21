#pragma once
// Weights of the file as constants of a graph.

#include <cstddef>
#include <cstdint>

#include <openvino/core/node.hpp>

#include "backends/openvino/plan.h"

namespace fth::openvino {

// An f32 value [M, K], or [K] for a vector, made of the tensor's bytes, which are copied. For a compressed matrix: integers [M, K/32, 32], converted,
// scaled and reshaped, as compilers fuse it into a product.
ov::Output<ov::Node> constant_of(const fth_tensor& tensor, const std::byte* data, WeightForm form);

// One row of K values, unpacked. Any dtype but i32.
void unpack_row(DType type, const std::byte* row, int64_t k, float* out);

}  // namespace fth::openvino
