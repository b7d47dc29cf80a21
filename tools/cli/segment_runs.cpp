// Kept in segments.json: {"runs": [...]}. Segments cross to the child as they are in memory: both are the same program.

#include "tools/cli/segment_runs.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <cstring>

#include "core/device/scratch_run.h"
#include "tools/cli/cache_file.h"
#include "tools/cli/output.h"
#include "tools/cli/own_child.h"

namespace fth::cli {

namespace {

namespace json = boost::json;
constexpr std::string_view kKey = "runs";
constexpr double kSecondsForAll = 120, kSecondsForOne = 0.05;
constexpr uint64_t kSpread = uint64_t{48} << 20, kSeed = 1;
constexpr size_t kMostRows = 2000;

// FNV-1a; the text itself would be kilobytes.
std::string shape_of(const fth_segment& s) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&](const void* bytes, size_t n) {
    for (size_t i = 0; i < n; ++i) hash = (hash ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3u;
  };
  mix(s.tensors, s.n_tensors * sizeof(fth_tensor));
  mix(s.ops, s.n_ops * sizeof(fth_op));
  return text("%016llx", static_cast<unsigned long long>(hash));
}

std::string identity(const std::filesystem::path& file) {
  struct stat s {};
  if (::stat(file.c_str(), &s) != 0) return "?";
  return text("%lld bytes of %lld.%09ld", static_cast<long long>(s.st_size), static_cast<long long>(s.st_mtim.tv_sec), s.st_mtim.tv_nsec);
}

void append(std::string& to, const void* bytes, size_t n) { to.append(static_cast<const char*>(bytes), n); }

std::string packed(std::span<const fth_segment> segments, std::span<const size_t> which) {
  std::string out;
  for (const size_t i : which) {
    const fth_segment& s = segments[i];
    append(out, &s.n_tensors, sizeof s.n_tensors);
    append(out, &s.n_ops, sizeof s.n_ops);
    append(out, s.tensors, s.n_tensors * sizeof(fth_tensor));
    append(out, s.ops, s.n_ops * sizeof(fth_op));
  }
  return out;
}

// Where decoding is halfway through a context; a ring that is full.
int64_t usual_position(const fth_segment& s, int64_t rows) {
  for (uint32_t i = 0; i < s.n_ops; ++i) {
    if (s.ops[i].kind != FTH_OP_ATTENTION) continue;
    const int64_t cells = s.tensors[s.ops[i].in[3]].dims[0];
    return s.ops[i].attr[3] > 0 ? cells : std::max<int64_t>(0, cells / 2 - rows);
  }
  return 0;
}

Result<double> measured(const Device& device, const fth_segment& s) {
  FTH_ASSIGN_OR_RETURN(ScratchRun run, ScratchRun::make(device, s, kSeed, kSpread));
  const int64_t rows = s.n_tensors == 0 ? 1 : s.tensors[0].dims[0];
  return run.fastest(rows, usual_position(s, rows), kSecondsForOne);
}

}  // namespace

SegmentRuns::SegmentRuns(uint32_t threads, std::string cpu_options, IfUnknown if_unknown)
    : threads_(threads), cpu_options_(std::move(cpu_options)), if_unknown_(if_unknown), path_(cache_file("segments.json")) {
  for (const json::value& v : read_entries(path_, kKey)) {
    const json::object* o = v.if_object();
    const json::value *device = o ? o->if_contains("device") : nullptr, *shape = o ? o->if_contains("shape") : nullptr,
                      *seconds = o ? o->if_contains("seconds") : nullptr, *busy = o ? o->if_contains("busy") : nullptr,
                      *profile = o ? o->if_contains("profile") : nullptr;
    if (device == nullptr || !device->is_string() || shape == nullptr || !shape->is_string() || seconds == nullptr || !seconds->is_double())
      continue;
    const double s = seconds->get_double();
    const auto said = [](const json::value* flag) { return flag != nullptr && flag->is_bool() && flag->get_bool(); };
    if (s > 0 && s < 1e4) rows_[{std::string(device->get_string()), std::string(shape->get_string())}] = {s, said(busy), said(profile)};
  }
}

std::string SegmentRuns::about(const Registry& registry, size_t device) const {
  const DeviceEntry& entry = registry.devices()[device];
  const BackendReport& backend = registry.backends()[entry.backend];
  const fth_device_info& info = entry.device.info();
  return utf8_lossy(
      text("%s, index %u, %u threads, %s; ", backend.path.empty() ? "linked in" : identity(backend.path).c_str(), entry.index, threads_,
           backend.path.empty()
               ? cpu_options_.substr(cpu_options_.find("isa=") == std::string::npos ? cpu_options_.size() : cpu_options_.find("isa="))
                     .c_str()
               : "") +
      std::string(info.description, strnlen(info.description, sizeof info.description)) + "; program " + identity("/proc/self/exe"));
}

void SegmentRuns::take_profiled(const Registry& registry, size_t device, const fth_segment& segment, double seconds) {
  if (seconds <= 0) return;
  const std::string known = about(registry, device);
  in_use_.insert(known);
  rows_[{known, shape_of(segment)}] = {seconds, false, true};
}

