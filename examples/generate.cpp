// The C++ API in one page: open a model, render a question with its chat template, generate an answer.
// Usage: example_generate MODEL.gguf "What is 38 + 47?"
#include <cstdio>

#include "core/engine/engine.h"
#include "core/text/sampler.h"

namespace {

fth::Result<> generate(const char* model, const char* question) {
  fth::EngineOptions options;
  options.model = model;
  FTH_ASSIGN_OR_RETURN(const auto engine, fth::Engine::open(options));
  const fth::Tokenizer& tokenizer = engine->tokenizer();
  fth::TemplateInput input;
  input.messages = {{"user", question}};
  FTH_ASSIGN_OR_RETURN(const std::string prompt, engine->chat_template().render(input));

  FTH_ASSIGN_OR_RETURN(fth::Session session, engine->new_session());
  FTH_ASSIGN_OR_RETURN(fth::Sampler sampler, fth::Sampler::make(fth::SamplerOptions()));  // temperature 0: greedy
  fth::Detokenizer text(tokenizer, {});
  FTH_ASSIGN_OR_RETURN(auto logits, session.prefill(tokenizer.encode(prompt, fth::SpecialTokens::parse)));
  while (session.n_past() < session.n_ctx()) {
    FTH_ASSIGN_OR_RETURN(const int32_t id, sampler.sample(logits));
    if (tokenizer.is_end(id)) break;
    std::fputs(text.push(id).c_str(), stdout);
    std::fflush(stdout);
    FTH_ASSIGN_OR_RETURN(logits, session.decode(id));
  }
  std::puts(text.finish().c_str());
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: %s MODEL.gguf QUESTION\n", argv[0]), 2;
  const auto done = generate(argv[1], argv[2]);
  if (!done) std::fprintf(stderr, "%s\n", done.error().message.c_str());
  return done ? 0 : 1;
}
