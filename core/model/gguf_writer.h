#pragma once
// Writes the head of a GGUF file, version 3: keys and tensor directory. The tensors' data is the caller's to write, at the offsets given here.
// The same calls give the same bytes.
//
//   GgufWriter w(4096);
//   w.key({"general.architecture", MetaType::string, std::string_view("llama")});
//   w.tensor("output_norm.weight", DType::f32, dims, 128);
//   GgufHead head = w.finish();     head.bytes at 0, the tensor's at head.offsets[0]; in all head.file_bytes

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/model/gguf.h"

namespace fth {

struct GgufHead {
  std::vector<std::byte> bytes;   // from the file's start
  std::vector<uint64_t> offsets;  // of each tensor's data, from the file's start
  uint64_t file_bytes = 0;        // up to the end of the last tensor
};

class GgufWriter {
 public:
  // A power of two from 8 to 16 MiB. The caller writes general.alignment where it is not 32.
  explicit GgufWriter(uint64_t alignment) : alignment_(alignment) {}

  // Keys and tensors, in the file's order; none occurs twice. A key's value has the alternative that Gguf gives for its type; an array of strings is
  // written from `strings`, any other from `bytes`.
  void key(const MetaValue& value);
  // dims: slowest first, 1 to 4; bytes: what they take in this type.
  void tensor(std::string_view name, DType type, std::span<const int64_t> dims, uint64_t bytes);

  GgufHead finish() const;

 private:
  uint64_t alignment_, n_keys_ = 0, next_ = 0;
  std::vector<std::byte> keys_, tensors_;  // encoded
  std::vector<uint64_t> offsets_;          // from the data section's start
};

}  // namespace fth
