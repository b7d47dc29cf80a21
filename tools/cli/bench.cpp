// forethought bench: prefill and decode speed, with the bytes moved and what the plan predicted.

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <utility>

#include "core/base/bytes.h"
#include "tools/cli/command.h"
#include "tools/cli/generate.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/kernel_tables.h"
#include "tools/cli/machine.h"
#include "tools/cli/output.h"
#include "tools/cli/placements.h"
#include "tools/cli/progress.h"
#include "tools/cli/report.h"
#include "tools/cli/roofline.h"
#include "tools/cli/warm.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Measures prefill (rows ppN) and decode (rows tgN) over several repetitions: mean and deviation, bytes per second, their share of the\n"
    "measured memory bandwidth, peak memory, and how far the plan's prediction was off. Each repetition starts with an empty context.\n"
    "The tokens are pseudo-random and the same every time, or come from a file: its first part is the prompt, the rest is decoded.\n\n"
    "  forethought bench -m model.gguf\n"
    "  forethought bench -m model.gguf --placements\n"
    "  forethought bench -m model.gguf --pp 128,512 --tg 128 -r 3 --json\n";

constexpr const char *kDefaultPp = "512", *kDefaultTg = "128";

struct BenchFlags : CommonFlags {
  EngineFlags engine;
  WarmFlags warm{.set = "off", .task = {}, .pin = 0};
  std::string pp = kDefaultPp, tg = kDefaultTg, tokens;
  int64_t repetitions = 5, warmup = 1, compared = 0;
  bool markdown = false, csv = false, roofline = false, placements = false, software = false, must_hold = false;
};

void describe(BenchFlags& f, po::options_description& options) {
  options.add_options()                                                                                                                //
      ("pp", po::value(&f.pp)->value_name("N,N"), "prompt lengths to measure (default: 512; 0: none)")                                 //
      ("tg", po::value(&f.tg)->value_name("N,N"), "numbers of tokens to decode (default: 128; 0: none)")                               //
      ("repetitions,r", po::value(&f.repetitions)->value_name("N"), "of each row (default: 5)")                                        //
      ("warmup", po::value(&f.warmup)->value_name("N"), "repetitions before that, not counted (default: 1)")                           //
      ("tokens", po::value(&f.tokens)->value_name("FILE"), "token ids to use; --tg tokens after the first --pp, in the same context")  //
      ("roofline", po::bool_switch(&f.roofline), "bytes, operations and shares of the machine's measured peaks by kind of segment")    //
      ("placements", po::bool_switch(&f.placements),
       "run the CPU alone, each device alone, mixtures and the chosen plan, in turn (--pp 128 --tg 32 unless given)")  //
      ("verdict-counts", po::bool_switch(&f.must_hold),
       "with --placements: exit code 1 unless the chosen placement is the fastest, or as fast within the noise")  //
      ("software-devices", po::bool_switch(&f.software), "with --placements: software devices, too")              //
      ("compare-heads", po::value(&f.compared)->value_name("N"),
       "with --lm-head screened: compare it with the exact one over N tokens (default: those decoded)")  //
      ("md", po::bool_switch(&f.markdown), "print a Markdown table")                                     //
      ("csv", po::bool_switch(&f.csv), "print comma-separated values")                                   //
      ;
  f.engine.start_on_cpu = "off";  // what is measured does not depend on when a device is ready
  add_engine(f.engine, options);
  add_warm(f.warm, options);
  add_common(f, options, "print one JSON object");
}

struct Row {
  std::string name;  // "pp512"
  bool decode = false;
  std::vector<int32_t> before, ids;  // read first and not measured; measured
  std::vector<double> tok_s;
  double seconds = 0;
  uint64_t bytes = 0;                 // weights and KV to be read, all repetitions
  IoStats io;                         // experts read, all repetitions
  std::vector<SegmentTime> segments;  // all repetitions
  double mean() const {
    double sum = 0;
    for (const double v : tok_s) sum += v;
    return tok_s.empty() ? 0 : sum / static_cast<double>(tok_s.size());
  }
  double deviation() const {  // of the sample
    double sum = 0;
    for (const double v : tok_s) sum += (v - mean()) * (v - mean());
    return tok_s.size() < 2 ? 0 : std::sqrt(sum / static_cast<double>(tok_s.size() - 1));
  }
  double bytes_per_second() const { return per_second(static_cast<double>(bytes), seconds); }
};

