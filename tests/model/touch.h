#pragma once
// Reads everything that a parsed file or a model offers, so that a sanitizer sees any view that leaves the bytes. Used by tests and fuzzers.

#include <cstdint>
#include <span>

#include "core/model/config.h"

namespace fth::test {

inline uint64_t touch(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte b : bytes) sum += static_cast<uint8_t>(b);
  return sum;
}

inline uint64_t touch(const Gguf& g) {
  uint64_t sum = g.version() + g.alignment() + g.file_bytes();
  for (const MetaValue& kv : g.metadata()) {
    sum += touch(std::as_bytes(std::span(kv.key))) + (g.find(kv.key) == &kv);
    sum += g.integer(kv.key).has_value() + g.number(kv.key).has_value() + g.boolean(kv.key).has_value() + g.string(kv.key).has_value();
    if (const auto* text = std::get_if<std::string_view>(&kv.value)) sum += touch(std::as_bytes(std::span(*text)));
    if (const auto* array = std::get_if<MetaArray>(&kv.value)) {
      sum += touch(array->bytes);
      for (const std::string_view s : array->strings) sum += touch(std::as_bytes(std::span(s)));
      for (uint64_t i = 0; i < array->count; ++i) sum += array->integer(i).has_value() + array->number(i).has_value();
    }
  }
  for (const TensorInfo& t : g.tensors())
    sum += touch({t.data, t.bytes}) + touch(std::as_bytes(std::span(t.name))) + (g.tensor(t.name) == &t);
  return sum;
}

inline uint64_t touch(const Weight& w) {
  return w ? touch(std::span(w.data, w.expert_bytes() * static_cast<uint64_t>(w.experts))) +
                 (w.bytes == row_bytes(w.dtype, w.cols) * static_cast<uint64_t>(w.rows * w.experts))
           : 0;
}

inline uint64_t touch(const Model& m) {
  uint64_t sum =
      m.weight_bytes() + m.bytes_per_token() + touch(m.token_embd) + touch(m.output_norm) + touch(m.output) + touch(m.rope_factors);
  for (const Layer& l : m.layers)
    for (const Weight* w :
         {&l.attn_norm, &l.q, &l.k, &l.v, &l.q_bias, &l.k_bias, &l.v_bias, &l.attn_output, &l.ffn_norm, &l.router, &l.gate, &l.up, &l.down})
      sum += touch(*w);
  return sum;
}

}  // namespace fth::test
