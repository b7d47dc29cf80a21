// Tokens to a stream of valid UTF-8 that ends before a stop string; see tokenizer.h.

#include <algorithm>

#include "core/text/tokenizer.h"
#include "core/text/utf8.h"

namespace fth {
namespace {

// Moves the characters of `bytes` to `text`; what can never be one becomes U+FFFD. An unfinished character stays, unless nothing follows.
void take_characters(std::string& bytes, std::string& text, bool last) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.kind == Utf8::cut && !last) break;
    text += step.kind == Utf8::character ? rest.substr(0, step.bytes) : kReplacement;
    rest.remove_prefix(step.bytes);
  }
  bytes.erase(0, bytes.size() - rest.size());
}

// The length of the longest end of `text` with which `stop` begins, short of all of it.
size_t overlap(std::string_view text, std::string_view stop) {
  for (size_t n = std::min(text.size(), stop.size() - 1); n > 0; --n)
    if (text.substr(text.size() - n) == stop.substr(0, n)) return n;
  return 0;
}

}  // namespace

Detokenizer::Detokenizer(const Tokenizer& tokenizer, std::vector<std::string> stops) : tokenizer_(&tokenizer) {
  for (std::string& stop : stops) {
    std::string text;  // with U+FFFD where the output would have it; so a stop string begins where a character begins
    take_characters(stop, text, true);
    if (!text.empty()) stops_.push_back(std::move(text));
  }
}

std::string Detokenizer::push(int32_t id) {
  if (stopped_) return {};
  bytes_ += tokenizer_->piece(id);
  return release(false);
}

std::string Detokenizer::finish() { return stopped_ ? std::string() : release(true); }

// The stop string that is complete first counts, and of those that are complete at once the one that begins first: so the text does not
// depend on how it is cut into tokens.
std::string Detokenizer::release(bool last) {
  take_characters(bytes_, held_, last);
  size_t begin = 0, end = std::string::npos, keep = 0;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at != std::string::npos && (at + stop.size() < end || (at + stop.size() == end && at < begin))) begin = at, end = at + stop.size();
    if (!last) keep = std::max(keep, overlap(held_, stop));
  }
  if (end != std::string::npos) {
    stopped_ = true;
    bytes_.clear();
    std::string text = held_.substr(0, begin);
    held_.clear();
    return text;
  }
  std::string text = held_.substr(0, held_.size() - keep);
  held_.erase(0, text.size());
  return text;
}

}  // namespace fth
