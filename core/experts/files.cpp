// open, the O_DIRECT probe, and fstat against what the file was.
#include "core/experts/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

namespace fth {
namespace {

// Some file systems accept the flag and refuse the read, so only a read tells.
std::string probe(int fd, uint64_t bytes) {
  alignas(kBlock) std::byte block[kBlock];
  const ssize_t n = ::pread(fd, block, kBlock, 0);
  if (n < 0) return std::string("a direct read fails: ") + std::strerror(errno);
  if (static_cast<uint64_t>(n) != std::min<uint64_t>(bytes, kBlock)) return "a direct read of the first block is short";
  return {};
}

}  // namespace

Result<FileSet> FileSet::open(std::span<const std::filesystem::path> paths, bool direct) {
  FileSet set;
  for (const auto& path : paths) {
    File& f = set.files_.emplace_back();
    f.path = path;
    f.buffered = direct ? "" : "not asked for";
    if (direct) {
      f.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
      if (f.fd < 0 && errno == EINVAL) f.buffered = "the file system has no O_DIRECT";
    }
    if (f.fd < 0) f.fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (f.fd < 0) return fail(errno == ENOENT ? Code::not_found : Code::unavailable, path.string() + ": " + std::strerror(errno));
    if (::fstat(f.fd, &f.identity) != 0) return fail(Code::unavailable, path.string() + ": " + std::strerror(errno));
    if (!S_ISREG(f.identity.st_mode)) return fail(Code::invalid_argument, path.string() + " is not a regular file");
    f.bytes = static_cast<uint64_t>(f.identity.st_size);
    if (f.buffered.empty()) f.buffered = probe(f.fd, f.bytes);
    if (direct && !f.buffered.empty()) {
      const int buffered = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
      if (buffered < 0) return fail(Code::unavailable, path.string() + ": " + std::strerror(errno));
      ::close(std::exchange(f.fd, buffered));
    }
    // Experts are read in no order that the kernel could guess: read-ahead would fetch what nobody asked for.
    if (!f.buffered.empty()) ::posix_fadvise(f.fd, 0, 0, POSIX_FADV_RANDOM);
  }
  return set;
}

FileSet::FileSet(FileSet&& other) noexcept : files_(std::exchange(other.files_, {})) {}

FileSet& FileSet::operator=(FileSet&& other) noexcept {
  std::swap(files_, other.files_);
  return *this;
}

FileSet::~FileSet() {
  for (File& f : files_)
    if (f.fd >= 0) ::close(f.fd);
}

bool FileSet::direct() const {
  return std::all_of(files_.begin(), files_.end(), [](const File& f) { return f.buffered.empty(); });
}

std::string FileSet::buffered() const {
  for (const File& f : files_)
    if (!f.buffered.empty()) return f.buffered;
  return {};
}

bool FileSet::written(uint32_t file) const {
  const struct stat& then = files_[file].identity;
  struct stat now = {};
  return ::fstat(files_[file].fd, &now) == 0 &&
         (now.st_size != then.st_size || now.st_mtim.tv_sec != then.st_mtim.tv_sec || now.st_mtim.tv_nsec != then.st_mtim.tv_nsec);
}

std::string FileSet::changed(uint32_t file) const {
  const File& f = files_[file];
  struct stat now = {};
  if (::fstat(f.fd, &now) == 0 && now.st_size != f.identity.st_size)
    return "changed from " + std::to_string(f.identity.st_size) + " to " + std::to_string(now.st_size) + " bytes";
  if (written(file)) return "was written to";
  if (::stat(f.path.c_str(), &now) != 0) return std::string("is gone (") + std::strerror(errno) + ")";
  if (now.st_ino != f.identity.st_ino || now.st_dev != f.identity.st_dev) return "was replaced";
  return {};
}

}  // namespace fth