Result<std::vector<Row>> random_rows(const BenchFlags& f, const Engine& engine) {
  const int64_t n_ctx = engine.options().n_ctx, n_vocab = engine.model().config.n_vocab;
  std::vector<Row> rows;
  const auto add = [&](std::string_view option, const std::string& list, bool decode) -> Result<> {
    FTH_ASSIGN_OR_RETURN(const auto counts, parse_counts(option, list));
    for (const int64_t count : counts) {
      if (count > n_ctx)
        return fail(Code::invalid_argument, text("%.*s %lld: the context is %lld tokens; raise --ctx", static_cast<int>(option.size()),
                                                 option.data(), static_cast<long long>(count), static_cast<long long>(n_ctx)));
      Row row;
      row.name = (decode ? "tg" : "pp") + std::to_string(count);
      row.decode = decode;
      row.ids = random_ids(static_cast<size_t>(count), n_vocab);
      rows.push_back(std::move(row));
    }
    return {};
  };
  FTH_RETURN_IF_ERROR(add("--pp", f.pp, false));
  FTH_RETURN_IF_ERROR(add("--tg", f.tg, true));
  return rows;
}

Result<std::vector<Row>> file_rows(const BenchFlags& f, const Engine& engine, const std::vector<int32_t>& ids) {
  FTH_ASSIGN_OR_RETURN(const auto pp, parse_counts("--pp", f.pp));
  FTH_ASSIGN_OR_RETURN(const auto tg, parse_counts("--tg", f.tg));
  const size_t n_decode = tg.empty() ? 0 : static_cast<size_t>(tg[0]);
  size_t n_prompt = pp.empty() ? 0 : static_cast<size_t>(pp[0]);
  // A file shorter than both: as much decoding as was asked for, if half of the file is enough.
  if (n_prompt + n_decode > ids.size()) n_prompt = std::max(ids.size() / 2, ids.size() - std::min(ids.size(), n_decode));
  const auto middle = ids.begin() + static_cast<ptrdiff_t>(n_prompt);
  const auto last = ids.begin() + static_cast<ptrdiff_t>(std::min(ids.size(), n_prompt + n_decode));
  if (last - ids.begin() > engine.options().n_ctx)
    return fail(Code::invalid_argument, text("%zd tokens of %s: the context is %lld tokens; raise --ctx or lower --pp and --tg",
                                             last - ids.begin(), f.tokens.c_str(), static_cast<long long>(engine.options().n_ctx)));
  std::vector<Row> rows;
  if (n_prompt > 0) rows.push_back({"pp" + std::to_string(n_prompt), false, {}, {ids.begin(), middle}, {}, 0, 0, {}, {}});
  if (last > middle) rows.push_back({"tg" + std::to_string(last - middle), true, {ids.begin(), middle}, {middle, last}, {}, 0, 0, {}, {}});
  return rows;
}

Result<> repeat_once(Session& session, Row& row, bool counted) {
  session.clear();
  if (!row.before.empty()) FTH_RETURN_IF_ERROR(session.prefill(row.before));
  session.reset_stats();
  if (row.decode) {
    for (const int32_t id : row.ids) {
      FTH_RETURN_IF_ERROR(session.decode(id));
      if (interrupted()) return fail(Code::cancelled, "interrupted");
    }
  } else {
    FTH_RETURN_IF_ERROR(session.prefill(row.ids, [](int64_t, int64_t) { return !interrupted(); }));
  }
  if (interrupted()) return fail(Code::cancelled, "interrupted");
  if (!counted) return {};
  const Stats stats = session.stats();
  const double seconds = row.decode ? stats.decode_seconds : stats.prompt_seconds;
  row.tok_s.push_back(per_second(static_cast<double>(row.ids.size()), seconds));
  row.seconds += seconds;
  row.io += row.decode ? stats.decode_io : stats.prompt_io;
  add_segments(stats.segments, row.segments);
  if (row.decode) {
    row.bytes += stats.decode_bytes;
  } else {
    for (const SegmentTime& s : stats.segments) row.bytes += s.bytes;
  }
  return {};
}

// What a pass counts is whole experts.
void leave_out_dead(const Engine& engine, Row& row) {
  if (!row.decode) return;
  const auto dead = static_cast<uint64_t>(dead_bytes(engine) * static_cast<double>(row.ids.size() * row.tok_s.size()));
  row.bytes -= std::min(row.bytes, dead);
  for (SegmentTime& s : row.segments)
    if (s.kind == name(SegmentKind::experts)) s.bytes -= std::min(s.bytes, dead);
}

constexpr int64_t kLargest = 40;  // logits whose order and bits are compared

