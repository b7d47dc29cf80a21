// mmap and the ways to touch it.
#include "core/experts/slot_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "core/base/bytes.h"

namespace fth {
namespace {

constexpr uint64_t kHuge = 2 * kMiB, kPage = 4096;
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14; not in this libc's headers

}  // namespace

Result<SlotMemory> SlotMemory::allocate(uint64_t bytes, bool huge_pages) {
  const auto refuse = [bytes](int error) {
    return fail(Code::resource_exhausted,
                "out of memory: slots for experts need " + format_bytes(bytes) + ": " + std::strerror(error) + "; lower the budget");
  };
  SlotMemory m;
  const auto mapped = checked_add(bytes, kHuge);
  if (!mapped) return refuse(ENOMEM);
  void* p = ::mmap(nullptr, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return refuse(errno);
  m.mapping_ = p;
  m.mapped_ = *mapped;
  const uint64_t skip = align_up(reinterpret_cast<uintptr_t>(p), kHuge) - reinterpret_cast<uintptr_t>(p);
  m.bytes_ = {static_cast<std::byte*>(p) + skip, bytes};
  // Huge pages or small ones, as asked: the process's default may be either.
  ::madvise(m.bytes_.data(), bytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  if (::madvise(m.bytes_.data(), bytes, kPopulateWrite) != 0) {
    if (errno == ENOMEM) return refuse(ENOMEM);
    for (uint64_t at = 0; at < bytes; at += kPage) *static_cast<volatile std::byte*>(m.bytes_.data() + at) = std::byte{0};
  }
  return m;
}

SlotMemory::SlotMemory(SlotMemory&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)), mapped_(std::exchange(other.mapped_, 0)), bytes_(std::exchange(other.bytes_, {})) {}

SlotMemory& SlotMemory::operator=(SlotMemory&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapped_, other.mapped_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

SlotMemory::~SlotMemory() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapped_);
}

}  // namespace fth
