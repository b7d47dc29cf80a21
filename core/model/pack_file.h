#pragma once
// What packing needs of the system: a file with typed errors, the journal of an unfinished pack, the checksum of a slab.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/result.h"
#include "core/model/packed.h"

namespace fth {

// An open file. One thread. Errors: failed_precondition with path and the system's reason (not_found where it does not exist), data_loss for a read
// that fails or ends early.
class PackFile {
 public:
  static Result<PackFile> open(const std::filesystem::path& path, int flags);  // as ::open(); created files are the umask's
  PackFile(PackFile&& o) noexcept : fd_(std::exchange(o.fd_, -1)), path_(std::move(o.path_)) {}
  PackFile& operator=(PackFile&& o) noexcept;
  ~PackFile();

  Result<> write_at(std::span<const std::byte> bytes, uint64_t offset) const;  // all of them
  Result<> read_at(std::span<std::byte> bytes, uint64_t offset) const;         // all of them
  Result<> resize(uint64_t bytes) const;
  // Takes the space on the disk now, where the file system can; failed_precondition when there is not enough.
  Result<> reserve(uint64_t bytes) const;
  // On the disk when it returns; start_sync() only begins.
  Result<> sync() const;
  void start_sync(uint64_t offset, uint64_t bytes) const;
  uint64_t size() const;        // 0 where it cannot be told
  uint64_t disk_bytes() const;  // what it takes of the disk
  // False: another process holds it.
  bool try_lock() const;

 private:
  PackFile(int fd, std::filesystem::path path) : fd_(fd), path_(std::move(path)) {}
  tl::unexpected<Error> failed(std::string_view what, int error) const;
  int fd_ = -1;
  std::filesystem::path path_;
};

// Makes a rename in `folder` last.
Result<> sync_folder(const std::filesystem::path& folder);

// Lines that say what is finished. First the identity: whatever text tells one job from another. Every record ends in its checksum and counts only if
// all before it do, so that a torn end is as if it had not been written.
class Journal {
 public:
  // failed_precondition when another process holds it.
  static Result<Journal> open(const std::filesystem::path& path);
  // The records of this job. Empty optional: the journal is another job's.
  Result<std::optional<std::vector<std::string>>> records(std::string_view identity) const;
  bool fresh() const { return file_.size() == 0; }
  // Goes back to the identity and its first records.
  Result<> restart(std::string_view identity, std::span<const std::string> records = {});
  // `record`: one line, without its end. Not forced to the disk: a record that a power cut takes costs its layer's time again, a flush for each
  // costs every pack.
  Result<> append(std::string_view record);

 private:
  explicit Journal(PackFile file) : file_(std::move(file)) {}
  PackFile file_;
  uint64_t end_ = 0;
};

// A slab as numbers: where its parts lie and how long they are.
struct SlabParts {
  uint64_t gate = 0, up = 0, down = 0;  // bytes
  SlabLayout layout() const { return slab_layout(gate, up, down); }
};

// xxh3_64, seed 0.
uint64_t fingerprint(std::span<const std::byte> bytes);
// Over gate, up and down, without what lies between them.
uint64_t slab_xxh3(const std::byte* slab, const SlabParts& parts);
// Of a slab in a file, read through `buffer` in pieces of its size.
Result<uint64_t> slab_xxh3(const PackFile& file, uint64_t offset, const SlabParts& parts, std::span<std::byte> buffer);

}  // namespace fth
