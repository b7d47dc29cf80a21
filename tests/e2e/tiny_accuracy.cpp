// The bundled tiny model on its held-out tasks, through the whole engine: tokenizer, prefill, logits.
//
//   tiny_accuracy MODEL EVAL.jsonl MISSED.txt [--isa NAME|all] [--every N] [--loss N] [--kv f32] [--threads N]
//                [--plugin FILE --device NAME]
//
// With a device: attention and head on it, the rest on the CPU.
// A task's answer is right when greedy decoding would yield exactly the expected tokens. That takes one forward pass per row: the expected token
// must be the arg max at every position of the answer, its end token included (tools/tiny_model/evaluate.py decides the same way). MISSED names the
// rows that exact arithmetic on the bundled weights gets wrong; a task fails when more than --loss rows are wrong beyond those.
// Stories have no single answer: tests/e2e/stories_test.py generates them.
#include <algorithm>
#include <boost/json.hpp>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "backends/cpu/kernels/kernels.h"
#include "core/engine/engine.h"

namespace {

struct Row {
  int line = 0;  // in the file, from 1
  std::string task, text, answer;
};

struct Score {
  int rows = 0, right = 0, exact = 0;  // exact: right by exact arithmetic
};

struct Options {
  std::string model, eval, missed;
  std::string isa = {}, kv = "f16";
  int every = 1, loss = 1;
  uint32_t threads = 0;
  std::string plugin = {}, device = {};
};

[[noreturn]] void usage(const std::string& why) {
  std::fprintf(stderr,
               "%s\nusage: tiny_accuracy MODEL EVAL.jsonl MISSED.txt [--isa NAME|all] [--every N] [--loss N] [--kv f16|f32] [--threads N]\n"
               "       [--plugin FILE --device NAME]\n",
               why.c_str());
  std::exit(2);
}

int number(const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) usage("not a number: " + text);
  return value;
}

Options parse(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.size() < 3 || args.size() % 2 == 0) usage("three files, then options with values");
  Options o{.model = args[0], .eval = args[1], .missed = args[2]};
  for (size_t i = 3; i < args.size(); i += 2) {
    const std::string &name = args[i], &value = args[i + 1];
    if (name == "--isa") {
      o.isa = value;
    } else if (name == "--every") {
      o.every = std::max(1, number(value));
    } else if (name == "--loss") {
      o.loss = number(value);
    } else if (name == "--kv") {
      o.kv = value;
    } else if (name == "--threads") {
      o.threads = static_cast<uint32_t>(number(value));
    } else if (name == "--plugin") {
      o.plugin = value;
    } else if (name == "--device") {
      o.device = value;
    } else {
      usage("unknown option " + name);
    }
  }
  return o;
}

std::vector<Row> read_rows(const std::string& path, int every) {
  std::ifstream file(path);
  std::vector<Row> rows;
  std::map<std::string, int> seen;
  std::string line;
  for (int n = 1; std::getline(file, line); ++n) {
    const auto row = boost::json::parse(line).as_object();
    const std::string task(row.at("task").as_string());
    if (task == "story" || seen[task]++ % every != 0) continue;
    rows.push_back({n, task, std::string(row.at("text").as_string()), std::string(row.at("answer").as_string())});
  }
  return rows;
}

// Line numbers, one per line; '#' begins a remark.
std::set<int> read_missed(const std::string& path) {
  std::ifstream file(path);
  if (!file) usage("cannot read " + path);
  std::set<int> lines;
  std::string line;
  while (std::getline(file, line)) {
    const std::string first = line.substr(0, line.find_first_of(" #"));
    if (!first.empty()) lines.insert(number(first));
  }
  return lines;
}

int32_t arg_max(const float* logits, int64_t n) { return static_cast<int32_t>(std::max_element(logits, logits + n) - logits); }

fth::Result<bool> answers(fth::Engine& engine, fth::Session& session, const Row& row) {
  const auto& tokenizer = engine.tokenizer();
  std::vector<int32_t> ids = tokenizer.encode(row.text, fth::SpecialTokens::parse);
  const std::vector<int32_t> answer = tokenizer.encode(row.answer + "<|im_end|>", fth::SpecialTokens::parse);
  const int64_t first = static_cast<int64_t>(ids.size()) - 1;  // the logits after this position choose answer[0]
  ids.insert(ids.end(), answer.begin(), answer.end());
  const int64_t n_vocab = engine.model().config.n_vocab;
  bool right = true;
  session.clear();
  FTH_RETURN_IF_ERROR(session.prefill_all(ids, [&](int64_t first_pos, int64_t n_rows, const float* values) -> fth::Result<> {
    for (int64_t r = 0; r < n_rows; ++r) {
      const int64_t i = first_pos + r - first;
      if (i < 0 || i >= static_cast<int64_t>(answer.size())) continue;
      right = right && arg_max(values + r * n_vocab, n_vocab) == answer[static_cast<size_t>(i)];
    }
    return {};
  }));
  return right;
}

