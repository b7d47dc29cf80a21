#pragma once
// The files that experts are read from: opened read-only, O_DIRECT where a probe says that it works, and their identity remembered so that a read that
// fails can say whether the file was cut or replaced meanwhile.

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/base/result.h"

namespace fth {

inline constexpr uint64_t kBlock = 4096;  // offsets, lengths and addresses of direct reads are multiples of it

class FileSet {
 public:
  // not_found, or unavailable with errno's text. `direct` false: no probe, all reads through the page cache.
  static Result<FileSet> open(std::span<const std::filesystem::path> paths, bool direct);
  FileSet() = default;
  FileSet(FileSet&& other) noexcept;
  FileSet& operator=(FileSet&& other) noexcept;
  ~FileSet();

  size_t size() const { return files_.size(); }
  int fd(uint32_t file) const { return files_[file].fd; }
  uint64_t bytes(uint32_t file) const { return files_[file].bytes; }  // when it was opened
  const std::filesystem::path& path(uint32_t file) const { return files_[file].path; }
  bool direct() const;           // every file is read with O_DIRECT
  std::string buffered() const;  // why not; empty when direct
  // "was cut from 10 to 5 bytes", "was changed", "was replaced" while it is open; empty when it is as it was.
  std::string changed(uint32_t file) const;
  bool written(uint32_t file) const;  // size or mtime of the open file differ from what they were; one system call

 private:
  struct File {
    std::filesystem::path path;
    int fd = -1;
    uint64_t bytes = 0;
    struct stat identity = {};
    std::string buffered;  // why it has no O_DIRECT
  };
  std::vector<File> files_;
};

}  // namespace fth
