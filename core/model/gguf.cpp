// Files, mappings, split models and typed access. The bytes themselves are parsed in gguf_part.cpp.

#include "core/model/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <utility>

#include "core/base/bytes.h"
#include "core/model/gguf_part.h"
#include "core/model/message.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older kernels answer EINVAL
#endif

namespace fth {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxParts = 99999;  // five digits in the name

// A whole file, read-only. Shared rather than private: the pages are the page cache's own, whichever program mapped them first.
// A file that is truncated by someone while it is mapped raises SIGBUS on the lost pages; models are replaced by rename, not in place.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const std::byte* data, uint64_t size) : data_(data), size_(size) {}
  Mapping(Mapping&& o) noexcept : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
  Mapping& operator=(Mapping&&) = delete;
  ~Mapping() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

Result<Mapping> map_file(const fs::path& path) {
  // O_NONBLOCK: a FIFO given by mistake is refused below instead of waiting for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    const Code code = errno == ENOENT || errno == ENOTDIR  ? Code::not_found
                      : errno == EMFILE || errno == ENFILE ? Code::resource_exhausted
                                                           : Code::failed_precondition;
    return fail(code, message(path.native(), ": cannot be opened: ", std::strerror(errno)));
  }
  struct stat st {};
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    ::close(fd);
    return fail(Code::failed_precondition, message(path.native(), ": not a regular file", S_ISDIR(st.st_mode) ? " but a folder" : ""));
  }
  const uint64_t size = static_cast<uint64_t>(st.st_size);
  if (size == 0) {
    ::close(fd);
    return Mapping();  // the parser says that it is empty
  }
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (data == MAP_FAILED)
    return fail(error == ENOMEM ? Code::resource_exhausted : Code::failed_precondition,
                message(path.native(), ": cannot map ", format_bytes(size), ": ", std::strerror(error)));
  return Mapping(static_cast<const std::byte*>(data), size);
}

// "<stem>-00001-of-00003.gguf"
struct SplitName {
  std::string stem;
  int64_t part = 0, count = 0;  // part from 1
};

std::optional<SplitName> split_name(const fs::path& path) {
  const std::string name = path.filename().string();
  constexpr std::string_view kShape = "-00000-of-00000.gguf";
  if (name.size() <= kShape.size()) return std::nullopt;
  SplitName out{name.substr(0, name.size() - kShape.size()), 0, 0};
  const std::string_view tail = std::string_view(name).substr(out.stem.size());
  for (size_t i = 0; i < kShape.size(); ++i) {
    const bool digit = tail[i] >= '0' && tail[i] <= '9';
    if (kShape[i] == '0' ? !digit : tail[i] != kShape[i]) return std::nullopt;
  }
  std::from_chars(tail.data() + 1, tail.data() + 6, out.part);
  std::from_chars(tail.data() + 10, tail.data() + 15, out.count);
  return out;
}

fs::path part_path(const fs::path& first, const SplitName& split, int64_t part) {
  char tail[64];
  std::snprintf(tail, sizeof tail, "-%05d-of-%05d.gguf", static_cast<int>(part), static_cast<int>(split.count));
  return first.parent_path() / (split.stem + tail);
}

const MetaValue* find_in(const GgufPart& part, std::string_view key) {
  const auto name = [&](uint32_t i) { return part.metadata[i].key; };
  const auto at = std::ranges::lower_bound(part.by_key, key, {}, name);
  return at != part.by_key.end() && name(*at) == key ? &part.metadata[*at] : nullptr;
}

Result<int64_t> as_integer(const MetaValue& kv, std::string_view file) {
  if (const auto* u = std::get_if<uint64_t>(&kv.value)) {
    if (*u <= INT64_MAX) return static_cast<int64_t>(*u);
    return fail(Code::data_loss, message(file, ": key ", in_quotes(kv.key), " is ", *u, "; the limit is 2^63 - 1"));
  }
  if (const auto* i = std::get_if<int64_t>(&kv.value)) return *i;
  return fail(Code::data_loss, message(file, ": key ", in_quotes(kv.key), " is not an integer"));
}

// split.no, split.count, split.tensors.count; zeros where a file is whole.
struct SplitKeys {
  int64_t no = 0, count = 0, tensors = 0;
};

