// The environment's part of the options is read here: FORETHOUGHT_MODEL, FORETHOUGHT_PLUGIN_PATH.

#include "tools/cli/open.h"

#include <algorithm>
#include <cstdlib>

#include "core/base/bytes.h"
#include "tools/cli/expert_times.h"
#include "tools/cli/in_child.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"
#include "tools/cli/repack.h"

namespace fth::cli {

void Log::receive(void* self, int32_t level, const char* message) {
  auto& log = *static_cast<Log*>(self);
  const std::string line = printable(message);
  if (level <= FTH_LOG_WARNING ? !log.quiet_ || level == FTH_LOG_ERROR : log.verbose_) say("forethought: " + line);
  const std::lock_guard lock(log.mutex_);
  constexpr size_t kMost = 1000;  // a plugin that talks without end
  if (log.lines_.size() == kMost) log.lines_.pop_front();
  log.lines_.push_back(line);
}

std::vector<std::string> Log::lines() const {
  const std::lock_guard lock(mutex_);
  return {lines_.begin(), lines_.end()};
}

Result<std::filesystem::path> find_model(const std::string& given) {
  std::filesystem::path path = given;
  const char* environment = std::getenv("FORETHOUGHT_MODEL");
  if (path.empty() && environment != nullptr) path = environment;
  std::error_code error;
  // "tiny" names the bundled model, where it is no file's name.
  const bool bundled = path.empty() || (path == "tiny" && !std::filesystem::exists(path, error));
  if (!bundled) {
    if (!std::filesystem::exists(path, error))
      return fail(Code::not_found,
                  "model " + path.string() + ": no such file" + (given.empty() ? " (from FORETHOUGHT_MODEL)" : "; check -m"));
    return path;
  }
  constexpr const char* kBundled = "tiny-smallthinker-q4_0.gguf";
  const auto folder = program_folder();
  for (const auto& place : {folder / kBundled, folder / "../share/forethought" / kBundled})
    if (std::filesystem::exists(place, error)) return place.lexically_normal();
  return fail(Code::not_found, "no model: give one with -m FILE or FORETHOUGHT_MODEL; the bundled one is not in " + folder.string());
}

Result<std::vector<Override>> parse_overrides(const std::vector<std::string>& given) {
  std::vector<Override> out;
  for (const std::string& pair : given) {
    const size_t at = pair.find('=');
    if (at == std::string::npos || at == 0)
      return fail(Code::invalid_argument, "--override " + pair + ": write KEY=VALUE, such as context_length=8192");
    out.push_back({pair.substr(0, at), pair.substr(at + 1)});
  }
  return out;
}

namespace {

// Compiled kernels are kept from run to run; what a person says of a device comes with it.
Result<std::vector<DeviceOptions>> device_options(const DeviceFlags& flags) {
  std::vector<DeviceOptions> out;
  for (const std::string& given : flags.device_options) {
    const auto bad = [&] {
      return fail(Code::invalid_argument, "--device-option " + given +
                                              ": write BACKEND:KEY=VALUE or BACKEND:INDEX:KEY=VALUE, such as "
                                              "vulkan:0:subgroups=off");
    };
    const size_t equals = given.find('='), first = given.find(':');
    if (first == 0 || first == std::string::npos || equals == std::string::npos || first > equals) return bad();
    if (flags.cpu_only)
      return fail(Code::invalid_argument, "--device-option and --cpu-only exclude each other: with --cpu-only no plugin is opened");
    DeviceOptions option{given.substr(0, first), std::nullopt, given.substr(first + 1), true};
    if (const size_t second = given.find(':', first + 1); second < equals) {
      const std::string index = given.substr(first + 1, second - first - 1);
      if (index.empty() || index.size() > 2 || index.find_first_not_of("0123456789") != std::string::npos) return bad();
      option.index = static_cast<uint32_t>(std::stoul(index));
      option.options = given.substr(second + 1);
    }
    if (option.options.find('=') == 0 || option.options.find(',') != std::string::npos) return bad();
    out.push_back(std::move(option));
  }
  const std::filesystem::path folder = flags.cpu_only ? std::filesystem::path() : cache_folder();
  std::error_code error;
  if (folder.empty() || folder.string().find(',') != std::string::npos) return out;  // a comma ends an option
  std::filesystem::create_directories(folder / "opencl", error);
  if (error) return out;  // nothing is kept then
  const auto said = [&](const std::string& backend, uint32_t index, std::string_view key) {
    return std::any_of(out.begin(), out.end(), [&](const DeviceOptions& o) {
      return o.backend == backend && o.index.value_or(index) == index && o.options.starts_with(std::string(key) + "=");
    });
  };
  constexpr uint32_t kMost = 8;  // devices of a backend with a file of their own
  std::vector<DeviceOptions> kept;
  for (uint32_t i = 0; i < kMost; ++i) {
    if (!said("vulkan", i, "pipeline_cache"))
      kept.push_back({"vulkan", i, "pipeline_cache=" + (folder / text("vulkan-%u.pipelines", i)).string(), false});
    if (!said("opencl", i, "program_cache")) kept.push_back({"opencl", i, "program_cache=" + (folder / "opencl").string(), false});
  }
  out.insert(out.end(), kept.begin(), kept.end());
  return out;
}

}  // namespace

uint32_t threads_asked(const DeviceFlags& flags) {
  if (flags.threads != 0 || flags.cpus.empty()) return static_cast<uint32_t>(std::clamp<int64_t>(flags.threads, 0, 1024));
  const auto cpus = parse_cpus(flags.cpus);
  return cpus ? static_cast<uint32_t>(cpus->size()) : 0;
}

Result<RegistryOptions> registry_options(const DeviceFlags& flags, const MachineProfile& profile, Log& log, DeviceChecks* checks) {
  RegistryOptions out;
  if (flags.threads < 0 || flags.threads > 1024)
    return fail(Code::invalid_argument, text("--threads %lld: must be 1 to 1024", static_cast<long long>(flags.threads)));
  if (flags.cpu_only && !flags.plugins.empty())
    return fail(Code::invalid_argument, "--plugin and --cpu-only exclude each other: with --cpu-only no plugin is opened");
  if (flags.cpu_isa.find_first_of(",=") != std::string::npos)
    return fail(Code::invalid_argument, "--cpu-isa " + flags.cpu_isa + ": must be a name; `forethought devices -v` lists them");
  out.n_threads = threads_asked(flags);
  if (!flags.cpus.empty()) {
    FTH_ASSIGN_OR_RETURN(out.cpus, parse_cpus(flags.cpus));
  }
  out.builtin_only = flags.cpu_only;
  // A relative path on the command line is the user's own choice; the registry refuses it, and one from the environment stays refused.
  for (const std::string& path : flags.plugins) {
    std::error_code error;
    const auto absolute = std::filesystem::absolute(path, error);
    out.plugin_paths.push_back(error ? std::filesystem::path(path) : absolute.lexically_normal());
  }
  if (const char* list = std::getenv("FORETHOUGHT_PLUGIN_PATH"); list != nullptr) {
    std::string_view rest = list;
    while (!rest.empty()) {
      const size_t end = std::min(rest.find(':'), rest.size());
      if (end > 0) out.plugin_paths.emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  if (profile.bytes_per_second > 0) out.cpu_options = text("bytes_per_second=%.6g", profile.bytes_per_second);
  if (!flags.cpu_isa.empty()) out.cpu_options += (out.cpu_options.empty() ? "isa=" : ",isa=") + flags.cpu_isa;
  FTH_ASSIGN_OR_RETURN(out.device_options, device_options(flags));
  if (checks != nullptr) {
    out.admit = [checks](const std::filesystem::path& file) { return checks->admit(file); };
    out.check = [checks](const BackendReport& backend, uint32_t index, const Device& device) {
      return checks->check(backend, index, device);
    };
  }
  out.log = &Log::receive;
  out.log_self = &log;
  return out;
}

namespace {

Result<EngineOptions> engine_options(const EngineFlags& flags, const MachineProfile& profile, Log& log, DeviceChecks* checks = nullptr) {
  EngineOptions out;
  FTH_ASSIGN_OR_RETURN(out.overrides, parse_overrides(flags.overrides));
  FTH_ASSIGN_OR_RETURN(out.registry, registry_options(flags, profile, log, checks));
  if (flags.ctx < 0) return fail(Code::invalid_argument, text("--ctx %lld: must be positive", static_cast<long long>(flags.ctx)));
  if (flags.ubatch < 0 || flags.ubatch > 512)
    return fail(Code::invalid_argument, text("-ub %lld: must be 1 to 512", static_cast<long long>(flags.ubatch)));
  const auto kv = dtype_from_name(flags.kv_type);
  if (!kv || (*kv != DType::f16 && *kv != DType::f32 && *kv != DType::q8_0))
    return fail(Code::invalid_argument, "--kv-type " + flags.kv_type + ": must be f16, q8_0 or f32");
  if (flags.kv_place != "auto" && flags.kv_place != "memory" && flags.kv_place != "storage")
    return fail(Code::invalid_argument, "--kv " + flags.kv_place + ": must be auto, memory or storage");
  out.kv.placement = flags.kv_place == "memory"    ? KvPlacement::memory
                     : flags.kv_place == "storage" ? KvPlacement::storage
                                                   : KvPlacement::automatic;
  if (!flags.kv_directory.empty()) out.kv.directory = flags.kv_directory;
  if (!flags.ram.empty()) {
    FTH_ASSIGN_OR_RETURN(out.ram_budget, parse_size("--ram", flags.ram));
  }
  if (!flags.vram.empty()) {
    FTH_ASSIGN_OR_RETURN(out.vram_budget, parse_size("--vram", flags.vram));
  }
  for (const std::string& rule : flags.places) {
    const size_t at = rule.rfind('=');
    if (at == std::string::npos || at == 0 || at + 1 == rule.size())
      return fail(Code::invalid_argument, "--place " + rule + ": write PATTERN=DEVICE, such as 'layer.*.attention=cpu'");
    out.rules.push_back({rule.substr(0, at), rule.substr(at + 1)});
  }
  if (flags.experts != "auto" && flags.experts != "resident" && flags.experts != "streamed")
    return fail(Code::invalid_argument, "--experts " + flags.experts + ": must be auto, resident or streamed");
  out.experts = flags.experts == "resident"   ? ExpertPlacement::resident
                : flags.experts == "streamed" ? ExpertPlacement::streamed
                                              : ExpertPlacement::automatic;
  if (flags.slots < 0)
    return fail(Code::invalid_argument, text("--expert-slots %lld: must be positive", static_cast<long long>(flags.slots)));
  if (flags.queue_depth < 0 || flags.queue_depth > 4096)
    return fail(Code::invalid_argument, text("--expert-queue %lld: must be 1 to 4096", static_cast<long long>(flags.queue_depth)));
  out.stream.slots = flags.slots;
  out.stream.reader = flags.reader;
  out.stream.policy = flags.policy;
  out.stream.queue_depth = static_cast<uint32_t>(flags.queue_depth);
  out.stream.direct = !flags.buffered;
  if (flags.guess != "auto" && flags.guess != "on" && flags.guess != "off")
    return fail(Code::invalid_argument, "--expert-guess " + flags.guess + ": must be auto, on or off");
  out.stream.guess = flags.guess == "on" ? Guess::on : flags.guess == "off" ? Guess::off : Guess::automatic;
  if (flags.prefetch != "on" && flags.prefetch != "off")
    return fail(Code::invalid_argument, "--expert-prefetch " + flags.prefetch + ": must be on or off");
  out.stream.prefetch = flags.prefetch == "on";
  out.stream.verify = flags.verify_experts;
  out.stream.tier = flags.tier;
  if (flags.overlap != "on" && flags.overlap != "off")
    return fail(Code::invalid_argument, "--overlap " + flags.overlap + ": must be on or off");
  out.overlap = flags.overlap == "on";
  if (flags.early_gates != "on" && flags.early_gates != "off")
    return fail(Code::invalid_argument, "--expert-early-gates " + flags.early_gates + ": must be on or off");
  out.stream.early_gates = flags.early_gates == "on";
  if (flags.lm_head != "exact" && flags.lm_head != "screened")
    return fail(Code::invalid_argument, "--lm-head " + flags.lm_head + ": must be exact or screened");
  if (flags.repack != "auto" && flags.repack != "memory" && flags.repack != "file" && flags.repack != "off")
    return fail(Code::invalid_argument, "--repack " + flags.repack + ": must be auto, memory, file or off");
  FTH_RETURN_IF_ERROR(check_gather(flags.gather));
  out.repack = flags.repack == "off" ? Repack::off : flags.repack == "memory" ? Repack::memory : Repack::automatic;
  out.head = flags.lm_head == "screened" ? HeadMode::screened : HeadMode::exact;
  out.n_ctx = flags.ctx;
  out.ubatch = flags.ubatch;
  out.kv.dtype = *kv;
  out.cpu_only = flags.cpu_only;
  out.device = flags.device;
  if (flags.start_on_cpu != "auto" && flags.start_on_cpu != "on" && flags.start_on_cpu != "off")
    return fail(Code::invalid_argument, "--start-on-cpu " + flags.start_on_cpu + ": must be auto, on or off");
  out.start_on_cpu = flags.start_on_cpu == "on" ? StartOnCpu::on : flags.start_on_cpu == "off" ? StartOnCpu::off : StartOnCpu::automatic;
  out.bytes_per_second = profile.bytes_per_second;
  return out;
}

// Whether experts may have to come from storage, before the model is looked at: its weights are about as large as its file.
bool may_stream(const EngineOptions& options, const std::filesystem::path& model) {
  if (options.experts != ExpertPlacement::automatic) return options.experts == ExpertPlacement::streamed;
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(model, error);
  const uint64_t budget = options.ram_budget != 0 ? options.ram_budget : read_memory().free_for_us();
  return !error && bytes + bytes / 2 + kGiB > budget;  // a KV cache, activations and the program come on top
}

// Queue depth, length and speed of reads: the user's, else what the disk measured.
StorageProfile tune(StreamOptions& s, const EngineFlags& flags, const std::filesystem::path& model, Measure measure, IfUnknown if_unknown) {
  constexpr uint32_t kLeastDepth = 8;  // a layer's misses are under way together: nobody submits more while attention computes
  StorageProfile out;
  if (!flags.storage_speed.empty()) {
    // What if the disk were of that speed: its queue and waits are nobody's to measure.
    if (const auto speed = parse_speed("--storage-speed", flags.storage_speed)) out.bytes_per_second = *speed;
    out.note = "as --storage-speed says";
  } else if (!s.direct) {
    out.note = "storage not measured: reads go through the page cache";
  } else {
    out = storage_profile(model, s.reader, measure, if_unknown);
  }
  s.storage = {out.bytes_per_second, out.wait_seconds};
  if (out.queue_depth == 0) return out;
  s.request_bytes = out.request_bytes;
  s.tuning =
      format_rate(out.bytes_per_second) + text(" measured from %u x ", out.queue_depth) + format_bytes(out.request_bytes) + " in flight on";
  if (s.queue_depth != 0) return out;
  s.queue_depth = std::max(out.queue_depth, kLeastDepth);
  if (s.queue_depth > out.queue_depth) s.tuning += text(", a queue of %u so that a layer's reads are under way together", s.queue_depth);
  return out;
}

// `--repack auto` of a plain model whose experts are streamed: the packed copy to run instead of it, written now if there is none and the disk has room.
Result<std::filesystem::path> streamed_copy(const Model& plain, const EngineOptions& options, const EngineFlags& flags,
                                            const CommonFlags& common, Depth depth) {
  const AutoCopy copy = auto_copy(plain, options.model);
  if (copy.use.empty() && copy.note.empty() && !copy.write) return options.model;
  EngineOptions probe = options;
  probe.plan_only = true;
  probe.registry.log = nullptr;
  // In a child: what a plan leaves behind in memory would count as ours.
  const auto streams = [&] {
    const auto engine = Engine::open(probe);  // what is wrong is said when it is opened for good
    return engine && (*engine)->plan().expert_slots > 0;
  };
  std::string why_not;
  if (!in_child(streams, why_not).value_or(false)) return options.model;
  if (!copy.use.empty()) return copy.use;
  // What takes gigabytes is not done unsaid.
  const std::filesystem::path as_it_is = copy.older.empty() ? options.model : copy.older;
  if (!copy.write || common.quiet) {
    if (!common.quiet && copy.older.empty()) say("note: " + printable(copy.note));
    return as_it_is;
  }
  const std::string what = "experts are streamed: a packed copy of the model, " + format_bytes(copy.bytes) + ", decodes faster";
  const std::string how = " (`--repack off` runs the file as it is; `forethought cache` lists and removes copies)";
  if (depth == Depth::plan_only) {
    say("note: " + what + "; a run writes it once into the cache folder" + how);
    return as_it_is;
  }
  say("note: " + what + " and is written now, once, where " + format_bytes(copy.free) + " are free" + how);
  auto written = packed_copy(options.model, flags, common);
  if (written || written.error().code == Code::cancelled) return written;
  say("note: the model runs as it is: " + printable(written.error().message));
  return options.model;
}

}  // namespace

Result<double> parse_speed(std::string_view option, std::string_view speed) {
  std::string_view size = speed;
  if (size.ends_with("/s")) size.remove_suffix(2);
  const auto bytes = parse_bytes(size);
  if (!bytes || *bytes < 1000)
    return fail(Code::invalid_argument, std::string(option) + " " + std::string(speed) + ": write a speed such as 3.5GB/s or 800MB/s");
  return static_cast<double>(*bytes);
}

Result<Opened> open_engine(const EngineFlags& flags, const CommonFlags& common, Depth depth, Measure measure, const MachineProfile* known) {
  Opened out;
  out.log = std::make_unique<Log>(common);
  FTH_RETURN_IF_ERROR(engine_options(flags, {}, *out.log));  // a wrong option is said before anything is measured
  FTH_ASSIGN_OR_RETURN(out.model, find_model(flags.model));
  if (!flags.storage_speed.empty()) FTH_RETURN_IF_ERROR(parse_speed("--storage-speed", flags.storage_speed));
  out.profile = known != nullptr ? *known : machine_profile(threads_asked(flags), measure);
  if (common.verbose)
    say("memory bandwidth: " + (out.profile.bytes_per_second > 0 ? format_rate(out.profile.bytes_per_second) + ", " : "") +
        out.profile.note);
  FTH_ASSIGN_OR_RETURN(auto options, engine_options(flags, out.profile, *out.log));
  DeviceChecks::Options checking;
  checking.threads = options.registry.n_threads;
  checking.cpu_options = options.registry.cpu_options;
  if (!options.device.empty()) checking.named.push_back(options.device);
  for (const PlacementRule& rule : options.rules) checking.named.push_back(rule.device);
  out.checks = std::make_unique<DeviceChecks>(std::move(checking));
  if (!common.quiet)
    for (const std::string& line : out.checks->crashed()) say("forethought: " + printable(line));
  FTH_ASSIGN_OR_RETURN(options, engine_options(flags, out.profile, *out.log, out.checks.get()));
  out.runs = std::make_unique<SegmentRuns>(options.registry.n_threads, options.registry.cpu_options,
                                           options.device.empty() && options.rules.empty() ? IfUnknown::measure : IfUnknown::leave);
  options.measure = [runs = out.runs.get()](const Registry& registry, size_t device, std::span<const fth_segment> segments,
                                            IfUnmeasured if_unmeasured) {
    return runs->seconds(registry, device, segments, if_unmeasured);
  };
  // Keys and shapes alone; what is wrong with the file is Engine::open's to say.
  if (const auto model = load_model(out.model, options.overrides); model) {
    out.gather = gather_crossover(flags.gather, *model, options.registry.n_threads, flags.cpu_isa);
    if (out.gather.below >= 0) {
      std::string& cpu = options.registry.cpu_options;
      cpu = text("gather_below=%lld", static_cast<long long>(out.gather.below)) + (cpu.empty() ? "" : ",") + cpu;
    }
    options.model = out.model;
    // With a profile at hand an engine was opened before this one, whose drivers' threads no forked child has; profiles run the file that they are given.
    if (flags.repack == "auto" && known == nullptr && may_stream(options, out.model)) {
      FTH_ASSIGN_OR_RETURN(out.model, streamed_copy(*model, options, flags, common, depth));
    }
  }
  if (common.verbose && !out.gather.what.empty()) say(gather_line(out.gather));
  if (flags.repack == "file" && depth == Depth::weights) {
    FTH_ASSIGN_OR_RETURN(out.model, packed_copy(out.model, flags, common));
  }
  options.model = out.model;
  options.plan_only = depth == Depth::plan_only;
  options.expert_times = kept_expert_times();
  options.compile_times = kept_compile_times();
  // Also where nothing is streamed, if it is known: a sweep asks for it.
  out.storage = tune(options.stream, flags, out.model, measure,
                     flags.wants_storage || may_stream(options, out.model) ? IfUnknown::measure : IfUnknown::leave);
  Progress bar("loading", Progress::Unit::bytes, !common.quiet);
  options.on_load = [&bar](uint64_t done, uint64_t total) { bar.update(done, total); };
  FTH_ASSIGN_OR_RETURN(out.engine, Engine::open(options));
  bar.clear();
  out.head = std::make_unique<HeadCache>(*out.engine);
  if (!common.quiet) {
    for (const std::string& note : out.engine->model().notes) say("note: " + printable(note));
    for (const std::string& note : out.engine->plan().notes) say("note: " + printable(note));
    if (common.verbose && out.engine->plan().expert_slots > 0)
      say("storage: " + (out.storage.bytes_per_second > 0 ? format_rate(out.storage.bytes_per_second) + ", " : "") + out.storage.note);
    if (common.verbose && !out.engine->repacked().empty()) say("repacked: " + out.engine->repacked());
    if (common.verbose && !out.engine->streaming().empty()) say("experts: " + out.engine->streaming());
  }
  return out;
}

}  // namespace fth::cli
