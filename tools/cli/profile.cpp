// forethought profile: what each backend costs, segment by segment, side by side.

#include <algorithm>
#include <boost/json.hpp>
#include <cstring>

#include "tools/cli/command.h"
#include "tools/cli/fma_peak.h"
#include "tools/cli/generate.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/kernel_tables.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/profile_report.h"
#include "tools/cli/progress.h"
#include "tools/cli/trace_file.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Measures what each device takes for each segment of the model, beside the CPU alone: for every device one run with all segments\n"
    "on it that it can run. Percentiles, bytes and FLOPs per second, share of the roofline, CPU time, copies, waits for storage.\n"
    "Software devices are measured too, and marked; others that would not be chosen are listed with the reason.\n\n"
    "  forethought profile -m model.gguf --html profile.html\n"
    "  forethought profile -m model.gguf -p \"What is 38 + 47?\" --device vulkan:0 --trace profile.trace.json\n";

struct ProfileFlags : CommonFlags {
  EngineFlags engine;
  std::string prompt, trace, html;
  int64_t pp = 0, tg = 64, repetitions = 3;  // pp 0: 512, or as long as the prompt
  double seconds = 10;
  bool all_devices = false;
};

void describe(ProfileFlags& f, po::options_description& options) {
  options.add_options()  //
      ("prompt,p", po::value(&f.prompt)->value_name("TEXT"),
       "a prompt, through the chat template; the model's own words are decoded "
       "(default: random tokens)")                                                                                                       //
      ("pp", po::value(&f.pp)->value_name("N"), "tokens of the prompt (default: 512, or the whole of -p)")                               //
      ("tg", po::value(&f.tg)->value_name("N"), "tokens to decode (default: 64)")                                                        //
      ("reps,r", po::value(&f.repetitions)->value_name("N"), "repetitions (default: 3)")                                                 //
      ("seconds", po::value(&f.seconds)->value_name("S"), "about the most that prefill or decode of one device may take (default: 10)")  //
      ("all-devices", po::bool_switch(&f.all_devices),
       "also measure devices that would be refused for another reason than being software")                                       //
      ("trace", po::value(&f.trace)->value_name("FILE"), "write what ran when, for a trace viewer (Perfetto, chrome://tracing)")  //
      ("html", po::value(&f.html)->value_name("FILE"), "write a report as one HTML page");
  f.engine.start_on_cpu = "off";  // what is measured does not depend on when a device is ready
  add_engine(f.engine, options);
  add_common(f, options, "print one JSON object");
}

struct Subject {  // what a column is about
  std::string name, about;
  bool software = false;
};

Result<ProfileWork> make_work(const ProfileFlags& f, const Engine& engine) {
  ProfileWork work;
  work.repetitions = f.repetitions;
  work.seconds = f.seconds;
  work.n_decode = f.tg;
  const int64_t n_vocab = engine.model().config.n_vocab, n_ctx = engine.options().n_ctx;
  if (f.prompt.empty()) {
    // A model with a short context gets a shorter prompt, unless somebody asked for this one.
    const int64_t n = f.pp != 0 ? f.pp : std::clamp<int64_t>(n_ctx - f.tg, 1, 512);
    const auto ids = random_ids(static_cast<size_t>(n + f.tg), n_vocab);
    work.prompt.assign(ids.begin(), ids.begin() + n);
    work.decode.assign(ids.begin() + n, ids.end());
  } else {
    FTH_ASSIGN_OR_RETURN(const auto ids, render_ids(engine, {{"user", f.prompt}}));
    const size_t n = f.pp == 0 ? ids.size() : static_cast<size_t>(f.pp);
    for (size_t i = 0; i < n; ++i) work.prompt.push_back(ids[i % ids.size()]);
  }
  if (static_cast<int64_t>(work.prompt.size()) + f.tg > n_ctx)
    return fail(Code::invalid_argument,
                text("%zu tokens of prompt and %lld decoded do not fit the context of %lld; raise --ctx or lower --pp and --tg",
                     work.prompt.size(), static_cast<long long>(f.tg), static_cast<long long>(n_ctx)));
  return work;
}

// The CPU's roofline serves devices that run on it; others have what their driver or a timing at open says.
void set_rooflines(Engine& engine, const Roofline& cpu, Column* column) {
  for (const DeviceEntry& entry : engine.registry().devices()) {
    const fth_device_info& info = entry.device.info();
    const bool on_cpu = info.kind == FTH_KIND_CPU || (info.flags & FTH_DEVICE_SOFTWARE) != 0;
    column->rooflines.push_back(on_cpu ? cpu : Roofline{info.flops_per_second, info.bytes_per_second});
  }
}