Result<SplitKeys> split_keys(const GgufPart& part, std::string_view file) {
  SplitKeys out;
  struct Field {
    std::string_view key;
    int64_t* value;
    int64_t limit;
  };
  for (const Field& f : {Field{"split.no", &out.no, kMaxParts - 1}, Field{"split.count", &out.count, kMaxParts},
                         Field{"split.tensors.count", &out.tensors, INT32_MAX}}) {
    const MetaValue* kv = find_in(part, f.key);
    if (kv == nullptr) continue;
    FTH_ASSIGN_OR_RETURN(*f.value, as_integer(*kv, file));
    if (*f.value < 0 || *f.value > f.limit)
      return fail(Code::data_loss, message(file, ": key ", in_quotes(f.key), " is ", *f.value, "; it must be 0 to ", f.limit));
  }
  return out;
}

}  // namespace

struct Gguf::Impl {
  std::vector<Mapping> mappings;  // empty for parse()
  std::vector<fs::path> paths;
  std::string name;  // of the first part, for messages
  uint64_t file_bytes = 0;
  GgufPart first;                   // its tensors have moved to `tensors`
  std::vector<TensorInfo> tensors;  // of all parts
  std::vector<uint32_t> by_name;    // indexes into tensors, sorted by name

  Result<void> read_parts(const fs::path& path);
  Result<void> read_others(const fs::path& path, const SplitKeys& head);
  Result<void> index();
};

Result<void> Gguf::Impl::read_parts(const fs::path& path) {
  paths.push_back(path);
  name = path.string();
  FTH_ASSIGN_OR_RETURN(Mapping mapping, map_file(path));
  file_bytes = mapping.bytes().size();
  FTH_ASSIGN_OR_RETURN(first, parse_part(mapping.bytes(), name, 0));
  mappings.push_back(std::move(mapping));
  tensors = std::move(first.tensors);
  FTH_ASSIGN_OR_RETURN(const SplitKeys keys, split_keys(first, name));
  if (keys.count <= 1) return {};
  const std::optional<SplitName> split = split_name(path);
  if (keys.no != 0 && split && split->part == 1)
    return fail(Code::data_loss, message(name, ": key 'split.no' is ", keys.no, ", but the file's name says that it is the first part"));
  if (keys.no != 0)
    return fail(Code::invalid_argument, message(name, ": this is part ", keys.no + 1, " of ", keys.count, "; open the first one",
                                                split ? ", " + part_path(path, *split, 1).string() : std::string()));
  if (!split || split->part != 1 || split->count != keys.count)
    return fail(Code::data_loss, message(name, ": key 'split.count' says that this is the first of ", keys.count,
                                         " parts, but the file's name does not end in '", part_path("", {"", 1, keys.count}, 1).string(),
                                         "'; without it the other parts cannot be found"));
  FTH_RETURN_IF_ERROR(read_others(path, keys));
  if (static_cast<int64_t>(tensors.size()) == keys.tensors) return {};
  return fail(Code::data_loss,
              message(name, ": key 'split.tensors.count' is ", keys.tensors, ", the ", keys.count, " parts hold ", tensors.size()));
}

Result<void> Gguf::Impl::read_others(const fs::path& path, const SplitKeys& head) {
  const SplitName split = *split_name(path);
  for (int64_t no = 1; no < head.count; ++no) {
    const fs::path other = part_path(path, split, no + 1);
    const std::string other_name = other.string();
    auto mapping = map_file(other);
    if (!mapping)
      return tl::unexpected<Error>(std::move(mapping).error().context(message("part ", no + 1, " of ", head.count, " of ", name)));
    FTH_ASSIGN_OR_RETURN(GgufPart part, parse_part(mapping->bytes(), other_name, static_cast<uint32_t>(no)));
    FTH_ASSIGN_OR_RETURN(const SplitKeys keys, split_keys(part, other_name));
    if (keys.no != no || keys.count != head.count || keys.tensors != head.tensors)
      return fail(Code::data_loss,
                  message(other_name, ": keys split.no ", keys.no, ", split.count ", keys.count, ", split.tensors.count ", keys.tensors,
                          "; the first part and the name ask for ", no, ", ", head.count, ", ", head.tensors));
    file_bytes += mapping->bytes().size();
    tensors.insert(tensors.end(), part.tensors.begin(), part.tensors.end());
    mappings.push_back(std::move(*mapping));
    paths.push_back(other);
  }
  return {};
}

