// Prefill, then sample and decode until something stops it.

#include "tools/cli/generate.h"

#include <chrono>
#include <ctime>

#include "tools/cli/interrupt.h"
#include "tools/cli/output.h"
#include "tools/cli/progress.h"

namespace fth::cli {

std::string_view name(Stop stop) {
  switch (stop) {
    case Stop::end_token: return "end token";
    case Stop::stop_string: return "stop string";
    case Stop::length: return "length";
    case Stop::context: return "context";
    case Stop::interrupted: return "interrupted";
  }
  return "unknown";
}

Result<Generated> generate(const Engine& engine, Session& session, Sampler& sampler, std::span<const int32_t> prompt,
                           const GenerateOptions& options, bool show_progress) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  Generated out;
  std::span<const float> logits;
  session.set_wanted_logits(sampler.wanted_logits());
  {
    Progress bar("reading the prompt", Progress::Unit::tokens, show_progress);
    FTH_ASSIGN_OR_RETURN(logits, session.prefill(prompt, [&](int64_t done, int64_t total) {
      bar.update(static_cast<uint64_t>(done), static_cast<uint64_t>(total));
      return !interrupted();
    }));
  }
  const Tokenizer& tokenizer = engine.tokenizer();
  Detokenizer detokenizer(tokenizer, options.stops);
  const auto emit = [&](const std::string& piece) -> Result<> {
    out.text += piece;
    if (piece.empty() || !options.on_text) return {};
    return options.on_text(piece);
  };
  while (true) {
    if (options.n_predict >= 0 && static_cast<int64_t>(out.ids.size()) >= options.n_predict) {
      out.stop = Stop::length;
      break;
    }
    int32_t id = 0;
    {
      const Scope scope(options.recorder, EventKind::sample, "sample");
      FTH_ASSIGN_OR_RETURN(id, sampler.sample(logits));
      sampler.accept(id);
    }
    if (out.ids.empty()) out.seconds_to_first = std::chrono::duration<double>(Clock::now() - start).count();
    if (tokenizer.is_end(id) && !options.ignore_end) {
      out.stop = Stop::end_token;
      break;
    }
    out.ids.push_back(id);
    if (options.on_id) FTH_RETURN_IF_ERROR(options.on_id(id));
    FTH_RETURN_IF_ERROR(emit(detokenizer.push(id)));
    if (detokenizer.stopped()) {
      out.stop = Stop::stop_string;
      break;
    }
    if (interrupted()) {
      out.stop = Stop::interrupted;
      break;
    }
    if (session.n_past() >= session.n_ctx()) {
      out.stop = Stop::context;
      break;
    }
    // The last token that was asked for needs no logits after it.
    if (options.n_predict >= 0 && static_cast<int64_t>(out.ids.size()) >= options.n_predict) continue;
    FTH_ASSIGN_OR_RETURN(logits, session.decode(id));
  }
  FTH_RETURN_IF_ERROR(emit(detokenizer.finish()));
  return out;
}

Result<std::vector<int32_t>> render_ids(const Engine& engine, const std::vector<Message>& messages) {
  const Tokenizer& tokenizer = engine.tokenizer();
  TemplateInput input;
  input.messages = messages;
  if (tokenizer.bos() >= 0) input.bos_token = tokenizer.piece(tokenizer.bos(), true);
  if (tokenizer.eos() >= 0) input.eos_token = tokenizer.piece(tokenizer.eos(), true);
  const std::time_t now = std::time(nullptr);
  std::tm calendar{};
  if (localtime_r(&now, &calendar) != nullptr) {
    char date[16];
    if (std::strftime(date, sizeof date, "%Y-%m-%d", &calendar) > 0) input.date = date;
  }
  FTH_ASSIGN_OR_RETURN(const std::string rendered, engine.chat_template().render(input));
  return text_ids(engine, rendered);
}

std::vector<int32_t> text_ids(const Engine& engine, std::string_view text) {
  const Tokenizer& tokenizer = engine.tokenizer();
  std::vector<int32_t> ids = tokenizer.encode(text, SpecialTokens::parse);
  // Templates often write BOS themselves; twice would be another prompt than the model was trained on.
  if (tokenizer.adds_bos() && tokenizer.bos() >= 0 && (ids.empty() || ids.front() != tokenizer.bos()))
    ids.insert(ids.begin(), tokenizer.bos());
  return ids;
}

// splitmix64: the same ids on every machine.
std::vector<int32_t> random_ids(size_t n, int64_t n_vocab) {
  std::vector<int32_t> ids(n);
  uint64_t state = 0;
  for (int32_t& id : ids) {
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    id = static_cast<int32_t>((z ^ (z >> 31)) % static_cast<uint64_t>(n_vocab));
  }
  return ids;
}

}  // namespace fth::cli