// The screened head against the exact one, after the timed repetitions: over the tokens that were decoded, or over --compare-heads of the file's tokens or of
// random ones, context after context.
Result<HeadAgreement> compare_heads(Session& session, const std::vector<Row>& rows, const std::vector<int32_t>& ids, int64_t n_ctx,
                                    bool quiet) {
  HeadAgreement out;
  const auto go_on = [] { return !interrupted(); };
  const auto over = [&](std::span<const int32_t> part) { return session.compare_heads(part, kLargest, &out, go_on); };
  if (!ids.empty()) {
    Progress bar("comparing", Progress::Unit::tokens, !quiet);
    for (size_t at = 0; at < ids.size();) {
      const std::span<const int32_t> part = std::span(ids).subspan(at, std::min(ids.size() - at, static_cast<size_t>(n_ctx)));
      session.clear();
      FTH_RETURN_IF_ERROR(over(part));
      bar.update(at += part.size(), ids.size());
    }
    return out;
  }
  for (const Row& row : rows) {
    if (!row.decode) continue;
    session.clear();
    if (!row.before.empty()) FTH_RETURN_IF_ERROR(session.prefill(row.before));
    FTH_RETURN_IF_ERROR(over(row.ids));
  }
  return out;
}

std::string isa_of(Registry& registry) {
  for (const DeviceEntry& entry : registry.devices()) {
    if (entry.device.info().kind != FTH_KIND_CPU) continue;
    for (const KernelSet& k : kernel_sets(entry.device.info().description))
      if (k.used) return k.name;
  }
  return "unknown";
}

std::vector<RooflineRow> roofline_rows(const Model& model, const std::vector<Row>& rows) {
  std::vector<RooflineRow> out;
  for (const Row& row : rows) {
    const Measured m{row.name,
                     row.decode,
                     static_cast<int64_t>(row.before.size()),
                     static_cast<int64_t>(row.ids.size()),
                     static_cast<int64_t>(row.tok_s.size()),
                     row.seconds,
                     row.io.stall_seconds,
                     row.segments};
    for (RooflineRow& r : roofline(model, m)) out.push_back(std::move(r));
  }
  return out;
}

boost::json::object bench_json(const BenchFlags& f, Opened& opened, const std::vector<Row>& rows, uint64_t rss) {
  Registry& registry = opened.engine->registry();
  const Plan& plan = opened.engine->plan();
  const Row *pp = nullptr, *tg = nullptr;
  boost::json::array all;
  for (const Row& row : rows) {
    const Row*& first = row.decode ? tg : pp;
    if (first == nullptr) first = &row;
    boost::json::object o{{"name", row.name},
                          {"tokens", row.ids.size()},
                          {"tok_s", row.mean()},
                          {"deviation", row.deviation()},
                          {"samples", boost::json::value_from(row.tok_s)},
                          {"gb_s", row.bytes_per_second() / 1e9}};
    if (opened.profile.bytes_per_second > 0) o["bandwidth_share"] = row.bytes_per_second() / opened.profile.bytes_per_second;
    all.push_back(std::move(o));
  }
  boost::json::object out{{"model", utf8_lossy(opened.model.string())},
                          {"tokens", f.tokens.empty() ? "random tokens" : utf8_lossy(f.tokens)},
                          {"repetitions", f.repetitions},
                          {"pp_tok_s", nullptr},
                          {"tg_tok_s", nullptr},
                          {"gb_s", nullptr},
                          {"bandwidth_share", nullptr}};
  if (pp != nullptr) out["pp_tok_s"] = pp->mean();
  if (tg != nullptr) {
    const double rate = tg->bytes_per_second();
    out["tg_tok_s"] = tg->mean();
    out["gb_s"] = rate / 1e9;
    if (opened.profile.bytes_per_second > 0) out["bandwidth_share"] = rate / opened.profile.bytes_per_second;
    out["measured_bytes_per_token"] = static_cast<double>(tg->bytes) / static_cast<double>(tg->ids.size() * tg->tok_s.size());
    if (plan.tokens_per_second() > 0) out["measured_over_predicted"] = tg->mean() / plan.tokens_per_second();
  }
  out["bytes_per_token"] = plan.bytes_per_token;
  out["predicted_tok_s"] = plan.tokens_per_second();
  out["peak_rss_bytes"] = rss;
  out["ram_bytes_planned"] = plan.ram_bytes;
  // With every weight in memory no expert is ever missed or waited for.
  const bool streamed = !opened.engine->streaming().empty();
  out["resident"] = !streamed;
  out["experts"] = streamed ? opened.engine->streaming() : "resident";
  out["hit_rate"] = 1.0;
  out["stall_ms"] = 0.0;
  if (streamed && tg != nullptr && tg->io.requested > 0) {
    const auto tokens = static_cast<double>(tg->ids.size() * tg->tok_s.size());
    out["hit_rate"] = static_cast<double>(tg->io.hits) / static_cast<double>(tg->io.requested);
    out["late_rate"] = static_cast<double>(tg->io.late) / static_cast<double>(tg->io.requested);
    out["stall_ms"] = 1e3 * tg->io.stall_seconds / tokens;  // per token
    out["io_ms"] = 1e3 * tg->io.io_seconds / tokens;
    out["storage_bytes_per_token"] = static_cast<double>(tg->io.bytes_read) / tokens;
    out["wrong_guesses_per_token"] = static_cast<double>(tg->io.wrong_guesses) / tokens;
    out["overlap"] = std::min(1.0, std::max(tg->seconds - tg->io.stall_seconds, tg->io.io_seconds) / tg->seconds);
  }
  const std::vector<double> live = live_shares(*opened.engine);
  if (!live.empty()) out["live_neurons"] = boost::json::value_from(live);
  out["bytes_per_second"] = opened.profile.bytes_per_second;
  out["cpu"] = opened.profile.cpu;
  out["isa"] = isa_of(registry);
  out["threads"] = registry.pool().n_threads();
  out["devices"] = boost::json::value_from(device_names(plan));
  out["n_ctx"] = opened.engine->options().n_ctx;
  out["ubatch"] = opened.engine->options().ubatch;
  out["build"] = registry.backends().empty() ? "" : utf8_lossy(registry.backends()[0].build);
  out["version"] = FTH_VERSION;
  out["rows"] = std::move(all);
  return out;
}

