// Lines of text; the last one is the checksum of those before it.
#include "core/experts/warm_set.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>

#include "core/base/bytes.h"
#include "core/experts/checksum.h"

namespace fth {
namespace {

constexpr uint64_t kMaxBytes = 64 * kMiB;
constexpr std::string_view kMagic = "forethought-warm 1";

uint64_t checksum(std::string_view text) { return xxh3_64({std::as_bytes(std::span(text.data(), text.size()))}); }

std::string format(const char* pattern, auto... values) {
  char line[160];
  std::snprintf(line, sizeof line, pattern, values...);
  return line;
}

// Takes the next blank-separated number of `text`.
template <class T>
bool take(std::string_view* text, T* out, int base = 10) {
  while (!text->empty() && (text->front() == ' ' || text->front() == '\n')) text->remove_prefix(1);
  std::from_chars_result r{};
  if constexpr (std::is_floating_point_v<T>)
    r = std::from_chars(text->data(), text->data() + text->size(), *out);
  else
    r = std::from_chars(text->data(), text->data() + text->size(), *out, base);
  if (r.ec != std::errc{}) return false;
  text->remove_prefix(static_cast<size_t>(r.ptr - text->data()));
  return true;
}

bool take_word(std::string_view* text, std::string_view word) {
  if (!text->starts_with(word)) return false;
  text->remove_prefix(word.size());
  return true;
}

}  // namespace

Result<> write_warm_set(const std::filesystem::path& path, WarmSet set) {
  std::sort(set.uses.begin(), set.uses.end(),
            [](const WarmSet::Use& a, const WarmSet::Use& b) { return a.weight != b.weight ? a.weight > b.weight : a.key < b.key; });
  std::string text = std::string(kMagic) +
                     format("\nmodel %016" PRIx64 " layers %" PRId64 " experts %" PRId64 "\n", set.fingerprint, set.n_layer, set.n_expert);
  for (const auto& u : set.uses)
    text += format("%zu %zu %.6g\n", u.key / static_cast<size_t>(set.n_expert), u.key % static_cast<size_t>(set.n_expert), u.weight);
  text += format("xxh3 %016" PRIx64 "\n", checksum(text));
  std::filesystem::path next = path;
  next += "." + std::to_string(::getpid()) + ".part";  // two programs that end at once leave one whole file
  const auto failed = [&](const char* what) {
    return fail(Code::unavailable, std::string(what) + " " + path.string() + ": " + std::strerror(errno));
  };
  std::FILE* f = std::fopen(next.c_str(), "we");
  if (f == nullptr) return failed("write");
  const bool written = std::fwrite(text.data(), 1, text.size(), f) == text.size();
  const bool closed = std::fclose(f) == 0;
  if (closed && written && std::rename(next.c_str(), path.c_str()) == 0) return {};
  auto error = failed("write");
  std::remove(next.c_str());
  return error;
}

Result<WarmSet> read_warm_set(const std::filesystem::path& path, uint64_t fingerprint, int64_t n_layer, int64_t n_expert) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) return fail(Code::not_found, path.string() + ": no such file");
  if (error) return fail(Code::unavailable, path.string() + ": " + error.message());
  const auto damaged = [&](const std::string& what) { return fail(Code::data_loss, "warm set " + path.string() + ": " + what); };
  if (bytes > kMaxBytes) return damaged(format_bytes(bytes) + ", at most " + format_bytes(kMaxBytes));
  std::ifstream in(path, std::ios::binary);
  std::string content(bytes, '\0');
  in.read(content.data(), static_cast<std::streamsize>(bytes));
  if (static_cast<uint64_t>(in.gcount()) != bytes) return damaged("cannot be read");

  const size_t last = content.rfind("xxh3 ");
  uint64_t sum = 0;
  if (last == std::string::npos) return damaged("no checksum");
  std::string_view tail = std::string_view(content).substr(last + 5);
  if (!take(&tail, &sum, 16) || tail != "\n" || sum != checksum(std::string_view(content).substr(0, last)))
    return damaged("the checksum is wrong");
  std::string_view text = std::string_view(content).substr(0, last);
  WarmSet set;
  if (!take_word(&text, kMagic) || !take_word(&text, "\nmodel") || !take(&text, &set.fingerprint, 16) || !take_word(&text, " layers") ||
      !take(&text, &set.n_layer) || !take_word(&text, " experts") || !take(&text, &set.n_expert))
    return damaged("not of this version");
  if (set.fingerprint != fingerprint || set.n_layer != n_layer || set.n_expert != n_expert)
    return fail(Code::failed_precondition, "warm set " + path.string() + " is of another model");
  while (text != "\n") {
    int64_t layer = 0, expert = 0;
    double weight = 0;
    if (!take(&text, &layer) || !take(&text, &expert) || !take(&text, &weight)) return damaged("a line is not \"layer expert weight\"");
    if (layer < 0 || layer >= n_layer || expert < 0 || expert >= n_expert || !std::isfinite(weight))
      return damaged("a number is out of range");
    set.uses.push_back({static_cast<size_t>(layer * n_expert + expert), weight});
  }
  return set;
}

}  // namespace fth
