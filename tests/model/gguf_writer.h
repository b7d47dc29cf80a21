#pragma once
// Writes GGUF files in memory for tests: valid unless told otherwise, every field can be made wrong. Tests of other folders use it too.
//
//   GgufWriter w;
//   w.text("general.architecture", "llama").u32("llama.block_count", 1).tensor("output_norm.weight", GgmlType::f32, {32}, floats(32));
//   std::vector<std::byte> file = w.bytes();

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/model/gguf.h"

namespace fth::test {

// ggml's numbers.
enum class GgmlType : uint32_t { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 8, q4_k = 12, q6_k = 14, iq4_xs = 23, i32 = 26, bf16 = 30 };

using Bytes = std::vector<std::byte>;

template <class T>
void put(Bytes& out, T value) {
  const size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}
inline void put_raw(Bytes& out, std::string_view text) {
  const size_t at = out.size();
  out.resize(at + text.size());
  if (!text.empty()) std::memcpy(out.data() + at, text.data(), text.size());
}
inline void put_text(Bytes& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  put_raw(out, text);
}
template <class T>
Bytes encoded(T value) {
  Bytes out;
  put(out, value);
  return out;
}

class GgufWriter {
 public:
  struct Key {
    std::string name;
    uint32_t type = 0;  // MetaType's number, or a wrong one
    Bytes value;
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> dims;  // as the file has them, fastest first
    uint32_t type = 0;
    Bytes bytes;
    std::optional<uint64_t> offset{};  // instead of the next free one
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;  // of the data; write the key yourself where it is not 32
  std::optional<uint64_t> n_tensors{}, n_keys{};
  std::vector<Key> keys;
  std::vector<Tensor> tensors;

  // A key written again replaces the first.
  GgufWriter& key(std::string_view name, MetaType type, Bytes value) {
    erase(name);
    keys.push_back({std::string(name), static_cast<uint32_t>(type), std::move(value)});
    return *this;
  }
  GgufWriter& u16(std::string_view name, uint16_t v) { return key(name, MetaType::u16, encoded(v)); }
  GgufWriter& u32(std::string_view name, uint32_t v) { return key(name, MetaType::u32, encoded(v)); }
  GgufWriter& i32(std::string_view name, int32_t v) { return key(name, MetaType::i32, encoded(v)); }
  GgufWriter& u64(std::string_view name, uint64_t v) { return key(name, MetaType::u64, encoded(v)); }
  GgufWriter& f32(std::string_view name, float v) { return key(name, MetaType::f32, encoded(v)); }
  GgufWriter& f64(std::string_view name, double v) { return key(name, MetaType::f64, encoded(v)); }
  GgufWriter& boolean(std::string_view name, bool v) { return key(name, MetaType::boolean, encoded(static_cast<uint8_t>(v))); }
  GgufWriter& text(std::string_view name, std::string_view v) {
    Bytes value;
    put_text(value, v);
    return key(name, MetaType::string, std::move(value));
  }
  template <class T>
  GgufWriter& array(std::string_view name, MetaType element, const std::vector<T>& values) {
    Bytes value;
    put(value, static_cast<uint32_t>(element));
    put<uint64_t>(value, values.size());
    for (const T& v : values) put(value, v);
    return key(name, MetaType::array, std::move(value));
  }
  GgufWriter& texts(std::string_view name, const std::vector<std::string>& values) {
    Bytes value;
    put(value, static_cast<uint32_t>(MetaType::string));
    put<uint64_t>(value, values.size());
    for (const std::string& v : values) put_text(value, v);
    return key(name, MetaType::array, std::move(value));
  }
  GgufWriter& erase(std::string_view name) {
    std::erase_if(keys, [&](const Key& k) { return k.name == name; });
    return *this;
  }

  GgufWriter& tensor(std::string_view name, GgmlType type, std::vector<uint64_t> dims, Bytes bytes) {
    erase_tensor(name);
    tensors.push_back({std::string(name), std::move(dims), static_cast<uint32_t>(type), std::move(bytes)});
    return *this;
  }
  GgufWriter& erase_tensor(std::string_view name) {
    std::erase_if(tensors, [&](const Tensor& t) { return t.name == name; });
    return *this;
  }
  Tensor& at(std::string_view name) {
    for (Tensor& t : tensors)
      if (t.name == name) return t;
    throw std::out_of_range("no tensor " + std::string(name));
  }

  Bytes bytes() const {
    Bytes out;
    put_raw(out, magic);
    put(out, version);
    put<uint64_t>(out, n_tensors.value_or(tensors.size()));
    put<uint64_t>(out, n_keys.value_or(keys.size()));
    for (const Key& k : keys) {
      put_text(out, k.name);
      put(out, k.type);
      out.insert(out.end(), k.value.begin(), k.value.end());
    }
    uint64_t next = 0;
    std::vector<uint64_t> offsets;
    for (const Tensor& t : tensors) {
      put_text(out, t.name);
      put(out, static_cast<uint32_t>(t.dims.size()));
      for (const uint64_t d : t.dims) put(out, d);
      put(out, t.type);
      offsets.push_back(next);
      put(out, t.offset.value_or(next));
      next = (next + t.bytes.size() + alignment - 1) / alignment * alignment;
    }
    if (tensors.empty()) return out;
    const size_t start = (out.size() + alignment - 1) / alignment * alignment;
    for (size_t i = 0; i < tensors.size(); ++i) {
      out.resize(start + offsets[i]);
      out.insert(out.end(), tensors[i].bytes.begin(), tensors[i].bytes.end());
    }
    return out;
  }

  void write(const std::filesystem::path& path) const {
    const Bytes file = bytes();
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
    if (!out) throw std::runtime_error("cannot write " + path.string());
  }
};

// Weights of a type: small, finite, reproducible. `count` is a multiple of the type's block.
inline Bytes weights(GgmlType type, uint64_t count, uint32_t seed = 1) {
  uint32_t state = seed * 2654435761u + 1;
  const auto next = [&state] { return state = state * 1664525u + 1013904223u; };
  Bytes out;
  if (type == GgmlType::f32) {
    for (uint64_t i = 0; i < count; ++i) put(out, (static_cast<float>(next() >> 8) / 16777216.0f - 0.5f) * 0.25f);
    return out;
  }
  const uint64_t block = type == GgmlType::q4_k || type == GgmlType::q6_k ? 256 : type == GgmlType::f16 || type == GgmlType::bf16 ? 1 : 32;
  const uint64_t block_bytes = type == GgmlType::q4_0   ? 18
                               : type == GgmlType::q4_1 ? 20
                               : type == GgmlType::q8_0 ? 34
                               : type == GgmlType::q4_k ? 144
                               : type == GgmlType::q6_k ? 210
                                                        : 2;
  // 0x2b keeps every half that a scale may be made of below 0.06.
  for (uint64_t i = 0; i < count / block * block_bytes; ++i) out.push_back(static_cast<std::byte>(next() >> 24 & 0x2b));
  return out;
}

}  // namespace fth::test
