#pragma once
// Host memory that the engine hands to devices, and how much of it this process may use.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "core/base/result.h"

namespace fth {

// Zeroed pages from the system, freed with the object. Untouched pages cost no memory. 2 MiB and larger blocks begin at a multiple of
// 2 MiB and ask for huge pages.
class HostBlock {
 public:
  HostBlock() = default;
  // resource_exhausted with `what` and the size when the system has no such memory.
  static Result<HostBlock> allocate(uint64_t bytes, const char* what);
  HostBlock(HostBlock&& o) noexcept;
  HostBlock& operator=(HostBlock&& o) noexcept;
  ~HostBlock();
  std::byte* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  // Small pages from `offset` on for 2 MiB, or to the end: a first touch there takes one of them and not 2 MiB.
  void begin_small(uint64_t offset) const;

 private:
  std::byte* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// A file that is read at offsets; closed with the object.
class ReadFile {
 public:
  // not_found or failed_precondition, with the path and the system's reason.
  static Result<ReadFile> open(const std::filesystem::path& path);
  ReadFile(ReadFile&& o) noexcept;
  ReadFile& operator=(ReadFile&& o) noexcept;
  ~ReadFile();
  // Exactly `bytes` bytes. data_loss when the file ends before, unavailable for an error of the device.
  Result<> read(uint64_t offset, std::byte* to, uint64_t bytes) const;

 private:
  ReadFile(int fd, std::string name) : fd_(fd), name_(std::move(name)) {}
  int fd_ = -1;
  std::string name_;
};

// Gives the whole pages of a mapped range back: they stop counting as this process's memory, and are read again when touched.
void release_mapped(const std::byte* data, uint64_t bytes);

// What this process may still take: the lesser of MemAvailable and the room below its memory cgroup's limit (v1 and v2). 0 when neither can be read.
uint64_t available_memory();
// Resident set of this process now; 0 when it cannot be read.
uint64_t resident_memory();

}  // namespace fth
