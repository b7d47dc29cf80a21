// Measuring is core/experts/measure.h's; this knows disks apart and keeps the answer.

#include "tools/cli/storage_profile.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "core/base/bytes.h"
#include "core/device/registry.h"
#include "core/experts/measure.h"
#include "tools/cli/bandwidth.h"
#include "tools/cli/cache_file.h"
#include "tools/cli/in_child.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"

namespace fth::cli {

namespace {

namespace json = boost::json;
constexpr std::string_view kKey = "disks";

// "254:0, file system 0xef53, QEMU HARDDISK, 536870912 sectors, reader auto": what has to be the same for a figure to be used again. A device number alone is not enough:
// it names another disk after a change of machine.
std::optional<std::string> identity(const std::filesystem::path& file, const std::string& reader, std::string* why_not) {
  struct stat s {};
  struct statfs fs {};
  if (::stat(file.c_str(), &s) != 0 || ::statfs(file.c_str(), &fs) != 0) {
    *why_not = file.string() + ": " + std::strerror(errno);
    return std::nullopt;
  }
  const std::string device = text("%u:%u", major(s.st_dev), minor(s.st_dev));
  std::string out = device + text(", file system 0x%lx", static_cast<unsigned long>(fs.f_type));
  // A partition has its size here and its disk one folder up; network and overlay file systems have no such folder.
  const std::filesystem::path folder = "/sys/dev/block/" + device;
  std::string model = first_line(folder / "device/model");
  if (model.empty()) model = first_line(folder / "../device/model");
  if (!model.empty()) out += ", " + model;
  if (const std::string sectors = first_line(folder / "size"); !sectors.empty()) out += ", " + sectors + " sectors";
  return utf8_lossy(out + ", reader " + reader);
}

bool plausible(const StorageProfile& p) {
  return p.bytes_per_second > 1e5 && p.bytes_per_second < 1e12 && p.wait_seconds >= 0 && p.wait_seconds < 10 && p.queue_depth >= 1 &&
         p.queue_depth <= 256 && p.request_bytes >= 4096 && p.request_bytes <= 64 * kMiB && p.request_bytes % 4096 == 0;
}

struct Kept {
  StorageProfile profile;
  bool busy = false;
  int tries = 1;  // on a busy machine, before this one included
};

bool is_of(const json::value& entry, const std::string& disk) {
  const json::object* o = entry.if_object();
  const json::value* name = o == nullptr ? nullptr : o->if_contains("disk");
  return name != nullptr && name->is_string() && std::string_view(name->get_string()) == disk;
}

std::optional<Kept> kept(const json::value& entry, const std::string& disk) {
  if (!is_of(entry, disk)) return std::nullopt;
  const json::object* o = entry.if_object();
  const auto number = [&](const char* name) {
    const json::value* v = o->if_contains(name);
    return v != nullptr && v->is_number() ? v->to_number<double>() : -1.0;
  };
  const json::value* busy = o->if_contains("busy");
  Kept out;
  out.profile.bytes_per_second = number("bytes_per_second");
  out.profile.wait_seconds = number("wait_seconds");
  const double depth = number("queue_depth"), length = number("request_bytes");
  if (!(depth >= 1 && depth <= 256 && length >= 4096 && length <= 1e9)) return std::nullopt;
  out.profile.queue_depth = static_cast<uint32_t>(depth);
  out.profile.request_bytes = static_cast<uint64_t>(length);
  out.busy = busy == nullptr || !busy->is_bool() || busy->get_bool();
  out.tries = static_cast<int>(std::clamp(number("tries"), 1.0, 100.0));
  return plausible(out.profile) ? std::optional(out) : std::nullopt;
}

// What the child sends.
struct Figures {
  double bytes_per_second = 0, wait_seconds = 0;
  uint32_t queue_depth = 0;
  uint64_t request_bytes = 0;
  char why_not[200] = {};
};

// Reads while every core streams memory, as in a run: reading shares the memory with computing (measured on a virtual disk: 5 to 7 GB/s alone, 1.5 to 3 beside a decoding
// model or such a loop).
Figures measure(const std::filesystem::path& file, const std::string& reader, uint64_t busy_bytes) {
  Figures out;
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> sums = 0;
  std::vector<std::thread> threads;
  void* const memory =
      busy_bytes == 0 ? MAP_FAILED : ::mmap(nullptr, busy_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory != MAP_FAILED) {
    ::madvise(memory, busy_bytes, MADV_HUGEPAGE);
    const std::span<uint64_t> words(static_cast<uint64_t*>(memory), busy_bytes / sizeof(uint64_t));
    std::fill(words.begin(), words.end(), 1);
    const uint32_t n = usable_cores();
    const size_t share = words.size() / n, block = std::min<size_t>(share, 64 * kKiB);
    for (uint32_t t = 0; t < n; ++t)
      threads.emplace_back([&stop, &sums, block, part = words.subspan(t * share, share)] {
        for (size_t at = 0; !stop; at = at + 2 * block > part.size() ? 0 : at + block) sums += sum_words(part.subspan(at, block));
      });
  }
  const auto m = measure_reads(file, reader);
  stop = true;
  for (auto& thread : threads) thread.join();
  if (!m || !m->direct) {
    std::snprintf(out.why_not, sizeof out.why_not, "%s",
                  m ? "the file system has no O_DIRECT, so the page cache would be" : m.error().message.c_str());
    return out;
  }
  out.bytes_per_second = m->steady_bytes_per_s;
  out.wait_seconds = m->wait_s;
  out.queue_depth = m->best.queue_depth;
  out.request_bytes = m->best.request_bytes;
  return out;
}

}  // namespace

StorageProfile storage_profile(const std::filesystem::path& file, const std::string& reader, Measure when, IfUnknown if_unknown) {
  StorageProfile out;
  std::string why_not;
  const auto disk = identity(file, reader, &why_not);
  if (!disk) {
    out.note = "storage not measured: " + why_not;
    return out;
  }
  const auto path = cache_file("storage.json");
  json::array entries = read_entries(path, kKey);
  std::optional<Kept> before;
  for (const json::value& entry : entries)
    if (auto k = kept(entry, *disk); k && (!before || k->profile.bytes_per_second > before->profile.bytes_per_second)) before = k;
  constexpr int kTries = 4;  // a machine that is always busy has no other figures
  if (before && when == Measure::once && (!before->busy || before->tries >= kTries || if_unknown == IfUnknown::leave)) {
    out = before->profile;
    out.note = "measured before, kept in " + path.string();
    return out;
  }
  if (if_unknown == IfUnknown::leave) {
    out.note = "storage not measured: nothing is read from it";
    return out;
  }
  const bool busy = machine_is_busy();
  // Beyond the last-level cache, so that the cores wait for memory; nothing where memory is short.
  uint64_t busy_bytes = std::clamp<uint64_t>(4 * l3_bytes(), 256 * kMiB, kGiB);
  if (read_memory().free_for_us() < 4 * busy_bytes) busy_bytes = 0;
  const Figures f = in_child([&] { return measure(file, reader, busy_bytes); }, why_not).value_or(Figures{});
  if (f.why_not[0] != 0) why_not = printable(f.why_not);
  out = {f.bytes_per_second, f.wait_seconds, f.queue_depth, f.request_bytes, {}};
  if (!why_not.empty() || !plausible(out)) {
    out = {};
    out.note = "storage not measured: " + (why_not.empty() ? format_rate(f.bytes_per_second) + " is no speed of a disk" : why_not);
    return out;
  }
  // Doubtful figures of several starts: their mean, weighted to the last.
  if (before && when == Measure::once) out.bytes_per_second = (before->profile.bytes_per_second + out.bytes_per_second) / 2;
  for (auto it = entries.begin(); it != entries.end();) it = is_of(*it, *disk) ? entries.erase(it) : it + 1;
  constexpr size_t kMostDisks = 100;
  while (entries.size() >= kMostDisks) entries.erase(entries.begin());
  entries.push_back({{"disk", *disk},
                     {"bytes_per_second", out.bytes_per_second},
                     {"wait_seconds", out.wait_seconds},
                     {"queue_depth", out.queue_depth},
                     {"request_bytes", out.request_bytes},
                     {"busy", busy},
                     {"tries", before && when == Measure::once ? before->tries + 1 : 1}});
  const bool stored = write_entries(path, kKey, entries);
  out.note = busy ? "measured now on a busy machine" : "measured now";
  out.note += stored ? ", kept in " + path.string() : "; it cannot be kept, set XDG_CACHE_HOME to a folder that can be written";
  return out;
}

}  // namespace fth::cli