// Scores per task with one instruction set ("" = the best). Prints what it missed.
fth::Result<std::map<std::string, Score>> run(const Options& o, const std::string& isa, const std::vector<Row>& rows,
                                              const std::set<int>& missed) {
  fth::EngineOptions options;
  options.model = o.model;
  options.cpu_only = o.device.empty();
  options.kv.dtype = o.kv == "f32" ? fth::DType::f32 : fth::DType::f16;
  options.registry.builtin_only = o.device.empty();
  options.registry.named_only = true;
  if (!o.plugin.empty()) options.registry.plugin_paths = {o.plugin};
  options.device = o.device;
  options.registry.n_threads = o.threads;
  if (!isa.empty()) options.registry.cpu_options = "isa=" + isa;
  FTH_ASSIGN_OR_RETURN(auto engine, fth::Engine::open(options));
  if (!o.device.empty()) {
    const auto& placements = engine->plan().placements;
    for (const fth::SegmentKind kind : {fth::SegmentKind::attention, fth::SegmentKind::head})
      if (std::any_of(placements.begin(), placements.end(), [&](const fth::Placement& p) { return p.kind == kind && p.device == 0; }))
        return fth::fail(fth::Code::unavailable, o.device + " refuses a segment that it is here to run");
  }
  FTH_ASSIGN_OR_RETURN(auto session, engine->new_session());
  std::map<std::string, Score> scores;
  for (const Row& row : rows) {
    FTH_ASSIGN_OR_RETURN(const bool right, answers(*engine, session, row));
    Score& s = scores[row.task];
    const bool exact = !missed.contains(row.line);
    ++s.rows;
    s.right += right;
    s.exact += exact;
    if (right != exact)
      std::printf("  line %d (%s): %s, exact arithmetic is %s\n", row.line, row.task.c_str(), right ? "right" : "wrong",
                  exact ? "right" : "wrong");
  }
  return scores;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  const std::vector<Row> rows = read_rows(o.eval, o.every);
  if (rows.empty()) usage("no rows in " + o.eval);
  const std::set<int> missed = read_missed(o.missed);
  if (o.plugin.empty() != o.device.empty()) usage("--plugin and --device go together");

  std::vector<std::string> isas{o.isa};
  if (o.isa == "all") {
    isas.clear();
    const fth::cpu::KernelChoice* choices = nullptr;
    const size_t n = fth::cpu::kernel_choices(&choices);
    for (size_t i = 0; i < n; ++i) {
      if (choices[i].refusal == nullptr) isas.emplace_back(choices[i].table->name);
    }
  }

  bool good = true;
  std::optional<int> first_total;
  for (const std::string& isa : isas) {
    const auto begin = std::chrono::steady_clock::now();
    const auto scores = run(o, isa, rows, missed);
    // No driver for the plugin: "no device named ..." is a reason to skip, with the devices that there are.
    if (!scores && !o.device.empty() && scores.error().code == fth::Code::invalid_argument) {
      std::printf("skipped: %s\n", scores.error().message.c_str());
      return 77;
    }
    if (!scores) {
      std::fprintf(stderr, "%s: %s\n", isa.c_str(), scores.error().message.c_str());
      return 1;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    Score total;
    for (const auto& [task, s] : *scores) {
      const bool ok = s.right >= s.exact - o.loss;
      std::printf("%-11s %3d of %3d right (exact arithmetic: %d)%s\n", task.c_str(), s.right, s.rows, s.exact, ok ? "" : "  FAILED");
      good = good && ok;
      total.rows += s.rows;
      total.right += s.right;
    }
    std::printf("%s: %d of %d right in %.1f s\n\n",
                !o.device.empty() ? o.device.c_str()
                : isa.empty()     ? "best kernels"
                                  : isa.c_str(),
                total.right, total.rows, seconds);
    if (!first_total) first_total = total.right;
    if (std::abs(total.right - *first_total) > 2) {
      std::printf("%s: %d right, %s: %d; instruction sets may differ by 2 rows\n", isa.c_str(), total.right, isas[0].c_str(), *first_total);
      good = false;
    }
  }
  return good ? 0 : 1;
}
