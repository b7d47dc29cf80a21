// packed/ in the cache folder: a file for each model, named by a hash of its path, and packed.json, which says of what.

#include "tools/cli/repack.h"

#include <sys/stat.h>

#include <algorithm>

#include <boost/json.hpp>
#include <cinttypes>

#include "core/base/bytes.h"
#include "core/model/pack.h"
#include "core/model/packed.h"
#include "tools/cli/cache_file.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/machine.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"

namespace fth::cli {
namespace {

namespace json = boost::json;

constexpr std::string_view kFile = "packed.json", kEntries = "copies";
constexpr int64_t kFormat = kPackedFormat;

struct Stamp {
  int64_t bytes = 0, seconds = 0, nanoseconds = 0;
  bool operator==(const Stamp&) const = default;
};

Stamp stamp_of(const std::filesystem::path& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return {};
  return {st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec};
}

// Of a split model all parts: sizes and times added.
Stamp stamp_of(std::span<const std::filesystem::path> parts) {
  Stamp all;
  for (const auto& part : parts) {
    const Stamp one = stamp_of(part);
    all.bytes += one.bytes, all.seconds += one.seconds, all.nanoseconds += one.nanoseconds;
  }
  return all;
}

std::string string_at(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_string() ? std::string(v->get_string()) : std::string();
}

int64_t integer_at(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v != nullptr && v->is_int64() ? v->get_int64() : -1;
}

struct Entry {
  std::string source, name;
  Stamp stamp;
  int64_t format = 0;
};

std::vector<Entry> entries() {
  std::vector<Entry> out;
  for (const json::value& value : read_entries(cache_file(kFile), kEntries)) {
    const json::object* o = value.if_object();
    if (o == nullptr) continue;
    Entry e{string_at(*o, "source"),
            string_at(*o, "name"),
            {integer_at(*o, "bytes"), integer_at(*o, "seconds"), integer_at(*o, "nanoseconds")},
            integer_at(*o, "format")};
    // A name and nothing else: what is removed lies in our folder.
    const bool plain = e.name.size() == 21 && e.name.ends_with(".gguf") && e.name.find_first_not_of("0123456789abcdef") == 16;
    if (plain && !e.source.empty()) out.push_back(std::move(e));
  }
  return out;
}

bool write(const std::vector<Entry>& all) {
  json::array out;
  for (const Entry& e : all)
    out.push_back({{"source", e.source},
                   {"name", e.name},
                   {"bytes", e.stamp.bytes},
                   {"seconds", e.stamp.seconds},
                   {"nanoseconds", e.stamp.nanoseconds},
                   {"format", e.format}});
  return write_entries(cache_file(kFile), kEntries, out);
}

std::filesystem::path folder() { return cache_folder() / "packed"; }

std::string name_for(std::string_view source) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : source) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return text("%016" PRIx64 ".gguf", hash);
}

}  // namespace

Result<std::filesystem::path> packed_copy(const std::filesystem::path& model, const EngineFlags& flags, const CommonFlags& common) {
  FTH_ASSIGN_OR_RETURN(const auto overrides, parse_overrides(flags.overrides));
  FTH_ASSIGN_OR_RETURN(const Model plain, load_model(model, overrides));
  if (plain.config.packed || !plain.config.is_sparse()) return model;
  if (cache_folder().empty())
    return fail(Code::failed_precondition,
                "--repack file: neither XDG_CACHE_HOME nor HOME names a folder; `forethought pack` writes anywhere");
  std::error_code error;
  const std::string source = std::filesystem::weakly_canonical(model, error).string();
  const Entry wanted{source, name_for(source), stamp_of(plain.file.parts()), kFormat};
  const std::filesystem::path copy = folder() / wanted.name;
  std::vector<Entry> all = entries();
  for (const Entry& e : all) {
    if (e.source != source || e.stamp != wanted.stamp || e.format != kFormat) continue;
    if (const auto packed = load_model(copy, overrides); packed && packed->config.packed) return copy;
  }
  // A copy of what the file was, or none: its entry goes before the file does.
  std::erase_if(all, [&](const Entry& e) { return e.source == source || e.name == wanted.name; });
  if (!write(all)) return fail(Code::failed_precondition, "--repack file: " + cache_file(kFile).string() + " cannot be written");
  std::filesystem::remove(copy, error);
  std::filesystem::create_directories(folder(), error);

  PackOptions o;
  o.in = model;
  o.out = copy;
  o.overrides = overrides;
  o.replace = true;
  o.stopped = interrupted;
  Progress bar("packing", Progress::Unit::bytes, !common.quiet);
  o.on_progress = [&](uint64_t done, uint64_t total) { bar.update(done, total); };
  const auto packed = pack_model(o);
  bar.clear();
  if (!packed) return tl::unexpected<Error>(Error(packed.error()).context("--repack file"));
  if (stamp_of(plain.file.parts()) != wanted.stamp)
    return fail(Code::data_loss, model.string() + ": was changed while it was packed; start again");
  all.push_back(wanted);
  if (!write(all)) return fail(Code::failed_precondition, "--repack file: " + cache_file(kFile).string() + " cannot be written");
  if (!common.quiet) say("note: a packed copy of the model is kept, " + format_bytes(packed->out_bytes) + ": " + printable(copy.string()));
  return copy;
}

