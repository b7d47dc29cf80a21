// One engine at a time: the memory budget holds for each of them.

#include "tools/cli/placements.h"

#include <algorithm>
#include <boost/json.hpp>
#include <chrono>
#include <limits>

#include "core/base/bytes.h"
#include "core/plan/stream_model.h"
#include "tools/cli/generate.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/prediction.h"
#include "tools/cli/progress.h"

namespace fth::cli {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kWarmTokens = 4;

struct Row {
  std::string name;
  EngineFlags flags;
  std::vector<std::string> where;  // device of each segment
  std::string reason;              // why it is not run
  bool chosen = false, single = false;
  double expected_decode = 0, expected_prompt = 0;  // tok/s
  std::vector<double> decode, prompt;
  static double best(const std::vector<double>& v) { return v.empty() ? 0 : *std::max_element(v.begin(), v.end()); }
};

CommonFlags quiet_of(CommonFlags c) {
  c.quiet = true;
  return c;
}

std::vector<std::string> devices_of(const Plan& plan) {
  std::vector<std::string> out;
  for (const Placement& p : plan.placements) out.push_back(plan.devices[p.device].name);
  return out;
}

// Fills in what the plan says; a row that does not fit gets the reason.
Result<> plan_row(const CommonFlags& common, const MachineProfile* machine, Row* row) {
  auto opened = open_engine(row->flags, common, Depth::plan_only, Measure::once, machine);
  if (!opened) {
    row->reason = opened.error().message;
    return {};
  }
  const Engine& engine = *opened->engine;
  row->where = devices_of(engine.plan());
  FTH_ASSIGN_OR_RETURN(const Predicted predicted, predict(engine, engine.plan(), nullptr, engine.options().stream.storage));
  row->expected_decode = predicted.decode.tokens_per_second();
  row->expected_prompt = predicted.prompt_tok_s;
  return {};
}

Result<> run_row(const CommonFlags& common, const MachineProfile& machine, const PlacementWork& work, Row* row) {
  FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(row->flags, common, Depth::weights, Measure::once, &machine));
  FTH_ASSIGN_OR_RETURN(Session session, opened.engine->new_session());
  const int64_t n_vocab = opened.engine->model().config.n_vocab;
  if (work.n_prompt + std::max(work.n_decode, kWarmTokens) > session.n_ctx())
    return fail(Code::invalid_argument, text("%lld tokens of prompt and %lld decoded do not fit the context of %lld; raise --ctx",
                                             static_cast<long long>(work.n_prompt), static_cast<long long>(work.n_decode),
                                             static_cast<long long>(session.n_ctx())));
  const auto ids = random_ids(static_cast<size_t>(work.n_prompt + work.n_decode), n_vocab);
  const auto prompt = std::span(ids).first(static_cast<size_t>(work.n_prompt));
  // Kernels that drivers compile at their first use, and memory touched for the first time, are not what is compared.
  FTH_RETURN_IF_ERROR(session.prefill(prompt));
  for (int64_t i = 0; i < kWarmTokens; ++i) FTH_RETURN_IF_ERROR(session.decode(ids[0]));
  session.clear();
  session.reset_stats();
  FTH_RETURN_IF_ERROR(session.prefill(prompt, [](int64_t, int64_t) { return !interrupted(); }));
  for (const int32_t id : std::span(ids).subspan(prompt.size())) {
    FTH_RETURN_IF_ERROR(session.decode(id));
    if (interrupted()) return fail(Code::cancelled, "interrupted");
  }
  const Stats stats = session.stats();
  row->prompt.push_back(static_cast<double>(work.n_prompt) / stats.prompt_seconds);
  row->decode.push_back(static_cast<double>(work.n_decode) / stats.decode_seconds);
  if (devices_of(opened.engine->plan()) != row->where) row->reason = "a device failed while it ran";
  return {};
}

std::vector<Row> candidates(const EngineFlags& flags, Registry& registry, const PlacementWork& work) {
  std::vector<Row> rows(1);
  rows[0].name = "cpu";
  rows[0].flags = flags;
  rows[0].flags.cpu_only = true;
  rows[0].flags.plugins.clear();
  rows[0].flags.device_options.clear();
  rows[0].single = true;
  for (size_t d = 1; d < registry.devices().size(); ++d) {
    const DeviceEntry& entry = registry.devices()[d];
    const std::string device = entry.device.name();
    const bool software = (entry.device.info().flags & FTH_DEVICE_SOFTWARE) != 0;
    const auto add = [&](const std::string& name, const std::string& only, const std::vector<std::string>& places, bool single) {
      Row row;
      row.name = name;
      row.flags = flags;
      row.flags.device = only;
      row.flags.places = places;
      row.single = single;
      if (entry.check.wrong || (software && !work.software)) row.reason = entry.refusal;
      rows.push_back(std::move(row));
    };
    add(device, device, {}, true);
    if (!rows.back().reason.empty()) continue;
    add("attention on " + device, {}, {"layer.*.attention=" + device, "head=cpu"}, false);
    add("head on " + device, {}, {"head=" + device, "layer.*.attention=cpu"}, false);
  }
  return rows;
}

