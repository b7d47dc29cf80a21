// Names, fallbacks and messages; what a warm set holds is core/experts' matter.

#include "tools/cli/warm.h"

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <utility>
#include <vector>

#include "tools/cli/machine.h"
#include "tools/cli/output.h"

namespace fth::cli {

namespace {

bool is_tag(std::string_view task) {
  return !task.empty() && task.size() <= 64 &&
         std::all_of(task.begin(), task.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; });
}

// In the cache folder, which may be unknown (empty).
std::filesystem::path warm_set_of(const Engine& engine, const std::string& task) {
  const auto folder = cache_folder();
  return folder.empty() ? folder
                        : folder / "warm" / (text("%016" PRIx64, engine.fingerprint()) + (task.empty() ? "" : "." + task) + ".warm");
}

}  // namespace

std::filesystem::path warm_set_to_read(const std::string& set, const Engine& engine) {
  if (set == "off") return {};
  if (set != "auto") return set;
  auto path = warm_set_of(engine, "");
  std::error_code error;
  return std::filesystem::exists(path, error) ? path : std::filesystem::path();
}

Result<> check_warm(const WarmFlags& flags) {
  const bool file = flags.set != "auto" && flags.set != "off";
  if (!flags.task.empty() && !is_tag(flags.task))
    return fail(Code::invalid_argument, "--task " + printable(flags.task, 80) + ": write at most 64 of a-z, 0-9 and -, such as mail");
  if (!flags.task.empty() && file)
    return fail(Code::invalid_argument, "--task chooses among the warm sets of the cache folder: leave it out, or --warm-set FILE");
  if (flags.pin < 0) return fail(Code::invalid_argument, text("--pin-experts %lld: must be 0 or more", static_cast<long long>(flags.pin)));
  if (flags.set == "off" && (flags.pin > 0 || !flags.task.empty()))
    return fail(Code::invalid_argument, std::string(flags.pin > 0 ? "--pin-experts" : "--task") + " needs a warm set: add --warm-set auto");
  return {};
}

Result<WarmSet> WarmSet::restore(const WarmFlags& flags, const CommonFlags& common, Engine& engine) {
  FTH_RETURN_IF_ERROR(check_warm(flags));
  WarmSet out;
  if (engine.streaming().empty() || flags.set == "off") {
    if (common.verbose && engine.streaming().empty() && (flags.pin > 0 || !flags.task.empty()))
      say("warm set: not needed, all experts are resident");
    return out;
  }
  std::vector<std::filesystem::path> candidates;
  if (flags.set != "auto") {
    candidates.emplace_back(flags.set);
  } else if (!cache_folder().empty()) {
    if (!flags.task.empty()) candidates.push_back(warm_set_of(engine, flags.task));
    candidates.push_back(warm_set_of(engine, ""));
  } else {
    if (!common.quiet) say("note: no warm set: neither XDG_CACHE_HOME nor HOME names a folder");
    return out;
  }
  out.engine_ = &engine;
  out.path_ = candidates.front();
  out.quiet_ = common.quiet;
  for (const auto& path : candidates) {
    const auto begin = std::chrono::steady_clock::now();
    const auto loaded = engine.load_warm_set(path);
    if (loaded) {
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      if (common.verbose)
        say(text("warm set: %lld experts read in %.2f s, from %s%s", static_cast<long long>(*loaded), seconds,
                 printable(path.string()).c_str(),
                 path == out.path_ ? "" : text(" (the model's general set: task %s has none yet)", flags.task.c_str()).c_str()));
      break;
    }
    if (loaded.error().code == Code::not_found) {
      if (common.verbose && path == candidates.back()) say("warm set: none yet, " + printable(out.path_.string()) + " will be written");
    } else if (!common.quiet) {
      say("note: warm set not used: " + printable(loaded.error().message));
    }
  }
  if (flags.pin > 0) {
    FTH_ASSIGN_OR_RETURN(const int64_t pinned, engine.pin_most_used(flags.pin));
    if (pinned < flags.pin && !common.quiet)
      say(text("note: %lld experts pinned of the %lld asked for: the warm set has no more", static_cast<long long>(pinned),
               static_cast<long long>(flags.pin)));
  }
  return out;
}

WarmSet::WarmSet(WarmSet&& other) noexcept
    : engine_(std::exchange(other.engine_, nullptr)), path_(std::move(other.path_)), quiet_(other.quiet_) {}

WarmSet::~WarmSet() {
  if (engine_ == nullptr) return;
  std::error_code ignored;  // a folder that cannot be made is said by the write
  if (path_.has_parent_path()) std::filesystem::create_directories(path_.parent_path(), ignored);
  if (const auto saved = engine_->save_warm_set(path_); !saved && !quiet_)
    say("note: warm set not kept: " + printable(saved.error().message));
}

}  // namespace fth::cli
