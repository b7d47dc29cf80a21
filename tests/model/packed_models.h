#pragma once
// Packed models by the book (core/model/packed.h), written apart from the packer: what it must give, and what readers and fuzzers are shown.

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "core/experts/checksum.h"
#include "core/model/interleaved.h"
#include "core/model/neuron_major.h"
#include "core/model/packed.h"
#include "tests/model/tiny_models.h"

namespace fth::test {

// The tiny model of this shape; `down` is row_major or neuron_major, or by_neuron where the shape says down_transposed. Version 2 has gates interleaved where
// that can be and `interleaved` does not say otherwise.
inline GgufWriter tiny_packed(const TinyShape& s, DownLayout down, uint32_t version = 2, std::optional<bool> interleaved = {}) {
  GgufWriter w = tiny_smallthinker(s);
  w.alignment = kSlabAlignment;
  w.u32("general.alignment", kSlabAlignment).u32(kPackedVersion, version);
  const std::string type = s.matrix == GgmlType::f32    ? "f32"
                           : s.matrix == GgmlType::f16  ? "f16"
                           : s.matrix == GgmlType::q4_0 ? "q4_0"
                           : s.matrix == GgmlType::q8_0 ? "q8_0"
                                                        : "q4_k";
  w.texts(kPackedTypes, std::vector<std::string>(size_t{3} * s.n_layer, type));
  w.texts(kPackedDown, std::vector<std::string>(s.n_layer, std::string(kDownLayoutNames[static_cast<size_t>(down)])));
  const DType dtype = *dtype_from_name(type);
  const bool panels = version >= 2 && interleaved.value_or(check_interleaved(dtype, s.n_ff, s.n_embd).has_value());
  if (version >= 2) w.texts(kPackedGate, std::vector<std::string>(s.n_layer, panels ? "interleaved" : "row_major"));
  std::vector<uint64_t> sums;
  for (uint32_t i = 0; i < s.n_layer; ++i) {
    const std::string b = "blk." + std::to_string(i) + ".";
    const Bytes gate = w.at(b + "ffn_gate_exps.weight").bytes, up = w.at(b + "ffn_up_exps.weight").bytes;
    const Bytes stored = w.at(b + "ffn_down_exps.weight").bytes;
    const size_t n = gate.size() / s.n_expert;  // of each of the three
    const SlabLayout layout = slab_layout(n, n, n);
    Bytes slabs(s.n_expert * layout.bytes);
    for (size_t e = 0; e < s.n_expert; ++e) {
      Bytes one(stored.begin() + static_cast<ptrdiff_t>(e * n), stored.begin() + static_cast<ptrdiff_t>((e + 1) * n));
      if (down == DownLayout::neuron_major) {
        if (!to_neuron_major(dtype, s.n_embd, s.n_ff, stored.data() + e * n, one.data())) throw std::logic_error("no such order");
      }
      std::byte* const slab = slabs.data() + e * layout.bytes;
      std::memcpy(slab, gate.data() + e * n, n);
      if (panels && !to_interleaved(dtype, s.n_ff, s.n_embd, gate.data() + e * n, slab)) throw std::logic_error("no such order");
      std::memcpy(slab + layout.up, up.data() + e * n, n);
      std::memcpy(slab + layout.down, one.data(), n);
      sums.push_back(xxh3_64({std::span(slab, n), std::span(slab + layout.up, n), std::span(slab + layout.down, n)}));
    }
    for (const char* part : {"gate", "up", "down"}) w.erase_tensor(b + "ffn_" + part + "_exps.weight");
    w.tensors.push_back({b + std::string(kPackedSlab), {layout.bytes / 4, s.n_expert}, static_cast<uint32_t>(GgmlType::i32), slabs});
  }
  // Slabs stand behind everything else, in the order of layers.
  std::stable_partition(w.tensors.begin(), w.tensors.end(), [](const auto& t) { return !t.name.ends_with(kPackedSlab); });
  return w.array<uint64_t>(kPackedXxh3, MetaType::u64, sums);
}

}  // namespace fth::test
