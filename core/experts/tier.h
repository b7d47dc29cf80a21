#pragma once
// A second place for experts, between the slots in RAM and storage: spare memory of a device. What leaves a slot is copied there if it is worth more than the
// least that is there; what is missing in RAM and found there needs no read. The store decides what; a Tier only holds bytes. One thread.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/result.h"

namespace fth {

class Tier {
 public:
  virtual ~Tier() = default;
  virtual std::string name() const = 0;  // "vulkan:0"
  virtual int64_t n_slots() const = 0;
  // Blocking copies of one slot. An error ends the tier's use; the store goes on without it.
  virtual Result<> write(int64_t slot, std::span<const std::byte> from) = 0;
  virtual Result<> read(int64_t slot, std::span<std::byte> to) = 0;
};

// Which expert is in which slot of a tier. An expert may be in RAM as well: its place is the first to be
// taken, and if it is still there when the expert leaves RAM again, that costs no copy.
class TierIndex {
 public:
  static constexpr uint32_t kNone = ~uint32_t{0};
  TierIndex(int64_t n_slots, size_t n_keys) : keys_(static_cast<size_t>(n_slots), kFree), slot_of_(n_keys, kNone) {}
  uint32_t find(size_t key) const { return slot_of_[key]; }
  // A free slot, else that of the expert of the least worth if that is less than `worth`; kNone otherwise. worth_of(key).
  template <class WorthOf>
  uint32_t place_for(double worth, const WorthOf& worth_of) const {
    uint32_t least = kNone;
    for (uint32_t i = 0; i < keys_.size(); ++i) {
      if (keys_[i] == kFree) return i;
      if (const double w = worth_of(keys_[i]); w < worth) least = i, worth = w;
    }
    return least;
  }
  void put(uint32_t slot, size_t key) {
    if (keys_[slot] != kFree) slot_of_[keys_[slot]] = kNone;
    keys_[slot] = key;
    slot_of_[key] = slot;
  }

 private:
  static constexpr size_t kFree = ~size_t{0};
  std::vector<size_t> keys_;  // by slot
  std::vector<uint32_t> slot_of_;
};

}  // namespace fth
