// Measuring is core/experts/measure.h's; this knows disks apart and keeps the answer.

#include "tools/cli/storage_profile.h"

#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <optional>

#include "core/base/bytes.h"
#include "core/experts/measure.h"
#include "tools/cli/cache_file.h"
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
};

std::optional<Kept> kept(const json::value& entry, const std::string& disk) {
  const json::object* o = entry.if_object();
  if (o == nullptr) return std::nullopt;
  const auto number = [&](const char* name) {
    const json::value* v = o->if_contains(name);
    return v != nullptr && v->is_number() ? v->to_number<double>() : -1.0;
  };
  const json::value *name = o->if_contains("disk"), *busy = o->if_contains("busy");
  if (name == nullptr || !name->is_string() || std::string_view(name->get_string()) != disk) return std::nullopt;
  Kept out;
  out.profile.bytes_per_second = number("bytes_per_second");
  out.profile.wait_seconds = number("wait_seconds");
  const double depth = number("queue_depth"), length = number("request_bytes");
  if (!(depth >= 1 && depth <= 256 && length >= 4096 && length <= 1e9)) return std::nullopt;
  out.profile.queue_depth = static_cast<uint32_t>(depth);
  out.profile.request_bytes = static_cast<uint64_t>(length);
  out.busy = busy == nullptr || !busy->is_bool() || busy->get_bool();
  return plausible(out.profile) ? std::optional(out) : std::nullopt;
}

}  // namespace

StorageProfile storage_profile(const std::filesystem::path& file, const std::string& reader, Measure when) {
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
  if (before && !before->busy && when == Measure::once) {
    out = before->profile;
    out.note = "measured before, kept in " + path.string();
    return out;
  }
  const bool busy = machine_is_busy();
  const auto m = measure_reads(file, reader);
  if (!m || !m->direct) {
    out.note = "storage not measured: " + (m ? "the file system has no O_DIRECT, so the page cache would be" : m.error().message);
    return out;
  }
  out.bytes_per_second = m->fastest_bytes_per_s;
  out.wait_seconds = m->wait_s;
  out.queue_depth = m->best.queue_depth;
  out.request_bytes = m->best.request_bytes;
  if (!plausible(out)) {
    out = {};
    out.note = "storage not measured: " + format_rate(m->fastest_bytes_per_s) + " is no speed of a disk";
    return out;
  }
  if (before && when == Measure::once && before->profile.bytes_per_second > out.bytes_per_second) out = before->profile;
  for (auto it = entries.begin(); it != entries.end();) it = kept(*it, *disk) ? entries.erase(it) : it + 1;
  constexpr size_t kMostDisks = 100;
  while (entries.size() >= kMostDisks) entries.erase(entries.begin());
  entries.push_back({{"disk", *disk},
                     {"bytes_per_second", out.bytes_per_second},
                     {"wait_seconds", out.wait_seconds},
                     {"queue_depth", out.queue_depth},
                     {"request_bytes", out.request_bytes},
                     {"busy", busy}});
  const bool stored = write_entries(path, kKey, entries);
  out.note = busy ? "measured now on a busy machine" : "measured now";
  out.note += stored ? ", kept in " + path.string() : "; it cannot be kept, set XDG_CACHE_HOME to a folder that can be written";
  return out;
}

}  // namespace fth::cli
