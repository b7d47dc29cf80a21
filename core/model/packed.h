#pragma once
// Packed models: GGUF files in which the three matrices of an expert lie together in a slab, so that one expert is one read (docs/packed-models.md).
//   forethought.packed.version   u32, 1 or 2
//   forethought.packed.types     string[3 * n_layer]: gate, up and down of each layer, "q4_0"
//   forethought.packed.down      string[n_layer]: how down is stored, "row_major", "by_neuron" or "neuron_major"
//   forethought.packed.gate      string[n_layer], version 2 alone: how gate is stored, "row_major" or "interleaved" (core/model/interleaved.h); in version 1 it is
//                                row-major
//   forethought.packed.xxh3      u64[n_layer * n_expert]: xxh3_64, seed 0, of an expert's gate, up and down as they are stored, what lies between them left out
//   blk.N.ffn_experts.slab       i32[n_expert, slab bytes / 4], instead of ffn_gate_exps, ffn_up_exps and ffn_down_exps
// Slabs are multiples of 4096 bytes and start at multiples of 4096 in the file (general.alignment).

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/base/bytes.h"
#include "core/model/config.h"

namespace fth {

class ModelReader;

inline constexpr std::string_view kPackedVersion = "forethought.packed.version", kPackedTypes = "forethought.packed.types",
                                  kPackedDown = "forethought.packed.down", kPackedGate = "forethought.packed.gate",
                                  kPackedXxh3 = "forethought.packed.xxh3", kPackedSlab = "ffn_experts.slab";
inline constexpr int64_t kPackedFormat = 2;  // what is written; 1 and 2 are read
inline constexpr uint64_t kSlabAlignment = 4096, kSlabPartAlignment = 64;
inline constexpr std::string_view kDownLayoutNames[] = {"row_major", "by_neuron", "neuron_major"};  // by DownLayout
inline constexpr std::string_view kGateOrderNames[] = {"row_major", "interleaved"};                 // by Weight::interleaved

// Where the parts of an expert lie in its slab: gate at 0.
struct SlabLayout {
  uint64_t up = 0, down = 0, bytes = 0;
};
constexpr SlabLayout slab_layout(uint64_t gate_bytes, uint64_t up_bytes, uint64_t down_bytes) {
  SlabLayout s;
  s.up = align_up(gate_bytes, kSlabPartAlignment);
  s.down = align_up(s.up + up_bytes, kSlabPartAlignment);
  s.bytes = align_up(s.down + down_bytes, kSlabAlignment);
  return s;
}

// gate, up, down, down_layout and xxh3 of layer i of a packed file, and c.packed. unimplemented for a version that this program does not know, data_loss for an order
// that a type or a shape cannot have; otherwise as ModelReader.
Result<void> read_packed_experts(ModelReader& reader, Model& model, int64_t i);

}  // namespace fth
