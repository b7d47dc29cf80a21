// Files, the journal, checksums. xxHash is used as a header: nothing to link.
#include "core/model/pack_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/model/message.h"

namespace fth {

namespace fs = std::filesystem;

Result<PackFile> PackFile::open(const fs::path& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (fd >= 0) return PackFile(fd, path);
  return fail(errno == ENOENT ? Code::not_found : Code::failed_precondition,
              message(path.native(), ": cannot be opened: ", std::strerror(errno)));
}

PackFile& PackFile::operator=(PackFile&& o) noexcept {
  std::swap(fd_, o.fd_);
  std::swap(path_, o.path_);
  return *this;
}

PackFile::~PackFile() {
  if (fd_ >= 0) ::close(fd_);
}

tl::unexpected<Error> PackFile::failed(std::string_view what, int error) const {
  return fail(Code::failed_precondition, message(path_.native(), ": cannot be ", what, ": ", std::strerror(error)));
}

Result<> PackFile::write_at(std::span<const std::byte> bytes, uint64_t offset) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return failed(message("written at byte ", offset), n == 0 ? EIO : errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

Result<> PackFile::read_at(std::span<std::byte> bytes, uint64_t offset) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(Code::data_loss, message(path_.native(), ": cannot be read at byte ", offset, ": ", std::strerror(errno)));
    if (n == 0) return fail(Code::data_loss, message(path_.native(), ": ends at byte ", offset, "; ", bytes.size(), " more are needed"));
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return {};
}

Result<> PackFile::resize(uint64_t bytes) const {
  if (::ftruncate(fd_, static_cast<off_t>(bytes)) != 0) return failed(message("made ", bytes, " bytes long"), errno);
  return {};
}

Result<> PackFile::reserve(uint64_t bytes) const {
  int result = 0;
  do {
    result = ::fallocate(fd_, 0, 0, static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS) return failed(message("made ", bytes, " bytes long"), errno);
  return {};
}

Result<> PackFile::sync() const {
  if (::fdatasync(fd_) != 0) return failed("put on the disk", errno);
  return {};
}

void PackFile::start_sync(uint64_t offset, uint64_t bytes) const {
  ::sync_file_range(fd_, static_cast<off_t>(offset), static_cast<off_t>(bytes), SYNC_FILE_RANGE_WRITE);
}

uint64_t PackFile::size() const {
  struct stat st {};
  return ::fstat(fd_, &st) == 0 ? static_cast<uint64_t>(st.st_size) : 0;
}

uint64_t PackFile::disk_bytes() const {
  struct stat st {};
  return ::fstat(fd_, &st) == 0 ? static_cast<uint64_t>(st.st_blocks) * 512 : 0;
}

bool PackFile::try_lock() const { return ::flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK; }

Result<> sync_folder(const fs::path& folder) {
  FTH_ASSIGN_OR_RETURN(const PackFile file, PackFile::open(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY));
  return file.sync();
}

namespace {

std::string hex(uint64_t value) {
  std::string out(16, '0');
  for (size_t i = 16; i > 0; --i, value >>= 4) out[i - 1] = "0123456789abcdef"[value & 15];
  return out;
}

std::string sealed(std::string_view record) { return message(record, " ", hex(fingerprint(std::as_bytes(std::span(record)))), "\n"); }

}  // namespace

Result<Journal> Journal::open(const fs::path& path) {
  FTH_ASSIGN_OR_RETURN(PackFile file, PackFile::open(path, O_RDWR | O_CREAT));
  if (!file.try_lock())
    return fail(Code::failed_precondition,
                message(path.native(), ": another process is packing to the same file; let it finish or end it"));
  return Journal(std::move(file));
}

Result<std::optional<std::vector<std::string>>> Journal::records(std::string_view identity) const {
  constexpr uint64_t kMost = 256 * kMiB;  // far above 1024 layers of 4096 checksums; a file of that size is none of ours
  const uint64_t size = file_.size();
  if (size < identity.size() || size > kMost) return std::nullopt;
  std::string text(size, '\0');
  FTH_RETURN_IF_ERROR(file_.read_at(std::as_writable_bytes(std::span(text)), 0));
  if (!text.starts_with(identity)) return std::nullopt;
  std::vector<std::string> out;
  for (size_t at = identity.size(); at < text.size();) {
    const size_t end = text.find('\n', at);
    if (end == std::string::npos || end - at < 17) break;
    const std::string_view record = std::string_view(text).substr(at, end - at - 17);
    if (std::string_view(text).substr(at, end + 1 - at) != sealed(record)) break;
    out.emplace_back(record);
    at = end + 1;
  }
  return out;
}

Result<> Journal::restart(std::string_view identity, std::span<const std::string> records) {
  std::string text(identity);
  for (const std::string& record : records) text += sealed(record);
  // Another job's records must be gone before this one's identity stands in front of them; this job's own are the same bytes.
  if (records.empty()) FTH_RETURN_IF_ERROR(file_.resize(0));
  FTH_RETURN_IF_ERROR(file_.write_at(std::as_bytes(std::span(text)), 0));
  FTH_RETURN_IF_ERROR(file_.resize(text.size()));
  end_ = text.size();
  return file_.sync();
}

Result<> Journal::append(std::string_view record) {
  const std::string line = sealed(record);
  FTH_RETURN_IF_ERROR(file_.write_at(std::as_bytes(std::span(line)), end_));
  end_ += line.size();
  return {};
}

uint64_t fingerprint(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

uint64_t slab_xxh3(const std::byte* slab, const SlabParts& parts) {
  const SlabLayout layout = parts.layout();
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, slab, parts.gate);
  XXH3_64bits_update(&state, slab + layout.up, parts.up);
  XXH3_64bits_update(&state, slab + layout.down, parts.down);
  return XXH3_64bits_digest(&state);
}

Result<uint64_t> slab_xxh3(const PackFile& file, uint64_t offset, const SlabParts& parts, std::span<std::byte> buffer) {
  const SlabLayout layout = parts.layout();
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  const std::pair<uint64_t, uint64_t> pieces[] = {{0, parts.gate}, {layout.up, parts.up}, {layout.down, parts.down}};
  for (const auto& [begin, bytes] : pieces)
    for (uint64_t at = 0; at < bytes; at += buffer.size()) {
      const std::span<std::byte> piece = buffer.first(std::min<uint64_t>(buffer.size(), bytes - at));
      FTH_RETURN_IF_ERROR(file.read_at(piece, offset + begin + at));
      XXH3_64bits_update(&state, piece.data(), piece.size());
    }
  return XXH3_64bits_digest(&state);
}

}  // namespace fth