Result<> remove_packed_copy(const PackedCopy& copy) {
  std::vector<Entry> all = entries();
  // Its entry goes before the file does.
  std::erase_if(all, [&](const Entry& e) { return e.name == copy.copy.filename().string(); });
  if (!write(all)) return fail(Code::failed_precondition, cache_file(kFile).string() + ": cannot be written");
  std::error_code error;
  std::filesystem::remove(copy.copy, error);
  if (error) return fail(Code::failed_precondition, copy.copy.string() + ": cannot be removed: " + error.message());
  return {};
}

AutoCopy auto_copy(const Model& model, const std::filesystem::path& path) {
  AutoCopy out;
  if (model.config.packed || !model.config.is_sparse()) return out;
  if (cache_folder().empty()) {
    out.note = "there is no cache folder to keep a packed copy in";
    return out;
  }
  std::error_code error;
  const std::string source = std::filesystem::weakly_canonical(path, error).string();
  const Stamp stamp = stamp_of(model.file.parts());
  for (const Entry& e : entries())
    if (e.source == source && e.stamp == stamp && e.format >= 1 && e.format <= kFormat)
      if (const auto packed = load_model(folder() / e.name); packed && packed->config.packed) {  // else it is written again
        (e.format == kFormat ? out.use : out.older) = folder() / e.name;
        if (!out.use.empty()) return out;
      }
  // Slabs end at whole pages; the rest is the file's own.
  out.bytes =
      static_cast<uint64_t>(std::max<int64_t>(stamp.bytes, 0)) + static_cast<uint64_t>(model.config.n_layer * model.config.n_expert) * 4096;
  std::filesystem::create_directories(folder(), error);
  struct stat here {
  }, there{};
  if (::stat(path.c_str(), &here) != 0 || ::stat(folder().c_str(), &there) != 0) {
    out.note = folder().string() + " cannot be made";
    return out;
  }
  // Experts will be read from there: another disk may be slower than the model's, or no disk at all.
  if (here.st_dev != there.st_dev) {
    out.note = "the cache folder, " + cache_folder().string() +
               ", is on another disk than the model; `--repack file` writes a packed copy there all the same";
    return out;
  }
  out.free = std::filesystem::space(folder(), error).available;
  if (!out.older.empty() && !error)
    if (const uint64_t bytes = std::filesystem::file_size(out.older, error); !error) out.free += bytes;
  out.write = !error && out.free > 2 * out.bytes + kGiB;
  if (!out.write)
    out.note = "no packed copy is written: it would take " + format_bytes(out.bytes) + " of the " + format_bytes(error ? 0 : out.free) +
               " that are free in " + folder().string() +
               ", and at least as much again and 1 GiB have to stay free; `--repack file` writes it all the same";
  return out;
}

std::vector<PackedCopy> packed_copies() {
  std::vector<PackedCopy> out;
  if (cache_folder().empty()) return out;
  for (const Entry& e : entries()) {
    PackedCopy copy;
    copy.source = e.source;
    copy.copy = folder() / e.name;
    std::error_code error;
    copy.bytes = std::filesystem::file_size(copy.copy, error);
    if (error) continue;
    const auto now = Gguf::open(copy.source);
    copy.current = now && stamp_of(now->parts()) == e.stamp && e.format == kFormat;
    out.push_back(std::move(copy));
  }
  return out;
}

}  // namespace fth::cli
