#pragma once
// From a source to extents on disk and their places in a slot. Pure functions.

#include <array>
#include <cstdint>

#include "core/base/result.h"
#include "core/experts/expert_store.h"
#include "core/experts/files.h"

namespace fth {

struct Extent {
  uint32_t file = 0;
  uint64_t begin = 0, end = 0;  // bytes of the file that are needed
  uint64_t slot_at = 0;         // where the block that holds `begin` lies in the slot; a multiple of kBlock
  uint64_t block_begin() const { return begin / kBlock * kBlock; }
  uint64_t block_end() const { return (end + kBlock - 1) / kBlock * kBlock; }
};

// One expert: at most three extents, and the offsets of its matrices in the slot.
struct ExpertLayout {
  std::array<Extent, 3> extents;
  uint32_t n_extents = 0;
  uint64_t gate = 0, up = 0, down = 0;
  uint64_t bytes = 0;  // of the slot, a multiple of kBlock
};

// The source passed check_source().
ExpertLayout lay_out(const ExpertSource::Layer& layer, int64_t expert);

struct SourceShape {
  uint64_t slot_bytes = 0;         // of the largest expert
  int64_t max_expert = 0;          // of a layer
  int64_t n_total = 0;             // experts in all layers
  int64_t n_sparse = 0;            // layers that have experts
  std::vector<uint64_t> file_end;  // of the last byte needed of each file
};
// invalid_argument when numbers contradict each other or overflow.
Result<SourceShape> check_source(const ExpertSource& source);

}  // namespace fth
