// forethought plan: what would run where and what memory it would take. No weight is read.

#include <algorithm>
#include <boost/json.hpp>
#include <map>
#include <tuple>

#include "core/base/bytes.h"
#include "tools/cli/command.h"
#include "tools/cli/output.h"
#include "tools/cli/report.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Shows where each part of the model would run, the memory it would take and the speed to expect, before a weight is read.\n"
    "A model that does not fit ends with exit code 3 and the smallest budget that would do.\n\n"
    "  forethought plan -m model.gguf --ram 8GiB --ctx 8192\n"
    "  forethought plan -m model.gguf --place 'layer.*.attention=vulkan:0' --json\n";

struct PlanFlags : CommonFlags {
  EngineFlags engine;
};

void describe(PlanFlags& f, po::options_description& options) {
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

std::string plan_text(const Opened& opened) {
  const Engine& engine = *opened.engine;
  const Plan& plan = engine.plan();
  const Config& c = engine.model().config;
  std::string out =
      printable(opened.model.string()) + ": " + printable(c.architecture) + text(", %lld layers", static_cast<long long>(c.n_layer));
  if (c.is_sparse()) out += text(", %lld of %lld experts", static_cast<long long>(c.top_k), static_cast<long long>(c.n_expert));
  out += ", " + format_bytes(engine.model().weight_bytes()) + " of weights; " +
         text("context %lld, ubatch %lld\n\n", static_cast<long long>(engine.options().n_ctx),
              static_cast<long long>(engine.options().ubatch));

  Table where("lllrl", {"segment", "layers", "device", "time", "runner-up"});
  for (const Group& g : groups(plan)) {
    const bool alone = g.first->runner_up == g.first->device;
    where.row({std::string(name(g.first->kind)), g.first->layer < 0 ? "" : ranges(g.layers), plan.devices[g.first->device].name,
               micros(g.seconds) + (g.layers.size() > 1 ? text(" (%zu x)", g.layers.size()) : ""),
               alone ? "none" : plan.devices[g.first->runner_up].name + ", " + micros(g.runner_up_seconds)});
  }
  out += where.plain() + '\n';

  Table memory("lrl", {"memory", "", ""});
  for (const Arena& a : plan.arenas) memory.row({printable(a.name), format_bytes(a.bytes), printable(a.device)});
  memory.row({"total in RAM", format_bytes(plan.ram_bytes), plan.ram_limit > 0 ? "of " + format_bytes(plan.ram_limit) : ""});
  out += memory.plain() + '\n';

  if (plan.expert_slots > 0)
    out += text("experts: %lld of %lld in memory, the others are read from storage when the router names them\n\n",
                static_cast<long long>(plan.expert_slots), static_cast<long long>(c.n_layer * c.n_expert));
  if (const std::string refusals = refusal_lines(plan); !refusals.empty()) out += "not used:\n" + refusals + '\n';
  out += text("decode: %.1f tok/s expected, ", plan.tokens_per_second()) + format_bytes(plan.bytes_per_token) + " read per token";
  if (opened.profile.bytes_per_second > 0) {
    out += " at " + format_rate(opened.profile.bytes_per_second) + " of measured memory bandwidth\n";
  } else {
    out += " (" + opened.profile.note + ")\n";
  }
  return out;
}

boost::json::object plan_json(const Opened& opened) {
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
                                  {"seconds", p.seconds}};
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
          {"predicted_tok_s", plan.tokens_per_second()},
          {"seconds_per_token", plan.seconds_per_token},
          {"bytes_per_token", plan.bytes_per_token},
          {"bytes_per_second", opened.profile.bytes_per_second},
          {"ram_bytes", plan.ram_bytes},
          {"ram_limit", plan.ram_limit},
          {"expert_slots", plan.expert_slots},
          {"notes", boost::json::value_from(plan.notes)},
          {"devices", std::move(devices)},
          {"placements", std::move(placements)},
          {"arenas", std::move(arenas)},
          {"refusals", std::move(refusals)}};
}

Result<int> run(PlanFlags& f) {
  FTH_RETURN_IF_ERROR(take_positional_model(f, f.engine));
  auto opened = open_engine(f.engine, f, Depth::plan_only);
  if (!opened && f.json && opened.error().code == Code::resource_exhausted) {
    FTH_RETURN_IF_ERROR(put(json_text(boost::json::object{{"fits", false}, {"reason", utf8_lossy(opened.error().message)}})));
  }
  if (!opened) return tl::unexpected<Error>(std::move(opened).error());
  FTH_RETURN_IF_ERROR(put(f.json ? json_text(plan_json(*opened)) : plan_text(*opened)));
  return 0;
}

}  // namespace

const Command kPlan = make_command<PlanFlags, describe, run>("plan", "show what would run where, and the memory it takes", kHelp, "MODEL");

}  // namespace fth::cli
