#pragma once
// Reads GGUF files (versions 2 and 3, little-endian), whole or split (-00001-of-0000N). The file is untrusted: every length, count, type and
// offset is checked before use, in time and memory bounded by the file's size. Tensor data is mapped, never copied.
// Errors: not_found (no such file), data_loss (malformed; the message names file, key or tensor, numbers and limit), unimplemented (a tensor type
// that Forethought has no kernels for, GGUF v1, big-endian), resource_exhausted, failed_precondition (not a regular file, no permission),
// invalid_argument (a part of a split model that is not the first: the message names the one to open).

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/result.h"

namespace fth {

// Elements of arrays are kept in the file's bytes and read through these views. Strings are not guaranteed to be UTF-8.
enum class MetaType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct MetaArray {
  MetaType type = MetaType::u8;  // of the elements; never array
  uint64_t count = 0;
  std::span<const std::byte> bytes;       // the elements as the file stores them
  std::vector<std::string_view> strings;  // when type is string
  // Element i as a number (integers and booleans exactly; data_loss for strings or a value that does not fit).
  Result<int64_t> integer(uint64_t i) const;
  Result<double> number(uint64_t i) const;
};

struct MetaValue {
  std::string_view key;
  MetaType type = MetaType::u8;
  std::variant<uint64_t, int64_t, double, bool, std::string_view, MetaArray> value;
};

struct TensorInfo {
  std::string_view name;
  DType dtype = DType::f32;
  uint32_t rank = 0;              // 1..4
  std::array<int64_t, 4> dims{};  // slowest first (GGUF's order reversed), rank entries: [experts, rows, cols]
  uint64_t bytes = 0;
  uint32_t file = 0;                // which part of a split model
  uint64_t offset = 0;              // of the data, from that file's start
  const std::byte* data = nullptr;  // mapped
};

class Gguf {
 public:
  // `path`: a GGUF file, or the first part of a split one.
  static Result<Gguf> open(const std::filesystem::path& path);
  // For tests and fuzzers: one part, in memory that outlives the object.
  static Result<Gguf> parse(std::span<const std::byte> file, std::string_view name);
  Gguf(Gguf&&) noexcept;
  Gguf& operator=(Gguf&&) noexcept;
  ~Gguf();

  uint32_t version() const;
  uint64_t alignment() const;
  uint64_t file_bytes() const;    // of all parts
  std::string_view name() const;  // the first part's path, or parse()'s name; for messages
  std::span<const std::filesystem::path> parts() const;
  std::span<const MetaValue> metadata() const;  // in file order, of the first part
  std::span<const TensorInfo> tensors() const;  // of all parts
  const MetaValue* find(std::string_view key) const;
  const TensorInfo* tensor(std::string_view name) const;

  // Typed access. Absent: not_found; wrong type or range: data_loss; both name the key.
  Result<int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;
  Result<const MetaArray*> array(std::string_view key) const;

  // Asks the system to read the mapped data ahead; progress(done, total) in bytes, from this thread. Harmless to skip.
  // data_loss: pages are gone (the file was cut) or cannot be read, where the system says so (Linux 5.14); without that, and later, that is a SIGBUS.
  Result<> prefault(void (*progress)(void* self, uint64_t done, uint64_t total), void* self) const;
  // Gives the mapped pages back: they stop counting as this process's memory, and are read again when touched.
  void release_pages() const;

 private:
  struct Impl;
  explicit Gguf(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fth
