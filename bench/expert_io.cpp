// Replays routing traces against the expert store: real reads from a file, or a simulation of the same store with storage of a given speed. docs/memory.md explains the columns.
//   expert_io --generate skewed --tokens 512 -o skewed.trace
//   expert_io --trace skewed.trace --simulate 2 --slots 25%,50% --policy lru,lfu,reuse,optimum
//   expert_io --trace skewed.trace --file model.gguf --slots 25%,50% --reader uring,pread --depth 4,16 --csv out.csv
#include <algorithm>
#include <boost/program_options.hpp>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>

#include "core/base/bytes.h"
#include "core/experts/expert_store.h"
#include "core/experts/measure.h"
#include "core/experts/replay.h"
#include "core/model/config.h"
#include "core/plan/stream_model.h"

namespace fth::bench {
namespace {

namespace po = boost::program_options;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

void compute(double us) {  // as attention and experts do: on the core, not asleep
  const auto begin = Clock::now();
  while (seconds_since(begin) * 1e6 < us) {
  }
}

struct Work {
  double attention_us = 0, expert_us = 0;
  double guess = -1;  // share of a layer's experts that a guess gets right; below 0: no guesses
  int64_t warmup = 0;
};

struct Row {
  std::string policy, reader, description;
  uint64_t slots = 0;
  uint32_t depth = 0;
  double tokens = 0, wall_s = 0, compute_s = 0, bound_io_s = 0, stall_s = 0;
  uint64_t requested = 0, hits = 0, late = 0, misses = 0, guesses = 0, wrong_guesses = 0, bytes = 0;
  double bound_s() const { return std::max(compute_s, bound_io_s); }  // with perfect overlap
  double merit() const { return wall_s > 0 ? std::min(bound_s() / wall_s, 9.99) : 0; }
};

void take_counts(Row* row, const ExpertStats& now, const ExpertStats& then) {
  row->requested = now.requested - then.requested;
  row->hits = now.hits - then.hits;
  row->late = now.late - then.late;
  row->misses = now.misses - then.misses;
  row->guesses = now.guesses - then.guesses;
  row->wrong_guesses = now.wrong_guesses - then.wrong_guesses;
  row->bytes = now.bytes_read - then.bytes_read;
  row->stall_s = now.stall_s - then.stall_s;
}

// What a predictor with a given accuracy would say of a row.
std::vector<int32_t> guessed(const ExpertTrace& trace, const ExpertTrace::Row& row, double accuracy, std::mt19937* random) {
  std::vector<int32_t> ids;
  for (const int32_t e : row.experts) {
    const bool right = std::uniform_real_distribution<double>(0, 1)(*random) < accuracy;
    ids.push_back(right ? e : static_cast<int32_t>((*random)() % static_cast<uint32_t>(trace.n_expert)));
  }
  return ids;
}

// Every row of the trace through the store, with real reads.
Result<Row> run_store(const ExpertTrace& trace, ExpertStore* store, const Work& work) {
  Row row;
  std::mt19937 random(1);
  ExpertStats then;
  auto begin = Clock::now();
  for (size_t i = 0; i < trace.rows.size(); ++i) {
    const ExpertTrace::Row& r = trace.rows[i];
    if (r.token == work.warmup && (i == 0 || trace.rows[i - 1].token < work.warmup)) {
      then = store->stats();
      begin = Clock::now();
    }
    FTH_ASSIGN_OR_RETURN(auto lease, store->request(r.layer, r.experts));
    if (work.guess >= 0 && i + 1 < trace.rows.size())
      store->guess(trace.rows[i + 1].layer, guessed(trace, trace.rows[i + 1], work.guess, &random));
    compute(work.attention_us);
    while (true) {
      FTH_ASSIGN_OR_RETURN(const auto places, lease.next());
      if (places.empty()) break;
      compute(work.expert_us * static_cast<double>(places.size()));
    }
  }
  row.tokens = static_cast<double>(trace.n_tokens - work.warmup);
  take_counts(&row, store->stats(), then);
  row.wall_s = seconds_since(begin);
  for (const auto& r : trace.rows)
    if (r.token >= work.warmup) row.compute_s += (work.attention_us + work.expert_us * static_cast<double>(r.experts.size())) * 1e-6;
  return row;
}

// The store's decisions alone, and the planner's sum of what they cost at a speed of storage.
Result<Row> simulate(const ExpertTrace& trace, const std::string& policy_name, uint64_t n_slots, const Work& work, uint64_t expert_bytes,
                     double bytes_per_second) {
  Replay found;
  if (policy_name == "optimum") {
    FTH_ASSIGN_OR_RETURN(found, replay_optimum(trace, static_cast<int64_t>(n_slots), work.warmup));
  } else {
    FTH_ASSIGN_OR_RETURN(const Policy policy, policy_from_name(policy_name));
    FTH_ASSIGN_OR_RETURN(found, replay(trace, policy, static_cast<int64_t>(n_slots), work.warmup));
  }
  StreamCosts costs;
  costs.top_k = trace.top_k;
  costs.expert_bytes = expert_bytes;
  for (const bool sparse : trace.sparse)
    costs.layers.push_back(sparse ? StreamCosts::Layer{work.attention_us * 1e-6, work.expert_us * 1e-6 * static_cast<double>(trace.top_k)}
                                  : StreamCosts::Layer{});
  const StreamPrediction p = predict_decode(costs, found.miss_shares, {bytes_per_second, 0});
  Row row;
  row.tokens = static_cast<double>(found.tokens);
  row.requested = found.requested, row.misses = found.misses, row.hits = found.requested - found.misses;
  row.bytes = found.misses * expert_bytes;
  row.wall_s = p.seconds() * row.tokens, row.compute_s = p.compute_s * row.tokens, row.stall_s = p.stall_s * row.tokens;
  return row;
}

Result<ExpertSource> gguf_source(const std::filesystem::path& path, uint64_t* expert_bytes) {
  FTH_ASSIGN_OR_RETURN(const Model model, load_model(path));
  ExpertSource s;
  s.files.assign(model.file.parts().begin(), model.file.parts().end());
  s.top_k = model.config.top_k;
  for (const Layer& l : model.layers) {
    ExpertSource::Layer layer;
    if (l.router) {
      layer.n_expert = l.gate.experts;
      const auto part = [](const Weight& w) { return ExpertSource::Part{w.file, w.offset, w.expert_bytes(), w.stride}; };
      layer.gate = part(l.gate), layer.up = part(l.up), layer.down = part(l.down);
      *expert_bytes = layer.gate.bytes + layer.up.bytes + layer.down.bytes;
    }
    s.layers.push_back(std::move(layer));
  }
  return s;
}

// Slabs anywhere in a file: whatever bytes it has, read as a packed model of the trace's shape would be.
ExpertSource slab_source(const ExpertTrace& trace, const std::filesystem::path& path, uint64_t bytes, uint64_t file_bytes) {
  ExpertSource s;
  s.files = {path};
  s.top_k = trace.top_k;
  const uint64_t stride = align_up(bytes, 4096), layer_bytes = stride * static_cast<uint64_t>(trace.n_expert);
  const uint64_t places = file_bytes > layer_bytes ? (file_bytes - layer_bytes) / stride + 1 : 1;
  for (int64_t l = 0; l < trace.n_layer; ++l) {
    ExpertSource::Layer layer;
    const uint64_t begin = static_cast<uint64_t>(l) * static_cast<uint64_t>(trace.n_expert) % places * stride, third = bytes / 3;
    if (trace.sparse[static_cast<size_t>(l)]) layer.n_expert = trace.n_expert;
    layer.gate = {0, begin, third, stride}, layer.up = {0, begin + third, third, stride},
    layer.down = {0, begin + 2 * third, bytes - 2 * third, stride};
    s.layers.push_back(std::move(layer));
  }
  return s;
}

std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> parts;
  std::stringstream in(list);
  for (std::string part; std::getline(in, part, ',');)
    if (!part.empty()) parts.push_back(part);
  return parts;
}

void print(const std::vector<Row>& rows, const std::string& csv, const ExpertTrace& trace) {
  std::printf("%-8s %-7s %6s %5s %7s %7s %9s %9s %9s %9s %9s %7s\n", "policy", "reader", "slots", "depth", "hit %", "late %", "MiB/tok",
              "stall ms", "ms/tok", "tok/s", "bound", "merit");
  std::ofstream out;
  if (!csv.empty()) out.open(csv);
  if (out)
    out << "trace,source,policy,reader,slots,depth,tokens,requested,hits,late,misses,guesses,wrong_guesses,bytes_per_token,stall_s_per_"
           "token,s_per_token,compute_s_per_token,io_bound_s_per_token,"
           "merit\n";
  for (const Row& r : rows) {
    const double n = std::max(r.tokens, 1.0), asked = std::max(static_cast<double>(r.requested), 1.0);
    std::printf("%-8s %-7s %6" PRIu64 " %5u %7.2f %7.2f %9.2f %9.2f %9.2f %9.2f %9.2f %7.2f\n", r.policy.c_str(), r.reader.c_str(), r.slots,
                r.depth, 100 * static_cast<double>(r.hits) / asked, 100 * static_cast<double>(r.late) / asked,
                static_cast<double>(r.bytes) / n / static_cast<double>(kMiB), r.stall_s / n * 1e3, r.wall_s / n * 1e3,
                r.wall_s > 0 ? n / r.wall_s : 0, r.bound_s() > 0 ? n / r.bound_s() : 0, r.merit());
    if (out)
      out << trace.model << ",\"" << trace.source << "\"," << r.policy << ',' << r.reader << ',' << r.slots << ',' << r.depth << ','
          << r.tokens << ',' << r.requested << ',' << r.hits << ',' << r.late << ',' << r.misses << ',' << r.guesses << ','
          << r.wrong_guesses << ',' << static_cast<double>(r.bytes) / n << ',' << r.stall_s / n << ',' << r.wall_s / n << ','
          << r.compute_s / n << ',' << r.bound_io_s / n << ',' << r.merit() << '\n';
  }
}

Result<> run(const po::variables_map& v, const std::string& command) {
  const auto text = [&](const char* name) { return v.count(name) > 0 ? v[name].as<std::string>() : std::string(); };
  ExpertTrace trace;
  if (v.count("generate") > 0) {
    SyntheticTrace recipe;
    recipe.skewed = text("generate") == "skewed";
    if (!recipe.skewed && text("generate") != "uniform") return fail(Code::invalid_argument, "--generate takes skewed or uniform");
    recipe.n_layer = v["layers"].as<int64_t>(), recipe.n_expert = v["experts"].as<int64_t>(), recipe.top_k = v["top-k"].as<int64_t>();
    recipe.n_tokens = v["tokens"].as<int64_t>(), recipe.seed = v["seed"].as<uint64_t>();
    recipe.hot_experts = v["hot"].as<double>(), recipe.hot_uses = v["hot-uses"].as<double>(), recipe.stay = v["stay"].as<double>();
    if (recipe.n_layer < 1 || recipe.n_layer > 4096 || recipe.n_expert < 2 || recipe.n_expert > 4096 || recipe.top_k < 1 ||
        recipe.top_k >= recipe.n_expert || recipe.n_tokens < 1 || recipe.n_tokens > 1000000 ||
        !(recipe.hot_experts > 0 && recipe.hot_experts < 1 && recipe.hot_uses > 0 && recipe.hot_uses < 1))
      return fail(Code::invalid_argument, "the trace to generate is out of range");
    trace = make_trace(recipe);
  } else {
    FTH_ASSIGN_OR_RETURN(trace, read_trace(text("trace")));
  }
  std::printf(
      "%s (%s): %lld tokens, %lld layers, %lld experts, top_k %lld; a quarter of the experts has %.0f %% of the uses, %.0f %% were used by "
      "the token before\n",
      trace.model.c_str(), trace.source.c_str(), static_cast<long long>(trace.n_tokens), static_cast<long long>(trace.n_layer),
      static_cast<long long>(trace.n_expert), static_cast<long long>(trace.top_k), 100 * hot_share(trace, 0.25), 100 * repeat_share(trace));
  if (v.count("out") > 0) FTH_RETURN_IF_ERROR(write_trace(text("out"), trace, v.count("generate") > 0 ? "made by " + command : ""));
  const double gb_s = v["simulate"].as<double>();
  if (gb_s <= 0 && v.count("file") == 0) return {};

  Work work;
  work.attention_us = v["attention-us"].as<double>(), work.expert_us = v["expert-us"].as<double>();
  work.guess = v["guess"].as<double>();
  if (work.guess >= 0 && gb_s > 0)
    return fail(Code::invalid_argument, "--guess needs --file: a simulation has no clock for reads that nobody waits for");
  work.warmup = v.count("warmup") > 0 ? v["warmup"].as<int64_t>() : trace.n_tokens / 8;
  if (work.warmup < 0 || work.warmup >= trace.n_tokens) return fail(Code::invalid_argument, "--warmup has to leave tokens");
  uint64_t expert_bytes = v["expert-bytes"].as<uint64_t>();
  if (expert_bytes < 3 || expert_bytes > kGiB) return fail(Code::invalid_argument, "--expert-bytes is out of range");
  ExpertSource source;
  double rate = gb_s * 1e9;
  if (gb_s <= 0) {
    const bool gguf = v.count("raw") == 0;
    if (gguf) {
      FTH_ASSIGN_OR_RETURN(source, gguf_source(text("file"), &expert_bytes));
    } else {
      source = slab_source(trace, text("file"), expert_bytes, std::filesystem::file_size(text("file")));
    }
    if (source.layers.size() != static_cast<size_t>(trace.n_layer))
      return fail(Code::invalid_argument,
                  "the trace has " + std::to_string(trace.n_layer) + " layers, the file " + std::to_string(source.layers.size()));
    FTH_ASSIGN_OR_RETURN(const ReadMeasurement m, measure_reads(text("file"), "auto", 0.5));
    for (const auto& r : m.rows) rate = std::max(rate, r.bytes_per_s);
    for (const auto& r : m.rows)
      std::printf("  read %-9s depth %u: %.2f GB/s\n", format_bytes(r.request_bytes).c_str(), r.queue_depth, r.bytes_per_s / 1e9);
    std::printf("  %s; best: depth %u, %s\n", m.reader.c_str(), m.best.queue_depth, format_bytes(m.best.request_bytes).c_str());
  }
  uint64_t n_total = 0, slot_bytes = expert_bytes;
  for (const bool sparse : trace.sparse) n_total += sparse ? static_cast<uint64_t>(trace.n_expert) : 0;
  if (gb_s <= 0) {
    FTH_ASSIGN_OR_RETURN(slot_bytes, ExpertStore::slot_bytes(source));
  }

  std::vector<Row> rows;
  const int repeats = v["repeats"].as<int>();
  for (const std::string& s : split(text("slots"))) {
    const double number = std::strtod(s.c_str(), nullptr);
    const uint64_t n_slots =
        s.back() == '%' ? static_cast<uint64_t>(number / 100 * static_cast<double>(n_total) + 0.5) : static_cast<uint64_t>(number);
    for (int repeat = 0; repeat < repeats; ++repeat)
      for (const std::string& policy : split(text("policy"))) {
        if (gb_s > 0 || policy == "optimum") {
          FTH_ASSIGN_OR_RETURN(Row row, simulate(trace, policy, n_slots, work, expert_bytes, rate));
          row.policy = policy, row.reader = "sim", row.slots = n_slots;
          rows.push_back(row);
          continue;
        }
        for (const std::string& reader : split(text("reader")))
          for (const std::string& depth : split(text("depth"))) {
            ExpertStoreOptions options;
            options.bytes = n_slots * slot_bytes;
            options.reader = reader;
            options.policy = policy;
            options.queue_depth = static_cast<uint32_t>(std::strtoul(depth.c_str(), nullptr, 10));
            options.request_bytes = v["request-bytes"].as<uint64_t>();
            options.direct = v.count("buffered") == 0;
            FTH_ASSIGN_OR_RETURN(auto store, ExpertStore::open(source, options));
            if (v.count("verbose") > 0) std::printf("  %s\n", store->description().c_str());
            FTH_ASSIGN_OR_RETURN(Row row, run_store(trace, store.get(), work));
            row.policy = policy, row.reader = reader, row.slots = n_slots, row.depth = options.queue_depth;
            rows.push_back(row);
          }
      }
  }
  for (Row& r : rows) r.bound_io_s = static_cast<double>(r.bytes) / rate;
  print(rows, text("csv"), trace);
  return {};
}

}  // namespace
}  // namespace fth::bench

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  po::options_description all("expert_io: replays a routing trace against the expert store");
  const auto text = [] { return po::value<std::string>(); };
  all.add_options()("help,h", "this text")("trace,t", text(), "routing trace to replay")(
      "generate", text(), "make one instead: skewed or uniform")("out,o", text(), "write the trace")(
      "layers", po::value<int64_t>()->default_value(32))("experts", po::value<int64_t>()->default_value(32))(
      "top-k", po::value<int64_t>()->default_value(4))("tokens", po::value<int64_t>()->default_value(512))(
      "seed", po::value<uint64_t>()->default_value(1))("hot", po::value<double>()->default_value(0.22), "share of hot experts")(
      "hot-uses", po::value<double>()->default_value(0.8), "their share of the uses")(
      "stay", po::value<double>()->default_value(0.98), "chance that the topic stays")("file,f", text(), "read from this model")(
      "raw", "the file is any file: experts are slabs of --expert-bytes in it")(
      "expert-bytes", po::value<uint64_t>()->default_value(1990656), "of one expert, for --raw and --simulate")(
      "simulate", po::value<double>()->default_value(0), "GB/s of simulated storage")(
      "slots", text()->default_value("25%,50%"), "slots, or % of all experts")("policy", text()->default_value("lru,lfu,reuse"),
                                                                               "also optimum, which knows the future")(
      "reader", text()->default_value("auto"), "uring, pread")("depth", text()->default_value("0"), "reads in flight; 0: default")(
      "request-bytes", po::value<uint64_t>()->default_value(0))("buffered", "through the page cache")(
      "attention-us", po::value<double>()->default_value(0), "computed per layer between request and use")(
      "expert-us", po::value<double>()->default_value(0), "computed per expert")("guess", po::value<double>()->default_value(-1),
                                                                                 "guess the next layer with this accuracy")(
      "warmup", po::value<int64_t>(), "tokens that are not counted; default an eighth")("repeats", po::value<int>()->default_value(1))(
      "csv", text(), "also write the table here")("verbose,v", "");
  std::string command = "expert_io";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  po::variables_map v;
  try {
    po::store(po::parse_command_line(argc, argv, all), v);
    po::notify(v);
  } catch (const po::error& e) {
    std::fprintf(stderr, "expert_io: %s\n", e.what());
    return 2;
  }
  if (v.count("help") > 0 || (v.count("trace") == 0 && v.count("generate") == 0)) {
    std::cout << all;
    return v.count("help") > 0 ? 0 : 2;
  }
  if (const auto r = fth::bench::run(v, command); !r) {
    std::fprintf(stderr, "expert_io: %s\n", r.error().message.c_str());
    return 1;
  }
  return 0;
}
