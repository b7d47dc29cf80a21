// Fuzzes text, not files: any bytes through every pre-tokenizer, back again, and through the detokenizer with a stop string from the bytes.
// A file's vocabulary is the GGUF fuzzer's matter and vocabulary_test's.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/tokenizer.h"
#include "core/text/utf8.h"
#include "tests/text/vocab.h"

namespace {

void require(bool condition, const char* what, std::string_view family) {
  if (condition) return;
  std::fprintf(stderr, "%s: %.*s\n", what, static_cast<int>(family.size()), family.data());
  std::abort();
}

std::vector<fth::Tokenizer> load_all() {
  std::vector<fth::Tokenizer> all;
  for (const std::string_view family : {"qwen2", "llama-bpe", "smollm", "gpt-2"}) {
    auto tokenizer = fth::test::load(fth::test::Vocab{}, family);
    require(tokenizer.has_value(), "cannot load", family);
    all.push_back(std::move(*tokenizer));
  }
  return all;
}

std::string replaced(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    const fth::Utf8Step step = fth::utf8_step(bytes);
    text += step.kind == fth::Utf8::character ? bytes.substr(0, step.bytes) : fth::kReplacement;
    bytes.remove_prefix(step.bytes);
  }
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  static const std::vector<fth::Tokenizer> kTokenizers = load_all();
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const std::string stop(text.substr(size / 2, std::min<size_t>(3, size - size / 2)));
  const std::string stop_text = replaced(stop);
  for (const fth::Tokenizer& t : kTokenizers) {
    for (const fth::SpecialTokens special : {fth::SpecialTokens::parse, fth::SpecialTokens::as_text}) {
      const std::vector<int32_t> ids = t.encode(text, special);
      require(t.decode(ids, true) == text, "decode does not undo encode", t.pre_tokenizer());
      // Control tokens are silent in the detokenizer.
      const std::string whole = replaced(t.decode(ids));
      fth::Detokenizer plain(t, {}), stopping(t, {stop, "\n\n"});
      std::string out, until;
      for (const int32_t id : ids) {
        out += plain.push(id);
        until += stopping.push(id);
      }
      out += plain.finish();
      until += stopping.finish();
      require(out == whole, "the detokenizer's text differs", t.pre_tokenizer());
      require(whole.starts_with(until) && until.find("\n\n") == std::string::npos, "stop strings", t.pre_tokenizer());
      require(stop_text.empty() || until.find(stop_text) == std::string::npos, "a stop string came out", t.pre_tokenizer());
      require(stopping.stopped() || until == whole, "text was lost", t.pre_tokenizer());
    }
  }
  return 0;
}