class Profiler {
 public:
  explicit Profiler(ProfileFlags& f) : f_(f) {}

  Result<Profile> run() {
    FTH_RETURN_IF_ERROR(first_column());
    FTH_RETURN_IF_ERROR(find_subjects());
    for (const Subject& s : subjects_) FTH_RETURN_IF_ERROR(column(s));
    // The first cell again: what has changed on the machine since then, every column between has felt.
    if (f_.tg > 0) {
      FTH_ASSIGN_OR_RETURN(const Column again, measure(cpu_flags(), {"cpu", {}, false}, kAgain));
      profile_.first_s = profile_.columns[0].decode.time.p50;
      profile_.last_s = again.decode.time.p50;
    }
    return std::move(profile_);
  }

 private:
  EngineFlags cpu_flags() const {
    EngineFlags flags = f_.engine;
    flags.cpu_only = true;
    flags.device.clear();
    flags.places.clear();
    flags.plugins.clear();
    flags.device_options.clear();
    return flags;
  }

  Result<> first_column() {
    FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(cpu_flags(), f_, Depth::plan_only));
    machine_ = opened.profile;
    profile_.roofline = {peak_flops(machine_.threads), machine_.bytes_per_second};
    const Engine& engine = *opened.engine;
    FTH_ASSIGN_OR_RETURN(work_, make_work(f_, engine));
    profile_.model = opened.model.string();
    profile_.tokens = f_.prompt.empty() ? "random tokens" : "prompt \"" + f_.prompt + "\"";
    profile_.cpu = machine_.cpu;
    profile_.threads = opened.engine->registry().pool().n_threads();
    profile_.n_ctx = engine.options().n_ctx;
    profile_.ubatch = engine.options().ubatch;
    profile_.n_layer = engine.model().config.n_layer;
    profile_.n_expert = engine.model().config.n_expert;
    const fth_device_info info = opened.engine->registry().devices()[0].device.info();
    for (const KernelSet& k : kernel_sets(info.description))
      if (k.used) profile_.isa = k.name;
    opened.head.reset();  // it looks at the engine once more
    opened.engine.reset();
    FTH_ASSIGN_OR_RETURN(Column c, measure(cpu_flags(), {"cpu", info_text(info), false}, "cpu"));
    profile_.columns.push_back(std::move(c));
    return {};
  }

  static std::string info_text(const fth_device_info& info) {
    return {info.description, strnlen(info.description, sizeof info.description)};
  }

  // Which devices get a column, and why the others do not. Opens the plugins, after the CPU alone has been measured.
  Result<> find_subjects() {
    if (f_.engine.cpu_only) return {};
    EngineFlags flags = f_.engine;
    flags.device.clear();
    FTH_ASSIGN_OR_RETURN(const Opened opened, open_engine(flags, quiet(), Depth::plan_only, Measure::once, &machine_));
    Registry& registry = opened.engine->registry();
    if (!f_.engine.device.empty())
      if (const auto found = registry.find(f_.engine.device); !found) return fail(Code::invalid_argument, found.error().message);
    if (!f_.engine.places.empty()) subjects_.push_back({kPlaced, "segments as --place has them", false});
    for (const BackendReport& b : registry.backends())
      if (!b.loaded) profile_.unprofiled.push_back({b.path.empty() ? b.name : b.path, b.reason});
    for (size_t d = 1; d < registry.devices().size(); ++d) {
      const DeviceEntry& entry = registry.devices()[d];
      const std::string name = entry.device.name();
      const bool named = f_.engine.device == name;
      if (!f_.engine.device.empty() && !named) continue;
      const bool software = (entry.device.info().flags & FTH_DEVICE_SOFTWARE) != 0;
      if (entry.check.wrong || (!entry.refusal.empty() && !software && !named && !f_.all_devices)) {
        profile_.unprofiled.push_back({name, entry.refusal});
        continue;
      }
      subjects_.push_back({name, info_text(entry.device.info()), software});
    }
    return {};
  }

  Result<> column(const Subject& s) {
    EngineFlags flags = f_.engine;
    flags.device = s.name == kPlaced ? f_.engine.device : s.name;
    if (s.name != kPlaced) flags.places.clear();
    {
      // A device that can run nothing of this model is a line with its reason, found before any weight is read.
      auto planned = open_engine(flags, quiet(), Depth::plan_only, Measure::once, &machine_);
      if (!planned) {
        profile_.unprofiled.push_back({s.name, planned.error().message});
        return {};
      }
      const Plan& plan = planned->engine->plan();
      const auto used = [&](const Placement& p) { return plan.devices[p.device].name == s.name; };
      if (s.name != kPlaced && std::none_of(plan.placements.begin(), plan.placements.end(), used)) {
        std::string reason = "runs no segment of this model";
        for (const Refusal& r : plan.refusals)
          if (r.subject.starts_with(s.name + ": ")) {
            reason += "; " + r.reason;
            break;
          }
        profile_.unprofiled.push_back({s.name, reason});
        return {};
      }
    }
    auto measured = measure(flags, s, s.name);
    if (measured) {
      profile_.columns.push_back(std::move(*measured));
    } else if (measured.error().code == Code::unavailable || measured.error().code == Code::resource_exhausted) {
      profile_.unprofiled.push_back({s.name, "failed while it was measured: " + measured.error().message});
    } else {
      return tl::unexpected<Error>(std::move(measured).error());
    }
    return {};
  }

  Result<Column> measure(const EngineFlags& flags, const Subject& s, const std::string& what) {
    const bool first = profile_.columns.empty();
    FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(flags, first ? f_ : quiet(), Depth::weights, Measure::once, &machine_));
    Progress bar("profiling " + printable(what), Progress::Unit::tokens, !f_.quiet);
    const uint64_t steps = static_cast<uint64_t>(work_.repetitions + 1) * (work_.prompt.size() + static_cast<uint64_t>(work_.n_decode));
    FTH_ASSIGN_OR_RETURN(Column c, measure_column(*opened.engine, s.name, work_, [&](double share) {
                           bar.update(static_cast<uint64_t>(share * static_cast<double>(steps)), steps);
                         }));
    if (what != kAgain) {  // the planner's costs from now on
      opened.engine->each_profiled(*c.recorder, [&](size_t device, const fth_segment& segment, double median_s) {
        if (device == 0 && !first) return;  // the CPU's own column says what it takes; beside a device it shares memory and threads
        opened.runs->take_profiled(opened.engine->registry(), device, segment, median_s);
      });
      opened.runs->save();
    }
    c.about = s.about;
    c.software = s.software;
    const auto at = std::find(c.devices.begin(), c.devices.end(), s.name);
    c.subject = at == c.devices.end() ? 0 : static_cast<size_t>(at - c.devices.begin());
    set_rooflines(*opened.engine, profile_.roofline, &c);
    return c;
  }

  // Notes of the model and the plan are said once.
  CommonFlags quiet() const {
    CommonFlags c = f_;
    c.quiet = true;
    return c;
  }

  static constexpr const char *kPlaced = "--place", *kAgain = "cpu again";
  ProfileFlags& f_;
  Profile profile_;
  ProfileWork work_;
  MachineProfile machine_;
  std::vector<Subject> subjects_;
};

