// The block formats: docs/file-format.md.

#include "backends/openvino/weights.h"

#include <cstring>

#include <openvino/opsets/opset13.hpp>

#include "core/base/half.h"

namespace fth::openvino {
namespace {

namespace op = ov::opset13;

constexpr size_t kGroup = 32;

uint16_t half_at(const std::byte* p) {
  uint16_t h = 0;
  std::memcpy(&h, p, sizeof h);
  return h;
}
uint8_t byte_at(const std::byte* p) { return static_cast<uint8_t>(*p); }

// Six-bit scale and minimum of group g of a q4_k super-block.
std::pair<uint8_t, uint8_t> scale_and_min(const std::byte* packed, size_t g) {
  const auto at = [&](size_t i) { return byte_at(packed + i); };
  if (g < 4) return {static_cast<uint8_t>(at(g) & 63), static_cast<uint8_t>(at(g + 4) & 63)};
  return {static_cast<uint8_t>((at(g + 4) & 15) | (at(g - 4) >> 6 << 4)), static_cast<uint8_t>((at(g + 4) >> 4) | (at(g) >> 6 << 4))};
}

void unpack_q4_k(const std::byte* block, float* out) {
  const float d = f16_to_f32(half_at(block)), dmin = f16_to_f32(half_at(block + 2));
  for (size_t g = 0; g < 8; ++g) {  // of 32 values; two groups share 32 bytes, low nibbles first
    const auto [scale, minimum] = scale_and_min(block + 4, g);
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
    for (size_t i = 0; i < 32; ++i) {
      const int code = byte_at(block + 16 + g / 2 * 32 + i) >> (g % 2 * 4) & 15;
      out[g * 32 + i] = s * static_cast<float>(code) - m;
    }
  }
}

void unpack_q6_k(const std::byte* block, float* out) {
  const std::byte *low = block, *high = block + 128, *scales = block + 192;
  const float d = f16_to_f32(half_at(block + 208));
  for (size_t i = 0; i < 256; ++i) {
    const size_t half = i / 128, in = i % 128, quarter = in / 32, lane = in % 32;
    const int l = byte_at(low + half * 64 + (quarter % 2) * 32 + lane) >> (quarter / 2 * 4) & 15;
    const int h = byte_at(high + half * 32 + lane) >> (quarter * 2) & 3;
    const auto scale = static_cast<int8_t>(byte_at(scales + half * 8 + quarter * 2 + lane / 16));
    out[i] = d * static_cast<float>(scale) * static_cast<float>((l | h << 4) - 32);
  }
}

template <class T>
ov::Output<ov::Node> in_f32(const T& node) {
  return std::make_shared<op::Convert>(node, ov::element::f32);
}

// Codes [M, K/32, 32], and a scale for each 32.
ov::Output<ov::Node> grouped(size_t m, size_t k, const ov::Tensor& codes, const ov::Tensor& scales) {
  const auto q = in_f32(std::make_shared<op::Constant>(codes));
  const auto s = in_f32(std::make_shared<op::Constant>(scales));
  const auto shape = op::Constant::create(ov::element::i64, {2}, {m, k});
  return std::make_shared<op::Reshape>(std::make_shared<op::Multiply>(q, s), shape, false);
}

ov::Output<ov::Node> compressed(DType type, size_t m, size_t k, const std::byte* data) {
  const size_t groups = k / kGroup, block_bytes = traits(type).block_bytes;
  const bool four = type == DType::q4_0;
  const ov::element::Type element = four ? ov::element::i4 : ov::element::i8;
  ov::Tensor codes(element, {m, groups, kGroup}), scales(ov::element::f16, {m, groups, 1});
  auto* c = static_cast<uint8_t*>(codes.data());
  auto* s = static_cast<std::byte*>(scales.data());
  for (size_t b = 0; b < m * groups; ++b, data += block_bytes, s += 2) {
    std::memcpy(s, data, 2);
    if (!four) {
      std::memcpy(c, data + 2, kGroup);
      c += kGroup;
      continue;
    }
    // Neighbours share a byte here, value i and i + 16 in the file; i4 is the code less 8, which is its top bit turned.
    for (size_t i = 0; i < 16; i += 2) {
      const uint8_t a = byte_at(data + 2 + i), z = byte_at(data + 3 + i);
      c[i / 2] = static_cast<uint8_t>(((a & 15) | (z & 15) << 4) ^ 0x88);
      c[8 + i / 2] = static_cast<uint8_t>((a >> 4 | (z >> 4) << 4) ^ 0x88);
    }
    c += 16;
  }
  return grouped(m, k, codes, scales);
}

}  // namespace

void unpack_row(DType type, const std::byte* row, int64_t k, float* out) {
  const auto n = static_cast<size_t>(k);
  const size_t block = traits(type).block, block_bytes = traits(type).block_bytes;
  for (size_t i = 0; i < n; i += block, row += block_bytes) {
    float* const y = out + i;
    switch (type) {
      case DType::f32: std::memcpy(y, row, sizeof(float)); break;
      case DType::f16: *y = f16_to_f32(half_at(row)); break;
      case DType::bf16: *y = bf16_to_f32(half_at(row)); break;
      case DType::q8_0:
        for (size_t j = 0; j < 32; ++j) y[j] = f16_to_f32(half_at(row)) * static_cast<float>(static_cast<int8_t>(byte_at(row + 2 + j)));
        break;
      case DType::q4_0:
      case DType::q4_1: {
        const bool has_min = type == DType::q4_1;
        const float d = f16_to_f32(half_at(row)), m = has_min ? f16_to_f32(half_at(row + 2)) : -8 * d;
        const std::byte* const codes = row + (has_min ? 4 : 2);
        for (size_t j = 0; j < 32; ++j) y[j] = d * static_cast<float>(byte_at(codes + j % 16) >> (j / 16 * 4) & 15) + m;
        break;
      }
      case DType::q6_k: unpack_q6_k(row, y); break;
      case DType::q4_k: unpack_q4_k(row, y); break;
      case DType::i32: break;
    }
  }
}

ov::Output<ov::Node> constant_of(const fth_tensor& tensor, const std::byte* data, WeightForm form) {
  const DType type = sdk::dtype(tensor);
  const auto k = static_cast<size_t>(tensor.dims[tensor.rank - 1]), m = tensor.rank == 2 ? static_cast<size_t>(tensor.dims[0]) : 1;
  const ov::Shape shape = tensor.rank == 2 ? ov::Shape{m, k} : ov::Shape{k};
  if (form == WeightForm::compressed && (type == DType::q4_0 || type == DType::q8_0)) return compressed(type, m, k, data);
  if (type == DType::f16) {
    ov::Tensor values(ov::element::f16, shape);
    std::memcpy(values.data(), data, m * k * 2);
    return in_f32(std::make_shared<op::Constant>(values));
  }
  const bool half = form == WeightForm::f16 && type != DType::f32 && type != DType::bf16;
  ov::Tensor values(half ? ov::element::f16 : ov::element::f32, shape);
  std::vector<float> row(k);
  for (size_t i = 0; i < m; ++i) {
    unpack_row(type, data + i * row_bytes(type, static_cast<int64_t>(k)), static_cast<int64_t>(k), row.data());
    if (!half) {
      std::memcpy(static_cast<std::byte*>(values.data()) + i * k * 4, row.data(), k * 4);
      continue;
    }
    auto* const to = static_cast<std::byte*>(values.data()) + i * k * 2;
    for (size_t j = 0; j < k; ++j) {
      const uint16_t h = f32_to_f16(row[j]);
      std::memcpy(to + 2 * j, &h, 2);
    }
  }
  const auto constant = std::make_shared<op::Constant>(values);
  if (half) return in_f32(constant);
  return constant;
}

}  // namespace fth::openvino
