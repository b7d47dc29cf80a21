// forethought perplexity: how well the model predicts a text.

#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "tools/cli/command.h"
#include "tools/cli/generate.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"
#include "tools/cli/report.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Measures how well the model predicts a text: exp of the mean negative log-likelihood per token, with its standard error.\n"
    "The text is cut into windows of the context length that do not overlap; each starts with an empty context (and BOS where the\n"
    "vocabulary wants it), and every token of a window but its first is scored. No chat template is added; control tokens written in the "
    "text are control tokens.\n\n"
    "  forethought perplexity -m model.gguf -f text.txt\n"
    "  forethought perplexity -m model.gguf -f text.txt --ctx 512 --json\n";

struct PerplexityFlags : CommonFlags {
  EngineFlags engine;
  PromptFlags prompt;
};

void describe(PerplexityFlags& f, po::options_description& options) {
  options.add_options()("prompt,p", po::value(&f.prompt.prompt)->value_name("TEXT"), "the text")  //
      ("file,f", po::value(&f.prompt.file)->value_name("FILE"), "read the text from a file, or from standard input with -");
  f.engine.start_on_cpu = "off";  // what is measured does not depend on when a device is ready
  add_engine(f.engine, options);
  add_common(f, options, "print one JSON object");
}

double log_likelihood(const float* logits, int64_t n_vocab, int32_t id) {
  const float top = *std::max_element(logits, logits + n_vocab);
  double sum = 0;
  for (int64_t i = 0; i < n_vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - static_cast<double>(top));
  return static_cast<double>(logits[id]) - static_cast<double>(top) - std::log(sum);
}

struct Score {
  int64_t n = 0;
  double sum = 0, squares = 0;  // of negative log-likelihoods
  void add(double nll) { ++n, sum += nll, squares += nll * nll; }
  double mean() const { return n > 0 ? sum / static_cast<double>(n) : 0; }
  double error() const {  // standard error of the mean
    if (n < 2) return 0;
    const double variance = std::max(0.0, squares / static_cast<double>(n) - mean() * mean());
    return std::sqrt(variance / static_cast<double>(n - 1));
  }
};

Result<int> run(PerplexityFlags& f) {
  if (!f.prompt.prompt.empty() && !f.prompt.file.empty()) return fail(Code::invalid_argument, "use one of -p and -f");
  if (f.prompt.prompt.empty() && f.prompt.file.empty() && is_terminal(STDIN_FILENO))
    return fail(Code::invalid_argument, "there is no text: give one with -f FILE, -p TEXT or on standard input");
  std::string content = f.prompt.prompt;
  if (content.empty()) {
    FTH_ASSIGN_OR_RETURN(content, read_text(f.prompt.file.empty() ? "-" : f.prompt.file));
  }
  if (f.engine.lm_head == "screened")
    return fail(Code::invalid_argument, "--lm-head screened leaves out logits, and `perplexity` needs all of them: use exact");
  FTH_ASSIGN_OR_RETURN(Opened opened, open_engine(f.engine, f));
  const Tokenizer& tokenizer = opened.engine->tokenizer();
  const std::vector<int32_t> ids = tokenizer.encode(content, SpecialTokens::parse);
  const bool bos = tokenizer.adds_bos() && tokenizer.bos() >= 0;
  const int64_t n_vocab = opened.engine->model().config.n_vocab;
  watch_interrupts(SecondPress::ends_the_program);
  FTH_ASSIGN_OR_RETURN(Session session, opened.engine->new_session());

  Score score;
  int64_t windows = 0;
  const size_t step = static_cast<size_t>(session.n_ctx()) - (bos ? 1 : 0);
  {
    Progress bar("scoring", Progress::Unit::tokens, !f.quiet);
    for (size_t begin = 0; begin < ids.size(); begin += step) {
      std::vector<int32_t> window;
      if (bos) window.push_back(tokenizer.bos());
      window.insert(window.end(), ids.begin() + static_cast<ptrdiff_t>(begin),
                    ids.begin() + static_cast<ptrdiff_t>(std::min(ids.size(), begin + step)));
      if (window.size() < 2) break;
      session.clear();
      ++windows;
      FTH_RETURN_IF_ERROR(session.prefill_all(window, [&](int64_t first_pos, int64_t rows, const float* values) -> Result<> {
        for (int64_t r = 0; r < rows; ++r) {
          const auto next = static_cast<size_t>(first_pos + r + 1);
          if (next >= window.size()) break;
          const double nll = -log_likelihood(values + r * n_vocab, n_vocab, window[next]);
          if (!std::isfinite(nll))
            return fail(Code::data_loss, text("the logits at position %zu are not finite: the weights or a device are broken", next - 1));
          score.add(nll);
        }
        bar.update(begin + static_cast<uint64_t>(first_pos + rows), ids.size());
        if (interrupted()) return fail(Code::cancelled, "interrupted");
        return {};
      }));
    }
  }
  if (score.n == 0) return fail(Code::invalid_argument, text("the text has %zu tokens: nothing to predict", ids.size()));
  const Stats stats = session.stats();
  const double perplexity = std::exp(score.mean()), error = perplexity * score.error();
  const double speed = per_second(static_cast<double>(stats.prompt_tokens), stats.prompt_seconds);
  if (f.json) {
    FTH_RETURN_IF_ERROR(put(json_text(boost::json::object{{"perplexity", perplexity},
                                                          {"error", error},
                                                          {"nll", score.mean()},
                                                          {"scored", score.n},
                                                          {"tokens", ids.size()},
                                                          {"windows", windows},
                                                          {"n_ctx", session.n_ctx()},
                                                          {"tok_s", speed},
                                                          {"stats", stats_json(opened, stats)}})));
    return 0;
  }
  FTH_RETURN_IF_ERROR(put(text("perplexity %.4f \u00b1 %.4f, %lld of %zu tokens scored in %lld windows of %lld, %.1f tok/s\n", perplexity,
                               error, static_cast<long long>(score.n), ids.size(), static_cast<long long>(windows),
                               static_cast<long long>(session.n_ctx()), speed)));
  return 0;
}

}  // namespace

const Command kPerplexity = make_command<PerplexityFlags, describe, run>("perplexity", "measure how well the model predicts a text", kHelp);

}  // namespace fth::cli
