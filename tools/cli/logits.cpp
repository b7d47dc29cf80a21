// forethought logits: the raw answers for a token sequence, and values from inside the pass, as .npy files.

#include <fnmatch.h>

#include <map>
#include <optional>
#include <set>

#include "tools/cli/command.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/npy.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Writes the logits of every position of a token sequence as float32 [positions, vocabulary] (.npy), for comparisons with other "
    "programs.\n"
    "--dump adds values from inside the pass, one file each, named OUT.NAME.npy; names are llama.cpp's, such as l_out-3 or "
    "ffn_moe_topk-*.\n\n"
    "  forethought logits -m model.gguf --tokens ids.txt --out logits.npy\n"
    "  forethought logits -m model.gguf --tokens ids.txt --out logits.npy --last 1 --dump 'embd,l_out-*'\n";

struct LogitsFlags : CommonFlags {
  EngineFlags engine;
  std::string tokens, out;
  std::vector<std::string> dumps;
  int64_t last = 0;
};

void describe(LogitsFlags& f, po::options_description& options) {
  options.add_options()                                                                                   //
      ("tokens", po::value(&f.tokens)->value_name("FILE"), "the token ids: every run of digits in FILE")  //
      ("out", po::value(&f.out)->value_name("FILE"), "where the logits go")                               //
      ("last", po::value(&f.last)->value_name("N"), "only the last N positions (default: all)")           //
      ("dump", po::value(&f.dumps)->value_name("NAME,..."), "values inside the pass; * matches any characters (may be repeated)");
  f.engine.start_on_cpu = "off";  // what is measured does not depend on when a device is ready
  add_engine(f.engine, options);
  add_common(f, options);
}

std::vector<std::string> split(const std::vector<std::string>& lists) {
  std::vector<std::string> out;
  for (const std::string& list : lists) {
    for (size_t begin = 0; begin <= list.size();) {
      const size_t end = std::min(list.find(',', begin), list.size());
      if (end > begin) out.push_back(list.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return out;
}

// Keeps the rows from first_kept on, of values named by a pattern; a file for each name, made when the name first comes.
class Dumps {
 public:
  Dumps(std::vector<std::string> patterns, std::string stem, int64_t first_kept)
      : patterns_(std::move(patterns)), stem_(std::move(stem)), first_kept_(first_kept) {}

  void take(std::string_view name, int64_t first_pos, int64_t rows, int64_t cols, const float* values) {
    if (error_) return;
    const std::string key(name);
    seen_.insert(key);
    bool wanted = false;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (::fnmatch(patterns_[i].c_str(), key.c_str(), 0) != 0) continue;
      wanted = true;
      matched_.insert(i);
    }
    const int64_t skip = std::clamp<int64_t>(first_kept_ - first_pos, 0, rows);
    if (!wanted || skip == rows) return;
    auto it = files_.find(key);
    if (it == files_.end()) {
      auto file = NpyWriter::create(stem_ + "." + key + ".npy", cols);
      if (!file) {
        error_ = file.error();
        return;
      }
      it = files_.emplace(key, std::move(*file)).first;
    }
    const auto written = it->second.append({values + skip * cols, static_cast<size_t>((rows - skip) * cols)});
    if (!written) error_ = written.error();
  }

  Result<> finish() {
    if (error_) return tl::unexpected<Error>(*error_);
    for (size_t i = 0; i < patterns_.size(); ++i) {
      if (matched_.contains(i)) continue;
      std::string names;
      for (const std::string& name : seen_) names += (names.empty() ? "" : ", ") + name;
      return fail(Code::invalid_argument, "--dump " + patterns_[i] + ": no such value; there are " + printable(names, 2000));
    }
    for (auto& [name, file] : files_) FTH_RETURN_IF_ERROR(file.finish());
    return {};
  }
  size_t files() const { return files_.size(); }

 private:
  std::vector<std::string> patterns_;
  std::string stem_;
  int64_t first_kept_;
  std::map<std::string, NpyWriter> files_;
  std::set<std::string> seen_;
  std::set<size_t> matched_;
  std::optional<Error> error_;  // the first; the pass cannot be stopped from inside
};

Result<int> run(LogitsFlags& f) {
  if (f.tokens.empty() || f.out.empty()) return fail(Code::invalid_argument, "--tokens FILE and --out FILE are needed; see --help");
  if (f.engine.lm_head == "screened")
    return fail(Code::invalid_argument, "--lm-head screened leaves out logits, and `logits` needs all of them: use exact");
  if (f.last < 0) return fail(Code::invalid_argument, text("--last %lld: must be 1 or more", static_cast<long long>(f.last)));
  FTH_ASSIGN_OR_RETURN(const auto ids, read_tokens(f.tokens));
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t first_kept = f.last > 0 ? std::max<int64_t>(0, n - f.last) : 0;
  if (f.engine.ctx == 0 && n > 4096) f.engine.ctx = n;  // past the default context: the file says how long it is
  FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(f.engine, f));
  const int64_t n_vocab = opened.engine->model().config.n_vocab;
  watch_interrupts(SecondPress::ends_the_program);
  FTH_ASSIGN_OR_RETURN(Session session, opened.engine->new_session());
  FTH_ASSIGN_OR_RETURN(NpyWriter logits, NpyWriter::create(f.out, n_vocab));
  Dumps dumps(split(f.dumps), f.out.ends_with(".npy") ? f.out.substr(0, f.out.size() - 4) : f.out, first_kept);
  if (!f.dumps.empty()) {
    session.set_inspect([&dumps](std::string_view name, int64_t first_pos, int64_t rows, int64_t cols, const float* values) {
      dumps.take(name, first_pos, rows, cols, values);
    });
  }
  {
    Progress bar("reading", Progress::Unit::tokens, !f.quiet);
    // What comes before the kept positions needs no logits: it is read as a prompt.
    if (first_kept > 0)
      FTH_RETURN_IF_ERROR(session.prefill(std::span(ids).first(static_cast<size_t>(first_kept)), [&](int64_t done, int64_t) {
        bar.update(static_cast<uint64_t>(done), static_cast<uint64_t>(n));
        return !interrupted();
      }));
    FTH_RETURN_IF_ERROR(session.prefill_all(std::span(ids).subspan(static_cast<size_t>(first_kept)),
                                            [&](int64_t first_pos, int64_t rows, const float* values) -> Result<> {
                                              bar.update(static_cast<uint64_t>(first_pos + rows), static_cast<uint64_t>(n));
                                              if (interrupted()) return fail(Code::cancelled, "interrupted");
                                              return logits.append({values, static_cast<size_t>(rows * n_vocab)});
                                            }));
  }
  FTH_RETURN_IF_ERROR(dumps.finish());
  FTH_RETURN_IF_ERROR(logits.finish());
  if (!f.quiet)
    say(f.out + text(": %lld positions x %lld%s", static_cast<long long>(logits.rows()), static_cast<long long>(n_vocab),
                     dumps.files() > 0 ? text(", and %zu files of values inside the pass", dumps.files()).c_str() : ""));
  return 0;
}

}  // namespace

const Command kLogits =
    make_command<LogitsFlags, describe, run>("logits", "write logits and inner values of a token sequence as .npy", kHelp);

}  // namespace fth::cli