Result<void> Gguf::Impl::index() {
  const auto key = [&](uint32_t i) { return tensors[i].name; };
  by_name.resize(tensors.size());
  std::iota(by_name.begin(), by_name.end(), 0u);
  std::ranges::sort(by_name, {}, key);
  const auto twice = std::ranges::adjacent_find(by_name, {}, key);
  if (twice != by_name.end()) return fail(Code::data_loss, message(name, ": tensor ", in_quotes(key(*twice)), " occurs twice"));
  return {};
}

Gguf::Gguf(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gguf::Gguf(Gguf&&) noexcept = default;
Gguf& Gguf::operator=(Gguf&&) noexcept = default;
Gguf::~Gguf() = default;

Result<Gguf> Gguf::open(const fs::path& path) try {
  auto impl = std::make_unique<Impl>();
  FTH_RETURN_IF_ERROR(impl->read_parts(path));
  FTH_RETURN_IF_ERROR(impl->index());
  return Gguf(std::move(impl));
} catch (const std::bad_alloc&) {
  return fail(Code::resource_exhausted, "gguf: out of memory for the model's directory");
}

Result<Gguf> Gguf::parse(std::span<const std::byte> file, std::string_view name) try {
  auto impl = std::make_unique<Impl>();
  impl->name = name;
  impl->file_bytes = file.size();
  FTH_ASSIGN_OR_RETURN(impl->first, parse_part(file, name, 0));
  impl->tensors = std::move(impl->first.tensors);
  FTH_ASSIGN_OR_RETURN(const SplitKeys keys, split_keys(impl->first, name));
  if (keys.count > 1)
    return fail(Code::invalid_argument, message(name, ": part of a split model of ", keys.count, " files; open it from its files"));
  FTH_RETURN_IF_ERROR(impl->index());
  return Gguf(std::move(impl));
} catch (const std::bad_alloc&) {
  return fail(Code::resource_exhausted, "gguf: out of memory for the model's directory");
}

uint32_t Gguf::version() const { return impl_->first.version; }
uint64_t Gguf::alignment() const { return impl_->first.alignment; }
uint64_t Gguf::file_bytes() const { return impl_->file_bytes; }
std::string_view Gguf::name() const { return impl_->name; }
std::span<const fs::path> Gguf::parts() const { return impl_->paths; }
std::span<const MetaValue> Gguf::metadata() const { return impl_->first.metadata; }
std::span<const TensorInfo> Gguf::tensors() const { return impl_->tensors; }
const MetaValue* Gguf::find(std::string_view key) const { return find_in(impl_->first, key); }

const TensorInfo* Gguf::tensor(std::string_view wanted) const {
  const auto key = [&](uint32_t i) { return impl_->tensors[i].name; };
  const auto at = std::ranges::lower_bound(impl_->by_name, wanted, {}, key);
  return at != impl_->by_name.end() && key(*at) == wanted ? &impl_->tensors[*at] : nullptr;
}

namespace {

tl::unexpected<Error> absent(std::string_view file, std::string_view key) {
  return fail(Code::not_found, message(file, ": key ", in_quotes(key), " is missing"));
}
tl::unexpected<Error> wrong_type(std::string_view file, std::string_view key, std::string_view wanted) {
  return fail(Code::data_loss, message(file, ": key ", in_quotes(key), " is not ", wanted));
}

}  // namespace

Result<int64_t> Gguf::integer(std::string_view key) const {
  const MetaValue* kv = find(key);
  return kv == nullptr ? Result<int64_t>(absent(impl_->name, key)) : as_integer(*kv, impl_->name);
}

Result<double> Gguf::number(std::string_view key) const {
  const MetaValue* kv = find(key);
  if (kv == nullptr) return absent(impl_->name, key);
  if (const auto* d = std::get_if<double>(&kv->value)) return *d;
  if (const auto* u = std::get_if<uint64_t>(&kv->value)) return static_cast<double>(*u);
  if (const auto* i = std::get_if<int64_t>(&kv->value)) return static_cast<double>(*i);
  return wrong_type(impl_->name, key, "a number");
}

Result<bool> Gguf::boolean(std::string_view key) const {
  const MetaValue* kv = find(key);
  if (kv == nullptr) return absent(impl_->name, key);
  if (const auto* b = std::get_if<bool>(&kv->value)) return *b;
  return wrong_type(impl_->name, key, "a bool");
}

Result<std::string_view> Gguf::string(std::string_view key) const {
  const MetaValue* kv = find(key);
  if (kv == nullptr) return absent(impl_->name, key);
  if (const auto* s = std::get_if<std::string_view>(&kv->value)) return *s;
  return wrong_type(impl_->name, key, "a string");
}

Result<const MetaArray*> Gguf::array(std::string_view key) const {
  const MetaValue* kv = find(key);
  if (kv == nullptr) return absent(impl_->name, key);
  if (const auto* a = std::get_if<MetaArray>(&kv->value)) return a;
  return wrong_type(impl_->name, key, "an array");
}

namespace {

template <class T>
T element(const MetaArray& array, uint64_t i) {
  T value;
  std::memcpy(&value, array.bytes.data() + i * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

Result<int64_t> MetaArray::integer(uint64_t i) const {
  if (i >= count) return fail(Code::out_of_range, message("array element ", i, " of ", count));
  switch (type) {
    case MetaType::u8: return element<uint8_t>(*this, i);
    case MetaType::i8: return element<int8_t>(*this, i);
    case MetaType::u16: return element<uint16_t>(*this, i);
    case MetaType::i16: return element<int16_t>(*this, i);
    case MetaType::u32: return element<uint32_t>(*this, i);
    case MetaType::i32: return element<int32_t>(*this, i);
    case MetaType::i64: return element<int64_t>(*this, i);
    case MetaType::u64: {
      const uint64_t value = element<uint64_t>(*this, i);
      if (value > INT64_MAX) return fail(Code::data_loss, message("array element ", i, " is ", value, "; the limit is 2^63 - 1"));
      return static_cast<int64_t>(value);
    }
    case MetaType::boolean: {
      const uint8_t value = element<uint8_t>(*this, i);
      if (value > 1) return fail(Code::data_loss, message("array element ", i, " is a bool of value ", value));
      return value;
    }
    default: return fail(Code::data_loss, message("array element ", i, " is not an integer"));
  }
}

Result<double> MetaArray::number(uint64_t i) const {
  if (i >= count) return fail(Code::out_of_range, message("array element ", i, " of ", count));
  if (type == MetaType::f32) return element<float>(*this, i);
  if (type == MetaType::f64) return element<double>(*this, i);
  if (type == MetaType::u64) return static_cast<double>(element<uint64_t>(*this, i));
  if (type == MetaType::string) return fail(Code::data_loss, message("array element ", i, " is not a number"));
  FTH_ASSIGN_OR_RETURN(const int64_t value, integer(i));
  return static_cast<double>(value);
}

namespace {
tl::unexpected<Error> lost(const fs::path& path, uint64_t expected, uint64_t at) {
  std::error_code error;
  const uint64_t now = fs::file_size(path, error);
  if (!error && now >= expected)
    return fail(Code::data_loss, message(path.native(), ": cannot be read from storage, between byte ", at, " and the end of ", expected));
  return fail(Code::data_loss, message(path.native(), ": was cut while it was read: ", error ? 0 : now, " bytes now, ", expected,
                                       " when it was opened; put the whole file back"));
}
}  // namespace

Result<> Gguf::prefault(void (*progress)(void* self, uint64_t done, uint64_t total), void* self) const {
  constexpr uint64_t kChunk = 64 * kMiB;
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  uint64_t done = 0;
  bool populate = true;
  for (size_t part = 0; part < impl_->mappings.size(); ++part) {
    const std::span<const std::byte> bytes = impl_->mappings[part].bytes();
    for (uint64_t at = 0; at < bytes.size(); at += kChunk) {
      const std::span<const std::byte> chunk = bytes.subspan(at, std::min<uint64_t>(kChunk, bytes.size() - at));
      void* start = const_cast<std::byte*>(chunk.data());
      // POPULATE_READ reads and maps in one call, and a file that shrank is an error of the call instead of a SIGBUS.
      if (populate && ::madvise(start, chunk.size(), MADV_POPULATE_READ) != 0) {
        if (errno == EFAULT || errno == EHWPOISON) return lost(impl_->paths[part], bytes.size(), at);
        if (errno == EINVAL) populate = false;
      }
      if (!populate) {
        ::madvise(start, chunk.size(), MADV_WILLNEED);
        for (uint64_t i = 0; i < chunk.size(); i += page) static_cast<void>(*static_cast<const volatile std::byte*>(&chunk[i]));
      }
      done += chunk.size();
      if (progress != nullptr) progress(self, done, impl_->file_bytes);
    }
  }
  return {};
}

void Gguf::release_pages() const {
  for (const Mapping& mapping : impl_->mappings)
    ::madvise(const_cast<std::byte*>(mapping.bytes().data()), mapping.bytes().size(), MADV_DONTNEED);
}

}  // namespace fth
