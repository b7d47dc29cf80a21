// forethought plan: what would run where and what memory it would take. No weight is read.

#include <algorithm>
#include <boost/json.hpp>
#include <boost/program_options.hpp>
#include <fstream>
#include <map>
#include <optional>
#include <tuple>

#include "core/base/bytes.h"
#include "tools/cli/command.h"
#include "tools/cli/expert_times.h"
#include "tools/cli/output.h"
#include "tools/cli/prediction.h"
#include "tools/cli/report.h"
#include "tools/cli/sweep.h"
#include "tools/cli/warm.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Shows where each part of the model would run, the memory it would take and the speed to expect, before a weight is read.\n"
    "A model that does not fit ends with exit code 3 and the smallest budget that would do.\n"
    "--sweep shows what each of a row of budgets buys.\n\n"
    "  forethought plan -m model.gguf --ram 8GiB --ctx 8192\n"
    "  forethought plan -m model.gguf --sweep 1GiB:8GiB:15 --storage-speed 3.5GB/s --svg sweep.svg\n"
    "  forethought plan -m model.gguf --place 'layer.*.attention=vulkan:0' --json\n";

struct PlanFlags : CommonFlags {
  EngineFlags engine;
  std::string trace, sweep, svg, warm_set = "auto";
};

void describe(PlanFlags& f, po::options_description& options) {
  const auto value = [](std::string* to, const char* what) { return po::value<std::string>(to)->value_name(what); };
  options.add_options()                                                                                                 //
      ("sweep", value(&f.sweep, "RANGE"), "a row for each of several budgets: LOW:HIGH[:STEPS], such as 1GiB:8GiB:15")  //
      ("svg", value(&f.svg, "FILE"), "with --sweep: also write a plot of speed and hit rate over the budget")           //
      ("trace", value(&f.trace, "FILE"), "predict with the experts' uses that run --trace-routing recorded")            //
      ("warm-set", value(&f.warm_set, "FILE"),
       "else with those that a warm set remembers, or off (default: the model's own, if there is one)")  //
      ("storage-speed", value(&f.engine.storage_speed, "SPEED"), "what if storage read so fast, such as 3.5GB/s (default: measured)");
  add_engine(f.engine, options);
  add_common(f, options, "print the plan as one JSON object");
}

std::string micros(double seconds) { return text("%.1f us", 1e6 * seconds); }

// "0-3,5" from ascending layers.
std::string ranges(const std::vector<int64_t>& layers) {
  std::string out;
  for (size_t i = 0; i < layers.size();) {
    size_t j = i;
    while (j + 1 < layers.size() && layers[j + 1] == layers[j] + 1) ++j;
    out += (out.empty() ? "" : ",") + std::to_string(layers[i]) + (j > i ? "-" + std::to_string(layers[j]) : "");
    i = j + 1;
  }
  return out;
}

struct Group {
  const Placement* first = nullptr;
  std::vector<int64_t> layers;
  double seconds = 0, runner_up_seconds = 0;
};

// Segments of one kind with the same choice and runner-up, in the order in which they first run.
std::vector<Group> groups(const Plan& plan) {
  std::vector<Group> out;
  std::map<std::tuple<SegmentKind, size_t, size_t>, size_t> at;
  for (const Placement& p : plan.placements) {
    const auto [it, fresh] = at.try_emplace({p.kind, p.device, p.runner_up}, out.size());
    if (fresh) out.push_back({&p, {}, 0, 0});
    Group& group = out[it->second];
    group.layers.push_back(p.layer);
    group.seconds += p.seconds;
    group.runner_up_seconds += p.runner_up_seconds;
  }
  return out;
}

// What the run is expected to do, and what that rests on.
struct Expected {
  std::optional<ExpertUses> uses;  // when experts are streamed
  StorageSpeed storage;
  std::string storage_note;
  Predicted predicted;
};