std::string number(double v) { return v > 0 ? text("%.2f", v) : "-"; }

// Seconds of the job that the planner weighs by, at the speeds of repetition r.
double job_seconds(const Row& row, size_t r) {
  return static_cast<double>(kJobPrompt) / row.prompt[r] + static_cast<double>(kJobDecode) / row.decode[r];
}
std::vector<double> jobs_of(const Row& row) {
  std::vector<double> out;
  for (size_t r = 0; r < row.decode.size(); ++r) out.push_back(job_seconds(row, r));
  std::sort(out.begin(), out.end());
  return out;
}

struct Verdict {
  const Row *chosen = nullptr, *best = nullptr, *single = nullptr;  // single: the fastest of those on one device
  double ratio = 0,
         single_ratio = 0;       // speed of the chosen one over the best's and over the single one's, by the fastest repetition of each
  double noise = 0;              // how far apart repetitions of one placement are: median over fastest, of the worse of chosen and best
  const char* word = "not run";  // fastest, equal (slower by no more than the noise), slower, not run
  bool holds() const { return std::string_view(word) == "fastest" || std::string_view(word) == "equal"; }
};
constexpr double kLeastNoise = 0.03;  // a run is never more exact than that

Verdict judge(const std::vector<Row>& rows) {
  Verdict v;
  const auto faster = [](const Row& a, const Row* b) { return b == nullptr || jobs_of(a).front() < jobs_of(*b).front(); };
  for (const Row& row : rows) {
    if (row.decode.empty()) continue;
    if (row.chosen) v.chosen = &row;
    if (faster(row, v.best)) v.best = &row;
    if (row.single && faster(row, v.single)) v.single = &row;
  }
  if (v.chosen == nullptr) return v;
  const auto over_chosen = [&](const Row* other) { return other == nullptr ? 0.0 : jobs_of(*other).front() / jobs_of(*v.chosen).front(); };
  v.ratio = over_chosen(v.best);
  v.single_ratio = over_chosen(v.single);
  v.noise = kLeastNoise;
  for (const Row* row : {v.chosen, v.best}) {
    const std::vector<double> jobs = jobs_of(*row);
    v.noise = std::max(v.noise, jobs[jobs.size() / 2] / jobs.front() - 1);
  }
  v.word = v.chosen == v.best ? "fastest" : v.ratio >= 1 / (1 + v.noise) ? "equal" : "slower";
  return v;
}

std::string verdict_text(const Verdict& v) {
  if (v.chosen == nullptr) return "the chosen placement did not run";
  const std::string job =
      text("a prompt of %lld tokens and %lld decoded", static_cast<long long>(kJobPrompt), static_cast<long long>(kJobDecode));
  std::string out = "the chosen placement, " + printable(v.chosen->name) + ", ";
  if (v.chosen == v.best) {
    out += "is the fastest for " + job;
  } else {
    out += text("takes %.2f times as long as the fastest, ", 1 / v.ratio) + printable(v.best->name) + ", for " + job +
           text("; repetitions differ by %.0f %%: ", 100 * v.noise) + (v.holds() ? "as good" : "SLOWER");
  }
  if (v.single != nullptr && v.single != v.chosen && v.single != v.best)
    out += text("; %.2f times the speed of the fastest single device, ", v.single_ratio) + printable(v.single->name);
  return out;
}

boost::json::value name_json(const Row* row) {
  return row == nullptr ? boost::json::value(nullptr) : boost::json::value(utf8_lossy(row->name));
}

}  // namespace