void SegmentRuns::save() const {
  json::array all;
  for (const bool in_use : {true, false})  // a full file loses what other programs and devices left
    for (const auto& [key, row] : rows_) {
      if (all.size() == kMostRows || (in_use_.count(key.first) != 0) != in_use) continue;
      all.push_back(
          {{"device", key.first}, {"shape", key.second}, {"seconds", row.seconds}, {"busy", row.busy}, {"profile", row.by_profile}});
    }
  (void)write_entries(path_, kKey, all);  // else measured again
}

std::vector<SegmentRun> SegmentRuns::seconds(const Registry& registry, size_t device, std::span<const fth_segment> segments,
                                             IfUnmeasured if_unmeasured) {
  const DeviceEntry& entry = registry.devices()[device];
  const BackendReport& backend = registry.backends()[entry.backend];
  const std::string known = about(registry, device);
  in_use_.insert(known);
  const bool measure = if_unmeasured == IfUnmeasured::measure && if_unknown_ == IfUnknown::measure;
  const bool busy = measure && machine_is_busy();
  std::vector<SegmentRun> out;
  std::vector<size_t> missing;
  for (size_t i = 0; i < segments.size(); ++i) {
    const auto found = rows_.find({known, shape_of(segments[i])});
    out.push_back(found == rows_.end() ? SegmentRun{} : SegmentRun{found->second.seconds, found->second.by_profile});
    if (found == rows_.end() || (found->second.busy && !busy)) missing.push_back(i);
  }
  if (missing.empty() || !measure) return out;
  const ChildAnswer answer =
      ask_child({"measure-segments", backend.path, std::to_string(entry.index), std::to_string(threads_), cpu_options_},
                packed(segments, missing), kSecondsForAll);
  json::error_code error;
  const json::value parsed = json::parse(answer.text, error);
  if (!answer.failure.empty() || error || !parsed.is_array()) return out;
  const json::array& figures = parsed.get_array();
  for (size_t m = 0; m < std::min(missing.size(), figures.size()); ++m) {
    const double s = figures[m].is_number() ? figures[m].to_number<double>() : 0;
    if (!(s > 0 && s < 1e4)) continue;
    Row& row = rows_[{known, shape_of(segments[missing[m]])}];
    row = {row.seconds > 0 ? std::min(row.seconds, s) : s, busy, false};
    out[missing[m]].seconds = row.seconds;
  }
  save();
  return out;
}

int measure_segments_main(const std::vector<std::string>& args) {
  if (args.size() != 4) return 2;
  ::fcntl(kAnswerFd, F_SETFD, FD_CLOEXEC);
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  std::string given;
  char bytes[4096];
  for (ssize_t n = 0; (n = ::read(0, bytes, sizeof bytes)) > 0;) given.append(bytes, static_cast<size_t>(n));
  RegistryOptions options;
  options.n_threads = static_cast<uint32_t>(std::clamp(std::atoi(args[2].c_str()), 0, 1024));
  options.builtin_only = args[0].empty();
  options.named_only = true;
  if (!args[0].empty()) options.plugin_paths = {args[0]};
  options.cpu_options = args[3];
  const auto registry = Registry::open(options);
  if (!registry) return 1;
  const Device* device = nullptr;
  for (const DeviceEntry& entry : (*registry)->devices())
    if ((*registry)->backends()[entry.backend].path.empty() == args[0].empty() &&
        entry.index == static_cast<uint32_t>(std::atoi(args[1].c_str())))
      device = &entry.device;
  if (device == nullptr) return 1;
  json::array out;
  for (size_t at = 0; at + 8 <= given.size();) {
    fth_segment s{sizeof s, 0, 0, FTH_SCALAR_COUNT, "measured", nullptr, nullptr};
    std::memcpy(&s.n_tensors, given.data() + at, 4);
    std::memcpy(&s.n_ops, given.data() + at + 4, 4);
    at += 8;
    const uint64_t n_bytes = uint64_t{s.n_tensors} * sizeof(fth_tensor) + uint64_t{s.n_ops} * sizeof(fth_op);
    if (n_bytes > given.size() - at) return 1;
    std::vector<fth_tensor> tensors(s.n_tensors);
    std::vector<fth_op> ops(s.n_ops);
    std::memcpy(tensors.data(), given.data() + at, tensors.size() * sizeof(fth_tensor));
    std::memcpy(ops.data(), given.data() + at + tensors.size() * sizeof(fth_tensor), ops.size() * sizeof(fth_op));
    at += n_bytes;
    s.tensors = tensors.data();
    s.ops = ops.data();
    const auto seconds = measured(*device, s);
    out.push_back(seconds ? *seconds : 0.0);
  }
  const std::string answer = json::serialize(out);
  ::_exit(::write(kAnswerFd, answer.data(), answer.size()) == static_cast<ssize_t>(answer.size()) ? 0 : 1);
}

}  // namespace fth::cli
