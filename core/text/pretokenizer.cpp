// Pre-tokenizers as PCRE2 patterns; see pretokenizer.h.
//
// The patterns are Hugging Face's, rewritten so that PCRE2 gives the same pieces in linear time:
// - every quantifier that need not give back is possessive, and \s*[\r\n]+ is a repetition of [blank]*[\r\n]+, which never backtracks;
// - \s is spelled out, because PCRE2's own \s has U+180E besides;
// - \p{L} and \p{N} name the characters of Unicode 15 and 16 besides, because PCRE2 10.42 knows Unicode 14; for a later one they are no news.
// Hugging Face's Qwen2 normalises to NFC first. Here text is taken as it is: decode(encode(s)) is s.

#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/text/pretokenizer.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "core/model/message.h"
#include "core/text/utf8.h"

namespace fth {
namespace {

// For use inside a character class.
constexpr std::string_view kLetter =
    R"(\p{L}\x{1C89}-\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D4A}-\x{10D65}\x{10D6F}-\x{10D85})"
    R"(\x{10EC2}-\x{10EC4}\x{1123F}-\x{11240}\x{11380}-\x{11389}\x{1138B}\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1})"
    R"(\x{113D3}\x{11BC0}-\x{11BE0}\x{11F02}\x{11F04}-\x{11F10}\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446})"
    R"(\x{13460}-\x{143FA}\x{16100}-\x{1611D}\x{16D40}-\x{16D6C}\x{18CFF}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A})"
    R"(\x{1E030}-\x{1E06D}\x{1E4D0}-\x{1E4EB}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2B739}\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})";
constexpr std::string_view kNumber =
    R"(\p{N}\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59}\x{16130}-\x{16139}\x{16D70}-\x{16D79})"
    R"(\x{1CCF0}-\x{1CCF9}\x{1D2C0}-\x{1D2D3}\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA})";
// Number characters that Unicode 17 adds: for the step of SmolLM's that asks Rust's library, which is newer than Hugging Face's regular expressions.
constexpr std::string_view kLaterNumber = R"(\x{11DE0}-\x{11DE9}\x{16FF4}-\x{16FF6})";
constexpr std::string_view kSpace = R"(\t-\r\x{85}\p{Z})";
constexpr std::string_view kBlank = R"(\t\x0B\x0C\x{85}\p{Z})";  // space, but for \r and \n

// What the patterns below write for the sets above.
constexpr std::array<std::pair<std::string_view, std::string_view>, 5> kSets{
    {{"<L>", kLetter}, {"<N>", kNumber}, {"<n>", kLaterNumber}, {"<S>", kSpace}, {"<B>", kBlank}}};

constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n<L><N>]?+[<L>]++|[<N>]| ?+[^<S><L><N>]++[\r\n]*+|(?:[<B>]*+[\r\n]++)++|[<S>]+(?![^<S>])|[<S>]++)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n<L><N>]?+[<L>]++|[<N>]{1,3}+| ?+[^<S><L><N>]++[\r\n]*+|(?:[<B>]*+[\r\n]++)++|[<S>]+(?![^<S>])|[<S>]++)";
constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?+[<L>]++| ?+[<N>]++| ?+[^<S><L><N>]++|[<S>]+(?![^<S>])|[<S>]++)";
// Two steps in one: first every number character by itself, then GPT-2's pattern on what lies between. Hence white space that ends at a
// number is white space that ends.
constexpr std::string_view kSmollm = R"([<N><n>]|'s|'t|'re|'ve|'m|'ll|'d| ?+[<L>]++| ?+[^<S><L><N><n>]++|[<S>]+(?![^<S><N><n>])|[<S>]++)";

struct Family {
  std::string_view name, pattern;
  bool whole_piece_first, adds_bos;
};
constexpr std::array kFamilies{
    Family{"qwen2", kQwen2, false, false}, Family{"deepseek-r1-qwen", kQwen2, false, false}, Family{"llama-bpe", kLlama3, true, true},
    Family{"llama3", kLlama3, true, true}, Family{"llama-v3", kLlama3, true, true},          Family{"smollm", kSmollm, false, false},
    Family{"gpt-2", kGpt2, false, false},
};

std::string expand(std::string_view pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const std::string_view name = pattern.substr(i, 3);
    const auto set = std::find_if(kSets.begin(), kSets.end(), [&](const auto& s) { return s.first == name; });
    if (set == kSets.end()) {
      out += pattern[i];
    } else {
      out += set->second;
      i += name.size() - 1;
    }
  }
  return out;
}

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

struct PreTokenizer::Impl {
  const Family* family = nullptr;
  std::unique_ptr<pcre2_code, FreeCode> code;
};

PreTokenizer::PreTokenizer(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
PreTokenizer::PreTokenizer(PreTokenizer&&) noexcept = default;
PreTokenizer& PreTokenizer::operator=(PreTokenizer&&) noexcept = default;
PreTokenizer::~PreTokenizer() = default;

std::string_view PreTokenizer::name() const { return impl_->family->name; }
bool PreTokenizer::whole_piece_first() const { return impl_->family->whole_piece_first; }
bool PreTokenizer::adds_bos_by_default() const { return impl_->family->adds_bos; }

Result<PreTokenizer> PreTokenizer::make(std::string_view name) {
  const auto family = std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) { return f.name == name; });
  if (family == kFamilies.end()) {
    std::string known;
    for (const Family& f : kFamilies) known.append(known.empty() ? "" : ", ").append(f.name);
    return fail(Code::unimplemented, message("tokenizer.ggml.pre is ", in_quotes(name), "; known pre-tokenizers: ", known));
  }
  const std::string pattern = expand(family->pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto impl = std::make_unique<Impl>();
  impl->family = &*family;
  impl->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED,
                                 &error, &offset, nullptr));
  if (!impl->code) return fail(Code::internal, message("pre-tokenizer ", family->name, ": PCRE2 error ", error, " at ", offset));
  // Without JIT (none for the processor, or memory may not be made executable) PCRE2 interprets: the same pieces, several times slower.
  (void)pcre2_jit_compile(impl->code.get(), PCRE2_JIT_COMPLETE);
  return PreTokenizer(std::move(impl));
}

void PreTokenizer::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  size_t begin = 0;  // of the well-formed run that ends at `at`
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text.substr(at, 4));
    if (step.kind == Utf8::character) {
      at += step.bytes;
      continue;
    }
    split_valid(text.substr(begin, at - begin), pieces);
    for (const size_t end = at + step.bytes; at < end; ++at) pieces.push_back(text.substr(at, 1));
    begin = at;
  }
  split_valid(text.substr(begin), pieces);
}

void PreTokenizer::split_valid(std::string_view text, std::vector<std::string_view>& pieces) const {
  if (text.empty()) return;
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeContext> context(pcre2_match_context_create(nullptr));
  // The patterns need a few steps a character. Were one to need more, or memory to run out, the rest would be one piece: other tokens,
  // but the same text, in bounded time.
  if (context) pcre2_set_match_limit(context.get(), static_cast<uint32_t>(std::min<size_t>(1000 + 8 * text.size(), 0xFFFFFFFFu)));
  for (size_t at = 0; at < text.size();) {
    const int found = match ? pcre2_match(impl_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK,
                                          match.get(), context.get())
                            : PCRE2_ERROR_NOMEMORY;
    size_t end = found > 0 ? pcre2_get_ovector_pointer(match.get())[1] : text.size();
    if (end <= at) end = text.size();
    pieces.push_back(text.substr(at, end - at));
    at = end;
  }
}

}  // namespace fth