void take_storage(const Opened& opened, Expected* out) {
  out->storage = opened.engine->options().stream.storage;
  out->storage_note = opened.storage.note;
  if (out->storage.bytes_per_second > 0) return;
  out->storage = {kUnknownStorage, 0};
  out->storage_note = "ASSUMED: " + out->storage_note;
}

Result<Expected> expect(const PlanFlags& f, const Opened& opened) {
  const Plan& plan = opened.engine->plan();
  Expected out;
  if (plan.expert_slots > 0) {
    FTH_ASSIGN_OR_RETURN(out.uses, expert_uses(*opened.engine, f.trace, warm_set_to_read(f.warm_set, *opened.engine)));
    take_storage(opened, &out);
  }
  FTH_ASSIGN_OR_RETURN(out.predicted, predict(*opened.engine, plan, out.uses ? &*out.uses : nullptr, out.storage));
  return out;
}

std::string plan_text(const Opened& opened, const Expected& expected) {
  const Engine& engine = *opened.engine;
  const Plan& plan = engine.plan();
  const Config& c = engine.model().config;
  std::string out =
      printable(opened.model.string()) + ": " + printable(c.architecture) + text(", %lld layers", static_cast<long long>(c.n_layer));
  if (c.is_sparse()) out += text(", %lld of %lld experts", static_cast<long long>(c.top_k), static_cast<long long>(c.n_expert));
  out += ", " + format_bytes(engine.model().weight_bytes()) + " of weights; " +
         text("context %lld, ubatch %lld\n\n", static_cast<long long>(engine.options().n_ctx),
              static_cast<long long>(engine.options().ubatch));

  Table where("lllrll", {"segment", "layers", "device", "time", "runner-up", "time is"});
  for (const Group& g : groups(plan)) {
    const bool alone = g.first->runner_up == g.first->device;
    where.row({std::string(name(g.first->kind)), g.first->layer < 0 ? "" : ranges(g.layers), plan.devices[g.first->device].name,
               micros(g.seconds) + (g.layers.size() > 1 ? text(" (%zu x)", g.layers.size()) : ""),
               alone ? "none" : plan.devices[g.first->runner_up].name + ", " + micros(g.runner_up_seconds),
               g.first->by_profile ? "measured by profile"
               : g.first->measured ? "measured"
                                   : "estimated"});
  }
  out += where.plain() + '\n';

  Table memory("lrl", {"memory", "", ""});
  for (const Arena& a : plan.arenas) memory.row({printable(a.name), format_bytes(a.bytes), printable(a.device)});
  memory.row({"total in RAM", format_bytes(plan.ram_bytes), plan.ram_limit > 0 ? "of " + format_bytes(plan.ram_limit) : ""});
  out += memory.plain() + '\n';

  if (const std::string refusals = refusal_lines(plan); !refusals.empty()) out += "not used:\n" + refusals + '\n';
  if (const std::string gather = gather_line(opened.gather); !gather.empty()) out += gather + "\n\n";
  if (const std::string experts = expert_choice_text(engine); !experts.empty()) out += experts + '\n';
  if (plan.expert_slots > 0) {
    const StreamPrediction& d = expected.predicted.decode;
    out += text("experts: %lld of %lld in memory, the others are read from storage when the router names them\n",
                static_cast<long long>(plan.expert_slots), static_cast<long long>(c.n_layer * c.n_expert));
    out += "  " + expected.uses->label + (expected.uses->hint.empty() ? "" : "; " + expected.uses->hint) + '\n';
    out += text("  hit %.1f %%, ", 100 * d.hit_rate) + format_bytes(static_cast<uint64_t>(d.bytes)) + " from storage per token at " +
           format_rate(expected.storage.bytes_per_second) + " (" + expected.storage_note + ")\n";
    out += text("  per token: computing %.1f ms, reading %.1f ms beside it, stalled %.1f ms; bound by %s\n\n", 1e3 * d.compute_s,
                1e3 * d.io_s, 1e3 * d.stall_s, std::string(name(d.bound)).c_str());
  }
  out += text("decode: %.1f tok/s expected, ", expected.predicted.decode.tokens_per_second());
  if (plan.expert_slots > 0) out += text("%.1f if all experts were in memory, ", plan.tokens_per_second());
  out += format_bytes(plan.bytes_per_token) + " read per token";
  if (opened.profile.bytes_per_second > 0) {
    out += " at " + format_rate(opened.profile.bytes_per_second) + " of measured memory bandwidth\n";
  } else {
    out += " (" + opened.profile.note + ")\n";
  }
  out += text("prefill: %.0f tok/s expected for %lld tokens in steps of %lld%s\n", expected.predicted.prompt_tok_s,
              static_cast<long long>(std::min(kJobPrompt, engine.options().n_ctx)), static_cast<long long>(plan.ubatch),
              plan.expert_slots > 0 ? ", from a cold store" : "");
  if (plan.overlap) {
    out += text("  two steps are under way at once where a prompt has them: %.1f ms each, %.1f ms one after the other\n",
                1e3 * plan.overlap_seconds, 1e3 * plan.step_seconds);
  }
  return out;
}

