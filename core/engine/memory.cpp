// mmap for blocks; /proc and cgroup files for what is free.
#include "core/engine/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "core/base/bytes.h"

namespace fth {

namespace {
constexpr uint64_t kHuge = 2 * kMiB;
}

Result<HostBlock> HostBlock::allocate(uint64_t bytes, const char* what) {
  HostBlock b;
  if (bytes == 0) return b;
  const uint64_t rounded = align_up(bytes, 4096), spare = rounded >= kHuge ? kHuge : 0;
  void* const p = ::mmap(nullptr, rounded + spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    return fail(Code::resource_exhausted,
                std::string("out of memory: ") + what + " needs " + format_bytes(bytes) + ": " + std::strerror(errno));
  b.data_ = static_cast<std::byte*>(p);
  if (spare != 0) {  // huge pages lie at multiples of their size: what is mapped in front and behind goes back
    const uint64_t front = align_up(reinterpret_cast<uint64_t>(p), kHuge) - reinterpret_cast<uint64_t>(p);
    if (front > 0) ::munmap(b.data_, front);
    b.data_ += front;
    if (front < spare) ::munmap(b.data_ + rounded, spare - front);
    ::madvise(b.data_, rounded, MADV_HUGEPAGE);
  }
  b.bytes_ = rounded;
  return b;
}

void HostBlock::begin_small(uint64_t offset) const {
  const uint64_t page = offset / 4096 * 4096;
  if (page < bytes_) ::madvise(data_ + page, std::min(kHuge, bytes_ - page), MADV_NOHUGEPAGE);
}

HostBlock::HostBlock(HostBlock&& o) noexcept : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}

HostBlock& HostBlock::operator=(HostBlock&& o) noexcept {
  std::swap(data_, o.data_);
  std::swap(bytes_, o.bytes_);
  return *this;
}

HostBlock::~HostBlock() {
  if (data_ != nullptr) ::munmap(data_, bytes_);
}

Result<ReadFile> ReadFile::open(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(errno == ENOENT ? Code::not_found : Code::failed_precondition, path.string() + ": " + std::strerror(errno));
  return ReadFile(fd, path.string());
}

ReadFile::ReadFile(ReadFile&& o) noexcept : fd_(std::exchange(o.fd_, -1)), name_(std::move(o.name_)) {}

ReadFile& ReadFile::operator=(ReadFile&& o) noexcept {
  std::swap(fd_, o.fd_);
  std::swap(name_, o.name_);
  return *this;
}

ReadFile::~ReadFile() {
  if (fd_ >= 0) ::close(fd_);
}

Result<> ReadFile::read(uint64_t offset, std::byte* to, uint64_t bytes) const {
  while (bytes > 0) {
    const ssize_t n = ::pread(fd_, to, std::min<uint64_t>(bytes, 64 * kMiB), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(Code::unavailable, name_ + ": reading at " + std::to_string(offset) + ": " + std::strerror(errno));
    if (n == 0)
      return fail(Code::data_loss, name_ + ": ends at " + std::to_string(offset) + ", " + std::to_string(bytes) +
                                       " bytes short; it was changed while the model was open");
    to += n;
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return {};
}

void release_mapped(const std::byte* data, uint64_t bytes) {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = align_up(reinterpret_cast<uint64_t>(data), page), end = (reinterpret_cast<uint64_t>(data) + bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

namespace {

std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream in(path);
  uint64_t v = 0;
  if (in >> v) return v;
  return std::nullopt;  // absent, or "max"
}

uint64_t room(std::optional<uint64_t> limit, std::optional<uint64_t> used, std::optional<uint64_t> reclaimable) {
  constexpr uint64_t kNone = std::numeric_limits<uint64_t>::max();
  if (!limit || !used || *limit >= kNone / 2) return kNone;
  // Page cache charged to the group is given back before the group runs out.
  const uint64_t held = *used - std::min(*used, reclaimable.value_or(0));
  return *limit - std::min(*limit, held);
}

std::optional<uint64_t> stat_field(const std::string& path, const std::string& field) {
  std::ifstream in(path);
  std::string key;
  uint64_t v = 0;
  while (in >> key >> v)
    if (key == field) return v;
  return std::nullopt;
}

// The room below every memory limit on the way from this process's group to the root.
uint64_t cgroup_room() {
  uint64_t least = std::numeric_limits<uint64_t>::max();
  std::ifstream in("/proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    const size_t a = line.find(':'), b = line.find(':', a + 1);
    if (a == std::string::npos || b == std::string::npos) continue;
    const std::string controllers = line.substr(a + 1, b - a - 1);
    std::string path = line.substr(b + 1);
    const bool v2 = controllers.empty();
    if (!v2 && controllers.find("memory") == std::string::npos) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    for (int depth = 0; depth < 64; ++depth) {
      const std::string dir = root + (path == "/" ? "" : path);
      least = std::min(
          least, v2 ? room(read_number(dir + "/memory.max"), read_number(dir + "/memory.current"), stat_field(dir + "/memory.stat", "file"))
                    : room(read_number(dir + "/memory.limit_in_bytes"), read_number(dir + "/memory.usage_in_bytes"),
                           stat_field(dir + "/memory.stat", "total_cache")));
      if (path.empty() || path == "/") break;
      path.resize(path.rfind('/'));
    }
  }
  return least;
}

}  // namespace

uint64_t available_memory() {
  uint64_t available = std::numeric_limits<uint64_t>::max();
  std::ifstream in("/proc/meminfo");
  std::string line;
  while (std::getline(in, line))
    if (line.rfind("MemAvailable:", 0) == 0) {
      std::istringstream fields(line.substr(13));
      uint64_t kib = 0;
      if (fields >> kib) available = kib * kKiB;
    }
  available = std::min(available, cgroup_room());
  return available == std::numeric_limits<uint64_t>::max() ? 0 : available;
}

uint64_t resident_memory() {
  std::ifstream in("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  if (!(in >> size >> resident)) return 0;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace fth
