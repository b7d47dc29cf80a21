#pragma once
// One GGUF file as bytes, parsed and checked: header, key/values, tensor directory. Knows nothing of files, mappings and split models (gguf.cpp).

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/base/result.h"
#include "core/model/gguf.h"

namespace fth {

// Views into the bytes it was parsed from, which outlive it.
struct GgufPart {
  uint32_t version = 0;
  uint64_t alignment = 32;
  std::vector<MetaValue> metadata;  // file order
  std::vector<uint32_t> by_key;     // indexes into metadata, sorted by key
  std::vector<TensorInfo> tensors;  // file order; every one lies inside the bytes, none overlaps another
};

// `name` stands in messages; `file` is copied into each TensorInfo. Linear in bytes.size(), but for sorting keys and tensors.
Result<GgufPart> parse_part(std::span<const std::byte> bytes, std::string_view name, uint32_t file);

// The number that GGUF files have for a type.
uint32_t ggml_number(DType type);

}  // namespace fth