boost::json::object expected_json(const Expected& expected) {
  boost::json::object out = prediction_json(expected.predicted);
  if (expected.uses) {
    out["uses"] = expected.uses->kind;
    out["uses_label"] = utf8_lossy(expected.uses->label);
    out["storage_bytes_per_second"] = expected.storage.bytes_per_second;
    out["storage_wait_seconds"] = expected.storage.wait_seconds;
    out["storage_note"] = utf8_lossy(expected.storage_note);
  }
  return out;
}

boost::json::object plan_json(const Opened& opened, const Expected& expected) {
  const Engine& engine = *opened.engine;
  const Plan& plan = engine.plan();
  boost::json::array devices, placements, arenas, refusals;
  for (const PlanDevice& d : plan.devices)
    devices.push_back({{"name", d.name},
                       {"host_memory", d.host_memory},
                       {"memory_bytes", d.memory_bytes},
                       {"copy_bytes_per_second", d.copy_bytes_per_second},
                       {"refusal", utf8_lossy(d.refusal)}});
  for (const Placement& p : plan.placements) {
    boost::json::object placement{{"segment", p.segment},
                                  {"kind", name(p.kind)},
                                  {"layer", p.layer},
                                  {"device", plan.devices[p.device].name},
                                  {"seconds", p.seconds},
                                  {"measured", p.measured},
                                  {"step_seconds", p.step_seconds},
                                  {"by_profile", p.by_profile}};
    if (p.runner_up != p.device) {
      placement["runner_up"] = plan.devices[p.runner_up].name;
      placement["runner_up_seconds"] = p.runner_up_seconds;
    }
    placements.push_back(std::move(placement));
  }
  for (const Arena& a : plan.arenas) arenas.push_back({{"name", a.name}, {"device", a.device}, {"bytes", a.bytes}});
  for (const Refusal& r : plan.refusals) refusals.push_back({{"subject", utf8_lossy(r.subject)}, {"reason", utf8_lossy(r.reason)}});
  return {{"fits", true},
          {"model", utf8_lossy(opened.model.string())},
          {"architecture", utf8_lossy(engine.model().config.architecture)},
          {"weight_bytes", engine.model().weight_bytes()},
          {"n_ctx", engine.options().n_ctx},
          {"ubatch", engine.options().ubatch},
          {"predicted_tok_s", expected.predicted.decode.tokens_per_second()},
          {"expected", expected_json(expected)},
          {"seconds_per_token", plan.seconds_per_token},
          {"step_seconds", plan.step_seconds},
          {"overlap", plan.overlap},
          {"overlap_seconds", plan.overlap_seconds},
          {"bytes_per_token", plan.bytes_per_token},
          {"bytes_per_second", opened.profile.bytes_per_second},
          {"ram_bytes", plan.ram_bytes},
          {"ram_limit", plan.ram_limit},
          {"expert_slots", plan.expert_slots},
          {"notes", boost::json::value_from(plan.notes)},
          {"experts", expert_choice_json(engine)},
          {"gather_below", opened.gather.below < 0 ? boost::json::value() : boost::json::value(opened.gather.below)},
          {"gather_note", opened.gather.note},
          {"devices", std::move(devices)},
          {"placements", std::move(placements)},
          {"arenas", std::move(arenas)},
          {"refusals", std::move(refusals)}};
}

