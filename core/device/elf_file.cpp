// Reads only the program headers, the dynamic section and the dynamic string table: enough for "is it whole" and "which runtimes does it want".

#include "core/device/elf_file.h"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <optional>
#include <vector>

#include "core/base/bytes.h"

namespace fth {
namespace {

#if defined(__x86_64__)
constexpr uint16_t kMachine = EM_X86_64;
#elif defined(__aarch64__)
constexpr uint16_t kMachine = EM_AARCH64;
#elif defined(__riscv)
constexpr uint16_t kMachine = EM_RISCV;
#else
constexpr uint16_t kMachine = EM_NONE;  // not known: any is taken
#endif

constexpr uint64_t kMaxHeaders = 256, kMaxTable = 64 * kMiB;  // of real libraries: about 10, and below 10 MiB

struct Sanitizer {
  const char *name, *init_symbol;
};
constexpr std::array<Sanitizer, 3> kSanitizers{{{"asan", "__asan_init"}, {"tsan", "__tsan_init"}, {"msan", "__msan_init"}}};

class Reader {
 public:
  explicit Reader(const std::filesystem::path& file) : in_(file, std::ios::binary) {
    if (in_.seekg(0, std::ios::end)) size_ = static_cast<uint64_t>(std::max<std::streamoff>(0, in_.tellg()));
  }
  bool opened() const { return in_.is_open(); }
  uint64_t size() const { return size_; }
  bool read(uint64_t offset, void* dst, uint64_t bytes) {
    if (offset > size_ || bytes > size_ - offset) return false;
    in_.clear();
    in_.seekg(static_cast<std::streamoff>(offset));
    return static_cast<bool>(in_.read(static_cast<char*>(dst), static_cast<std::streamsize>(bytes)));
  }

 private:
  std::ifstream in_;
  uint64_t size_ = 0;
};

// True if `table`, strings that end in zero, holds `word`.
bool holds(const std::string& table, std::string_view word) {
  const std::string framed = '\0' + std::string(word) + '\0';
  return table.find(framed) != std::string::npos;
}

// The dynamic string table; empty if there is none or it lies outside of the file.
std::string dynamic_strings(Reader& in, const std::vector<Elf64_Phdr>& segments, const Elf64_Phdr& dynamic) {
  if (dynamic.p_filesz > kMaxTable) return {};
  std::vector<Elf64_Dyn> entries(dynamic.p_filesz / sizeof(Elf64_Dyn));
  if (!in.read(dynamic.p_offset, entries.data(), entries.size() * sizeof(Elf64_Dyn))) return {};
  uint64_t address = 0, bytes = 0;
  for (const Elf64_Dyn& e : entries) {
    if (e.d_tag == DT_NULL) break;
    if (e.d_tag == DT_STRTAB) address = e.d_un.d_ptr;
    if (e.d_tag == DT_STRSZ) bytes = e.d_un.d_val;
  }
  for (const Elf64_Phdr& s : segments) {
    if (s.p_type != PT_LOAD || address < s.p_vaddr || address - s.p_vaddr >= s.p_filesz) continue;
    const uint64_t skip = address - s.p_vaddr;
    if (bytes > s.p_filesz - skip || bytes > kMaxTable) return {};
    std::string table(bytes, '\0');
    return in.read(s.p_offset + skip, table.data(), bytes) ? table : std::string();
  }
  return {};
}

}  // namespace

std::string own_sanitizer() {
#if defined(__SANITIZE_ADDRESS__)
  return "asan";
#elif defined(__SANITIZE_THREAD__)
  return "tsan";
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
  return "asan";
#elif __has_feature(thread_sanitizer)
  return "tsan";
#elif __has_feature(memory_sanitizer)
  return "msan";
#else
  return "";
#endif
#else
  return "";
#endif
}

Result<> check_elf(const std::filesystem::path& file) {
  Reader in(file);
  if (!in.opened()) return fail(Code::not_found, "cannot be opened for reading");
  Elf64_Ehdr header{};
  if (!in.read(0, &header, sizeof header) || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
    return fail(Code::data_loss, "not an ELF file (" + std::to_string(in.size()) + " bytes)");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN) return fail(Code::data_loss, "not a 64-bit shared library");
  if (kMachine != EM_NONE && header.e_machine != kMachine)
    return fail(Code::failed_precondition,
                "built for ELF machine " + std::to_string(header.e_machine) + ", this program is for " + std::to_string(kMachine));
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phnum == 0 || header.e_phnum > kMaxHeaders)
    return fail(Code::data_loss, "malformed ELF file: " + std::to_string(header.e_phnum) + " program headers of " +
                                     std::to_string(header.e_phentsize) + " bytes");
  std::vector<Elf64_Phdr> segments(header.e_phnum);
  if (!in.read(header.e_phoff, segments.data(), segments.size() * sizeof(Elf64_Phdr)))
    return fail(Code::data_loss,
                "truncated: program headers at byte " + std::to_string(header.e_phoff) + " of " + std::to_string(in.size()));
  const Elf64_Phdr* dynamic = nullptr;
  for (const Elf64_Phdr& s : segments) {
    const std::optional<uint64_t> end = checked_add(s.p_offset, s.p_filesz);
    if (s.p_type == PT_LOAD && (!end || *end > in.size()))
      return fail(Code::data_loss, "truncated: a segment ends at byte " + (end ? std::to_string(*end) : std::string("2^64")) +
                                       ", the file has " + std::to_string(in.size()));
    if (s.p_type == PT_DYNAMIC) dynamic = &s;
  }
  // Section headers come last in what linkers write, and nothing maps them: the loader would not notice that they are cut off.
  const std::optional<uint64_t> end = checked_add(header.e_shoff, uint64_t{header.e_shnum} * header.e_shentsize);
  if (!end || *end > in.size())
    return fail(Code::data_loss,
                "truncated: section headers at byte " + std::to_string(header.e_shoff) + " of " + std::to_string(in.size()));
  if (dynamic == nullptr) return fail(Code::data_loss, "malformed ELF file: no dynamic section");
  const std::string strings = dynamic_strings(in, segments, *dynamic);
  for (const Sanitizer& s : kSanitizers)
    if (holds(strings, s.init_symbol) && own_sanitizer() != s.name)
      return fail(Code::failed_precondition, std::string("built with ") + s.name + ", this program " +
                                                 (own_sanitizer().empty() ? "without a sanitizer" : "with " + own_sanitizer()) +
                                                 "; build both the same way");
  return {};
}

}  // namespace fth