Result<int> bench_placements(const EngineFlags& flags, const CommonFlags& common, const PlacementWork& work) {
  if (!flags.device.empty() || !flags.places.empty() || flags.cpu_only)
    return fail(Code::invalid_argument, "--placements runs every placement: --device, --place and --cpu-only contradict it");
  if (work.n_prompt < 1 || work.n_decode < 1) return fail(Code::invalid_argument, "--placements: --pp and --tg must be one number each");
  std::vector<Row> rows;
  MachineProfile machine;
  std::string model;
  Row chosen;
  chosen.name = "as planned";
  chosen.flags = flags;
  chosen.chosen = true;
  {
    FTH_ASSIGN_OR_RETURN(const Opened opened, open_engine(flags, common, Depth::plan_only, Measure::anew));
    machine = opened.profile;
    model = opened.model.string();
    rows = candidates(flags, opened.engine->registry(), work);
  }
  watch_interrupts(SecondPress::ends_the_program);
  const CommonFlags quiet = quiet_of(common);
  FTH_RETURN_IF_ERROR(plan_row(quiet, &machine, &chosen));
  for (Row& row : rows) {
    if (row.reason.empty()) FTH_RETURN_IF_ERROR(plan_row(quiet, &machine, &row));
    if (!row.reason.empty()) continue;
    // Whether this placement is one that is there already.
    const auto same =
        std::find_if(rows.begin(), rows.end(), [&](const Row& r) { return &r == &row || (r.reason.empty() && r.where == row.where); });
    if (&*same != &row) row.reason = "the same as " + same->name;
    if (row.reason.empty() && row.where == chosen.where) row.chosen = true;
  }
  if (std::none_of(rows.begin(), rows.end(), [](const Row& r) { return r.chosen; })) rows.push_back(chosen);
  {
    Progress bar("measuring", Progress::Unit::tokens, !common.quiet);
    uint64_t done = 0;
    const uint64_t each = static_cast<uint64_t>(work.n_prompt + work.n_decode);
    const auto runs = static_cast<uint64_t>(std::count_if(rows.begin(), rows.end(), [](const Row& r) { return r.reason.empty(); }));
    for (int64_t r = 0; r < work.repetitions; ++r)
      for (Row& row : rows) {
        if (!row.reason.empty()) continue;
        FTH_RETURN_IF_ERROR(run_row(quiet, machine, work, &row));
        bar.update(done += each, runs * each * static_cast<uint64_t>(work.repetitions));
      }
  }
  const Verdict verdict = judge(rows);
  const int code = work.must_hold && !verdict.holds() ? 1 : 0;
  if (common.json) {
    boost::json::array all;
    for (const Row& row : rows)
      all.push_back({{"placement", utf8_lossy(row.name)},
                     {"chosen", row.chosen},
                     {"single_device", row.single},
                     {"reason", utf8_lossy(row.reason)},
                     {"prompt_tok_s", Row::best(row.prompt)},
                     {"prompt_samples", boost::json::value_from(row.prompt)},
                     {"expected_prompt_tok_s", row.expected_prompt},
                     {"decode_tok_s", Row::best(row.decode)},
                     {"decode_samples", boost::json::value_from(row.decode)},
                     {"expected_decode_tok_s", row.expected_decode},
                     {"job_seconds", row.decode.empty() ? 0.0 : jobs_of(row).front()}});
    FTH_RETURN_IF_ERROR(put(json_text({{"model", utf8_lossy(model)},
                                       {"prompt_tokens", work.n_prompt},
                                       {"decode_tokens", work.n_decode},
                                       {"repetitions", work.repetitions},
                                       {"placements", std::move(all)},
                                       {"job", {{"prompt_tokens", kJobPrompt}, {"decode_tokens", kJobDecode}}},
                                       {"chosen", name_json(verdict.chosen)},
                                       {"best", name_json(verdict.best)},
                                       {"best_single_device", name_json(verdict.single)},
                                       {"ratio", verdict.ratio},
                                       {"ratio_single_device", verdict.single_ratio},
                                       {"noise", verdict.noise},
                                       {"outcome", verdict.word},
                                       {"verdict", utf8_lossy(verdict_text(verdict))}})));
    return code;
  }
  Table table("lrrrrl", {"placement", text("pp%lld tok/s", static_cast<long long>(work.n_prompt)), "expected",
                         text("tg%lld tok/s", static_cast<long long>(work.n_decode)), "expected", ""});
  for (const Row& row : rows)
    table.row({printable(row.name), number(Row::best(row.prompt)), number(row.expected_prompt), number(Row::best(row.decode)),
               number(row.expected_decode), row.chosen ? "chosen" : printable(row.reason, 100)});
  FTH_RETURN_IF_ERROR(put(work.csv ? table.csv() : work.markdown ? table.markdown() : table.plain()));
  if (!common.quiet) say(text("best of %lld; ", static_cast<long long>(work.repetitions)) + verdict_text(verdict));
  return code;
}

}  // namespace fth::cli
