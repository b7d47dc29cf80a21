#pragma once
// The slots' memory: one mapping, all of it touched, so that a budget is taken at once or refused at once.

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/result.h"

namespace fth {

class SlotMemory {
 public:
  // Zeroed, aligned to 2 MiB. resource_exhausted with the size.
  static Result<SlotMemory> allocate(uint64_t bytes, bool huge_pages);
  SlotMemory() = default;
  SlotMemory(SlotMemory&& other) noexcept;
  SlotMemory& operator=(SlotMemory&& other) noexcept;
  ~SlotMemory();
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  void* mapping_ = nullptr;
  uint64_t mapped_ = 0;
  std::span<std::byte> bytes_;
};

}  // namespace fth
