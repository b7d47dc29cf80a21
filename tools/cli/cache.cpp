// forethought cache: what is kept in the cache folder, how large it is, and how to be rid of it.

#include <algorithm>
#include <boost/json.hpp>
#include <set>
#include <system_error>

#include "core/base/bytes.h"
#include "tools/cli/command.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"
#include "tools/cli/repack.h"

namespace fth::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kHelp =
    "Lists what is kept in the cache folder: packed copies of models, warm sets, compiled kernels, measurements.\n"
    "--remove packed removes the packed copies, outdated those whose model has changed or is gone and those that were not finished, all "
    "the\n"
    "whole folder. Whatever is removed is made again when it is needed.\n\n"
    "  forethought cache\n"
    "  forethought cache --remove packed\n";

struct CacheFlags : CommonFlags {
  std::string remove;
};

void describe(CacheFlags& f, po::options_description& options) {
  options.add_options()("remove", po::value(&f.remove)->value_name("WHAT"), "packed, outdated or all");
  add_common(f, options, "print one JSON object");
}

struct Item {
  fs::path path;
  uint64_t bytes = 0;
  std::string what;
  bool packed = false, outdated = false;
  PackedCopy copy;  // where there is an entry
};

uint64_t bytes_of(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(fs::symlink_status(path, error))) {
    const auto bytes = fs::file_size(path, error);
    return error ? 0 : bytes;
  }
  uint64_t sum = 0;
  for (fs::recursive_directory_iterator at(path, error), end; !error && at != end; at.increment(error)) {
    std::error_code none;
    if (at->is_regular_file(none)) sum += at->file_size(none);
  }
  return sum;
}

std::string what_is(const std::string& name) {
  if (name == "opencl" || name.ends_with(".pipelines")) return "compiled kernels";
  if (name.ends_with(".warm")) return "warm set";
  if (name.ends_with(".json")) return "measurements";
  return "";
}

std::vector<Item> items() {
  std::vector<Item> out;
  std::set<fs::path> known;
  for (PackedCopy& copy : packed_copies()) {
    known.insert(copy.copy);
    out.push_back({copy.copy, copy.bytes, "packed copy of " + copy.source.string() + (copy.current ? "" : ", which has changed or is gone"),
                   true, !copy.current, copy});
  }
  std::error_code error;
  for (fs::directory_iterator at(cache_folder() / "packed", error), end; !error && at != end; at.increment(error))
    if (!known.contains(at->path())) out.push_back({at->path(), bytes_of(at->path()), "unfinished packed copy", true, true, {}});
  error.clear();
  std::vector<Item> others;
  for (fs::directory_iterator at(cache_folder(), error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name != "packed") others.push_back({at->path(), bytes_of(at->path()), what_is(name), false, false, {}});
  }
  std::sort(others.begin(), others.end(), [](const Item& a, const Item& b) { return a.path < b.path; });
  out.insert(out.end(), others.begin(), others.end());
  return out;
}

Result<int> run(CacheFlags& f) {
  if (!f.remove.empty() && f.remove != "packed" && f.remove != "outdated" && f.remove != "all")
    return fail(Code::invalid_argument, "--remove " + f.remove + ": must be packed, outdated or all");
  const fs::path folder = cache_folder();
  if (folder.empty()) return fail(Code::failed_precondition, "there is no cache folder: neither XDG_CACHE_HOME nor HOME names one");
  boost::json::array rows;
  Table table("rll", {"size", "file", ""});
  uint64_t total = 0, removed = 0;
  for (const Item& item : items()) {
    const bool remove = f.remove == "all" || (f.remove == "packed" && item.packed) || (f.remove == "outdated" && item.outdated);
    if (remove && !item.copy.copy.empty()) FTH_RETURN_IF_ERROR(remove_packed_copy(item.copy));
    std::error_code error;
    if (remove && item.copy.copy.empty()) fs::remove_all(item.path, error);
    if (error) return fail(Code::failed_precondition, item.path.string() + ": cannot be removed: " + error.message());
    total += item.bytes;
    removed += remove ? item.bytes : 0;
    table.row({format_bytes(item.bytes), printable(item.path.string()), printable(item.what) + (remove ? "; removed" : "")});
    rows.push_back({{"path", utf8_lossy(item.path.string())},
                    {"bytes", item.bytes},
                    {"what", utf8_lossy(item.what)},
                    {"outdated", item.outdated},
                    {"removed", remove}});
  }
  if (f.remove == "all") {
    std::error_code error;
    fs::remove_all(folder / "packed", error);  // empty by now
  }
  if (f.json) {
    FTH_RETURN_IF_ERROR(put(json_text(boost::json::object{
        {"folder", utf8_lossy(folder.string())}, {"bytes", total}, {"removed_bytes", removed}, {"files", std::move(rows)}})));
    return 0;
  }
  std::string out = (table.empty() ? "" : table.plain()) + format_bytes(total) + " in " + printable(folder.string());
  if (!f.remove.empty()) out += "; " + format_bytes(removed) + " removed";
  FTH_RETURN_IF_ERROR(put(out + '\n'));
  return 0;
}

}  // namespace

const Command kCache = make_command<CacheFlags, describe, run>("cache", "list what is kept in the cache folder, or remove it", kHelp);

}  // namespace fth::cli