std::string bench_table(const BenchFlags& f, const Opened& opened, const std::vector<Row>& rows, uint64_t rss) {
  Table table("llrrrr", {"model", "test", "tok/s", "GB/s", "of bandwidth", "peak RSS"});
  const double bandwidth = opened.profile.bytes_per_second;
  for (const Row& row : rows)
    table.row({printable(opened.model.filename().string(), 40), row.name, text("%.2f \u00b1 %.2f", row.mean(), row.deviation()),
               text("%.2f", row.bytes_per_second() / 1e9), bandwidth > 0 ? text("%.0f %%", 100 * row.bytes_per_second() / bandwidth) : "-",
               format_bytes(rss)});
  return f.csv ? table.csv() : f.markdown ? table.markdown() : table.plain();
}

Result<int> run(BenchFlags& f) {
  FTH_RETURN_IF_ERROR(take_positional_model(f, f.engine));
  if (f.repetitions < 1 || f.warmup < 0) return fail(Code::invalid_argument, "-r must be 1 or more and --warmup 0 or more");
  if (f.compared < 0 || (f.compared > 0 && f.engine.lm_head != "screened"))
    return fail(Code::invalid_argument, "--compare-heads N: N above 0, with --lm-head screened");
  if (int{f.json} + int{f.markdown} + int{f.csv} > 1) return fail(Code::invalid_argument, "use one of --json, --md and --csv");
  if (f.placements) {
    FTH_ASSIGN_OR_RETURN(const auto pp, parse_counts("--pp", f.pp == kDefaultPp ? "128" : f.pp));
    FTH_ASSIGN_OR_RETURN(const auto tg, parse_counts("--tg", f.tg == kDefaultTg ? "32" : f.tg));
    if (pp.size() != 1 || tg.size() != 1) return fail(Code::invalid_argument, "--placements: --pp and --tg must be one number each");
    return bench_placements(f.engine, f, {pp[0], tg[0], f.repetitions, f.software, f.markdown, f.csv, f.must_hold});
  }
  if (f.must_hold) return fail(Code::invalid_argument, "--verdict-counts goes with --placements");
  if (f.software) return fail(Code::invalid_argument, "--software-devices goes with --placements");
  FTH_RETURN_IF_ERROR(check_warm(f.warm));
  FTH_RETURN_IF_ERROR(parse_counts("--pp", f.pp));
  FTH_RETURN_IF_ERROR(parse_counts("--tg", f.tg));
  std::vector<int32_t> ids;
  if (!f.tokens.empty()) {
    FTH_ASSIGN_OR_RETURN(ids, read_tokens(f.tokens));
  }
  // In a child, so before any thread exists.
  const Int8Peak int8 = f.roofline ? int8_peak(threads_asked(f.engine)) : Int8Peak{};
  FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(f.engine, f, Depth::weights, Measure::anew));
  FTH_ASSIGN_OR_RETURN(std::vector<Row> rows, f.tokens.empty() ? random_rows(f, *opened.engine) : file_rows(f, *opened.engine, ids));
  if (rows.empty() && f.compared == 0) return fail(Code::invalid_argument, "nothing to measure: give --pp or --tg a number");
  if (ids.empty() && f.compared > 0) ids = random_ids(static_cast<size_t>(f.compared), opened.engine->model().config.n_vocab);
  if (std::cmp_less(ids.size(), f.compared))
    return fail(Code::invalid_argument,
                text("--compare-heads %lld: %s has %zu tokens", static_cast<long long>(f.compared), f.tokens.c_str(), ids.size()));
  ids.resize(static_cast<size_t>(f.compared));  // what is measured is in the rows
  watch_interrupts(SecondPress::ends_the_program);
  FTH_ASSIGN_OR_RETURN(const WarmSet warm, WarmSet::restore(f.warm, f, *opened.engine));
  FTH_ASSIGN_OR_RETURN(Session session, opened.engine->new_session());
  const bool screened = opened.engine->options().head == HeadMode::screened;
  if (screened) session.set_wanted_logits(1);
  Stats head_stats;
  {
    Progress bar("measuring", Progress::Unit::tokens, !f.quiet);
    uint64_t total = 0, done = 0;
    for (const Row& row : rows) total += row.ids.size() * static_cast<uint64_t>(f.repetitions + f.warmup);
    for (Row& row : rows) {
      for (int64_t r = -f.warmup; r < f.repetitions; ++r) {
        FTH_RETURN_IF_ERROR(repeat_once(session, row, r >= 0));
        bar.update(done += row.ids.size(), total);
      }
    }
  }
  for (Row& row : rows) leave_out_dead(*opened.engine, row);
  const uint64_t rss = peak_rss();
  head_stats = session.stats();
  HeadAgreement heads;
  const bool given_up = opened.engine->screened_head().starts_with("exact");
  if (screened && !given_up) {
    FTH_ASSIGN_OR_RETURN(heads, compare_heads(session, rows, ids, opened.engine->options().n_ctx, f.quiet));
  } else if (f.compared > 0) {
    return fail(Code::failed_precondition, "--compare-heads: " + opened.engine->screened_head());
  }
  const Peaks peaks{opened.profile.bytes_per_second, int8.ops_per_second, int8.how};
  if (f.json) {
    auto out = bench_json(f, opened, rows, rss);
    if (f.roofline) out["roofline"] = roofline_json(roofline_rows(opened.engine->model(), rows), peaks);
    if (screened)
      out["lm_head"] = {{"how", opened.engine->screened_head()},
                        {"tokens", heads.positions},
                        {"same_first", heads.same_first},
                        {"same_largest_40", heads.same_largest},
                        {"rows_share", heads.positions > 0 ? heads.share / static_cast<double>(heads.positions) : 0.0}};
    FTH_RETURN_IF_ERROR(put(json_text(out)));
    return 0;
  }
  FTH_RETURN_IF_ERROR(put(bench_table(f, opened, rows, rss)));
  if (f.roofline) {
    const Table table = roofline_table(roofline_rows(opened.engine->model(), rows), peaks);
    FTH_RETURN_IF_ERROR(put("\n" + (f.csv ? table.csv() : f.markdown ? table.markdown() : table.plain())));
    if (!f.quiet) say(roofline_legend(peaks));
  }
  if (screened) {
    FTH_RETURN_IF_ERROR(put(head_line(*opened.engine, head_stats) + '\n'));
    if (heads.positions > 0)
      FTH_RETURN_IF_ERROR(put(text("against the exact head: the same largest logit in %lld of %lld tokens, the same %lld largest in %lld\n",
                                   static_cast<long long>(heads.same_first), static_cast<long long>(heads.positions),
                                   static_cast<long long>(kLargest), static_cast<long long>(heads.same_largest))));
  }
  if (f.quiet) return 0;
  Registry& registry = opened.engine->registry();
  say(text("%s, %s, %u threads, %s; %lld repetitions", opened.profile.cpu.c_str(), isa_of(registry).c_str(), registry.pool().n_threads(),
           f.tokens.empty() ? "random tokens" : f.tokens.c_str(), static_cast<long long>(f.repetitions)));
  if (const std::string live = live_text(live_shares(*opened.engine)); !live.empty()) say(live);
  const double predicted = opened.engine->plan().tokens_per_second();
  for (const Row& row : rows)
    if (row.decode && predicted > 0)
      say(text("%s: the plan expected %.1f tok/s, measured are %.0f %% of it", row.name.c_str(), predicted, 100 * row.mean() / predicted));
  return 0;
}

}  // namespace

const Command kBench = make_command<BenchFlags, describe, run>("bench", "measure prefill and decode speed", kHelp, "MODEL");

}  // namespace fth::cli
