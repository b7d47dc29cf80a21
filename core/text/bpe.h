#pragma once
// The merges of byte-level BPE (Sennrich et al. 2016, section 3.2): which two neighbouring tokens become one, and in which order.
// Immutable after read().

#include <cstdint>
#include <vector>

#include "core/base/result.h"

namespace fth {

class Gguf;
class Vocabulary;

class MergeTable {
 public:
  // Reads tokenizer.ggml.merges; its order is the rank. data_loss: missing, not strings, an entry that is not two pieces with one space
  // between, a piece or a product that is not in the vocabulary. Of two entries for one pair the later counts, as in Hugging Face's tokenizers.
  static Result<MergeTable> read(const Gguf& file, const Vocabulary& vocabulary);

  // Merges ids[first..] in place: always the pair of lowest rank, the leftmost of equals, until no pair is left. O(n log n); every merge
  // removes a token, so any table ends. At most kLongest ids.
  void apply(std::vector<int32_t>& ids, size_t first) const;

  static constexpr size_t kLongest = size_t{1} << 30;

 private:
  struct Merge {
    uint32_t rank;
    int32_t id;
  };
  static constexpr Merge kNone{0xFFFFFFFFu, -1};
  struct Slot {
    uint64_t pair;
    Merge merge = kNone;  // rank of kNone: the slot is free
  };

  static uint64_t pair_of(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  Slot& slot(uint64_t pair);
  Merge find(int32_t left, int32_t right) const;
  void apply_short(std::vector<int32_t>& ids, size_t first) const;
  void apply_long(std::vector<int32_t>& ids, size_t first) const;

  std::vector<Slot> slots_;  // open addressing, a power of two
  uint64_t seed_ = 0;
};

}  // namespace fth