Result<> run_sweep(const PlanFlags& f, const Opened& opened) {
  Engine& engine = *opened.engine;
  const Config& c = engine.model().config;
  if (!c.is_sparse()) return fail(Code::invalid_argument, "--sweep: the model is dense and has no experts to stream");
  FTH_ASSIGN_OR_RETURN(const SweepRange range, parse_sweep(f.sweep));
  Expected basis;
  FTH_ASSIGN_OR_RETURN(basis.uses, expert_uses(engine, f.trace, warm_set_to_read(f.warm_set, engine)));
  take_storage(opened, &basis);
  FTH_ASSIGN_OR_RETURN(const Sweep s, sweep(engine, range, *basis.uses, basis.storage));
  const std::string storage = "storage " + format_rate(basis.storage.bytes_per_second) + " (" + basis.storage_note + ")";
  if (!f.svg.empty()) {
    std::ofstream out(f.svg, std::ios::binary);
    out << sweep_svg(s, opened.model.filename().string() + ": what a memory budget buys", {basis.uses->label, storage});
    out.close();
    if (!out) return fail(Code::failed_precondition, "--svg " + f.svg + ": cannot be written");
  }
  if (f.json) {
    boost::json::object o = sweep_json(s);
    o["model"] = utf8_lossy(opened.model.string());
    o["uses"] = basis.uses->kind;
    o["uses_label"] = utf8_lossy(basis.uses->label);
    o["storage_bytes_per_second"] = basis.storage.bytes_per_second;
    o["storage_note"] = utf8_lossy(basis.storage_note);
    return put(json_text(o));
  }
  std::string out = printable(opened.model.string()) + '\n' + basis.uses->label +
                    (basis.uses->hint.empty() ? "" : "; " + basis.uses->hint) + '\n' + storage + "\n\n" + sweep_table(s, c) + '\n';
  if (s.resident_bytes > 0)
    out += text("all experts in memory from %s on: %.1f tok/s\n", format_bytes(s.resident_bytes).c_str(),
                s.resident.decode.tokens_per_second());
  return put(out);
}

Result<int> run(PlanFlags& f) {
  FTH_RETURN_IF_ERROR(take_positional_model(f, f.engine));
  if (f.sweep.empty() && !f.svg.empty()) return fail(Code::invalid_argument, "--svg FILE: give --sweep LOW:HIGH, too");
  if (!f.sweep.empty()) {
    FTH_ASSIGN_OR_RETURN(const SweepRange range, parse_sweep(f.sweep));
    if (!f.engine.ram.empty()) return fail(Code::invalid_argument, "--sweep and --ram exclude each other: the sweep has its own budgets");
    f.engine.ram = std::to_string(range.high);
    f.engine.wants_storage = true;
  }
  auto opened = open_engine(f.engine, f, Depth::plan_only);
  if (!opened && f.json && opened.error().code == Code::resource_exhausted) {
    FTH_RETURN_IF_ERROR(put(json_text(boost::json::object{{"fits", false}, {"reason", utf8_lossy(opened.error().message)}})));
  }
  if (!opened) return tl::unexpected<Error>(std::move(opened).error());
  if (!f.sweep.empty()) {
    FTH_RETURN_IF_ERROR(run_sweep(f, *opened));
    return 0;
  }
  FTH_ASSIGN_OR_RETURN(const Expected expected, expect(f, *opened));
  FTH_RETURN_IF_ERROR(put(f.json ? json_text(plan_json(*opened, expected)) : plan_text(*opened, expected)));
  return 0;
}

}  // namespace

const Command kPlan = make_command<PlanFlags, describe, run>("plan", "show what would run where, and the memory it takes", kHelp, "MODEL");

}  // namespace fth::cli