Result<int> run(ProfileFlags& f) {
  FTH_RETURN_IF_ERROR(take_positional_model(f, f.engine));
  if (f.repetitions < 1 || f.pp < 0 || f.tg < 0 || !(f.seconds > 0))
    return fail(Code::invalid_argument, "--reps must be 1 or more, --pp and --tg 0 or more, --seconds more than 0");
  if (f.engine.cpu_only && !f.engine.device.empty() && f.engine.device != "cpu")
    return fail(Code::invalid_argument, "--device " + f.engine.device + " contradicts --cpu-only");
  watch_interrupts(SecondPress::ends_the_program);
  FTH_ASSIGN_OR_RETURN(const Profile profile, Profiler(f).run());
  FTH_RETURN_IF_ERROR(put(f.json ? json_text(profile_json(profile)) : profile_text(profile)));
  for (const Column& c : profile.columns)
    if (const uint64_t lost = c.recorder->dropped(); lost > 0 && !f.quiet)
      say(text("note: %s: %llu events found their lane full; fewer --reps, --pp or --tg record all", printable(c.name).c_str(),
               static_cast<unsigned long long>(lost)));
  if (!f.trace.empty()) {
    std::vector<TracePart> parts;
    for (const Column& c : profile.columns) parts.push_back({c.name + (c.software ? " (software)" : ""), c.recorder.get()});
    FTH_RETURN_IF_ERROR(write_trace(f.trace, parts));
  }
  if (!f.html.empty()) FTH_RETURN_IF_ERROR(write_whole(f.html, profile_html(profile), "--html"));
  return 0;
}

}  // namespace

const Command kProfile = make_command<ProfileFlags, describe, run>("profile", "measure every device, segment by segment", kHelp, "MODEL");

}  // namespace fth::cli
