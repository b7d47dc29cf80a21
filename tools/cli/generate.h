#pragma once
// From a prompt to a stream of text: the loop that run and chat share.

#include <functional>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "core/text/sampler.h"

namespace fth::cli {

enum class Stop { end_token, stop_string, length, context, interrupted };
std::string_view name(Stop stop);  // "end token"

struct GenerateOptions {
  int64_t n_predict = -1;  // -1: until something else stops it
  std::vector<std::string> stops;
  bool ignore_end = false;  // end tokens do not stop
  // New text, and the id it came with; ids come before their text when text waits for the rest of a character.
  std::function<Result<>(int32_t id)> on_id;
  std::function<Result<>(std::string_view text)> on_text;
  Recorder* recorder = nullptr;  // where sampling is noted; null: nowhere
};

struct Generated {
  std::vector<int32_t> ids;  // without the end token
  std::string text;
  Stop stop = Stop::length;
  double seconds_to_first = 0;  // from the start of prefill to the first token
};

// Prefills `prompt` (all of it is new to the session) and decodes. Watches for interrupts: during prefill that is cancelled, later it is Stop::interrupted.
Result<Generated> generate(const Engine& engine, Session& session, Sampler& sampler, std::span<const int32_t> prompt,
                           const GenerateOptions& options, bool show_progress);

// The conversation through the model's template, with BOS where the vocabulary wants it.
Result<std::vector<int32_t>> render_ids(const Engine& engine, const std::vector<Message>& messages);
// Plain text, with BOS where the vocabulary wants it. Control tokens written out in it are control tokens.
std::vector<int32_t> text_ids(const Engine& engine, std::string_view text);

// Pseudo-random ids below n_vocab, the same on every machine.
std::vector<int32_t> random_ids(size_t n, int64_t n_vocab);

}  // namespace fth::cli
