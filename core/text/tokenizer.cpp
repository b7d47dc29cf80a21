// Byte-level BPE from a GGUF's vocabulary: special tokens, pieces, merges, and back; see tokenizer.h.

#include "core/text/tokenizer.h"

#include <algorithm>
#include <array>

#include "core/model/gguf.h"
#include "core/model/message.h"
#include "core/text/bpe.h"
#include "core/text/byte_alphabet.h"
#include "core/text/pretokenizer.h"
#include "core/text/utf8.h"
#include "core/text/vocabulary.h"

namespace fth {
namespace {

// Control tokens that end an answer in the families we read, whatever the file's ids say: many files name only one of them.
constexpr std::array<std::string_view, 7> kEndTexts{"<|im_end|>",      "<|endoftext|>", "<|eot_id|>", "<|eom_id|>",
                                                    "<|end_of_text|>", "</s>",          "<|end|>"};

Result<std::string_view> required_string(const Gguf& file, std::string_view key) {
  if (file.find(key) == nullptr) return fail(Code::data_loss, message(key, " is missing"));
  return file.string(key);
}

// tokenizer.ggml.<which>_token_id, or -1 when there is none.
Result<int32_t> special_id(const Gguf& file, std::string_view which, const Vocabulary& vocabulary) {
  const std::string key = message("tokenizer.ggml.", which, "_token_id");
  if (file.find(key) == nullptr) return -1;
  FTH_ASSIGN_OR_RETURN(const int64_t id, file.integer(key));
  if (id < 0 || id >= vocabulary.size())
    return fail(Code::data_loss, message(key, " is ", id, "; the vocabulary has ", vocabulary.size(), " tokens"));
  return static_cast<int32_t>(id);
}

std::vector<int32_t> ids_of_types(const Vocabulary& vocabulary, std::initializer_list<TokenType> types) {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < vocabulary.size(); ++id)
    if (std::find(types.begin(), types.end(), vocabulary.type(id)) != types.end()) ids.push_back(id);
  return ids;
}

bool is_hidden(TokenType type) { return type == TokenType::control || type == TokenType::unknown; }

}  // namespace

struct Tokenizer::Impl {
  Impl(Vocabulary v, MergeTable m, PreTokenizer p)
      : vocabulary(std::move(v)),
        merges(std::move(m)),
        pre(std::move(p)),
        specials(vocabulary, ids_of_types(vocabulary, {TokenType::control, TokenType::unknown, TokenType::user_defined})),
        user_defined(vocabulary, ids_of_types(vocabulary, {TokenType::user_defined})) {}

  Result<> read_ids(const Gguf& file);
  Result<> read_bytes();
  void encode_plain(std::string_view text, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary;
  MergeTable merges;
  PreTokenizer pre;
  // With SpecialTokens::parse, control and user-defined tokens are found in the text; with as_text, user-defined ones alone: they are words
  // that an author added, not instructions. Hugging Face's encode_special_tokens and llama.cpp draw the same line.
  SpecialTokenIndex specials, user_defined;
  std::array<int32_t, 256> byte_ids{};
  std::vector<int32_t> ends;
  int32_t bos = -1, eos = -1, unknown = -1;
  bool adds_bos = false;
};

Result<> Tokenizer::Impl::read_ids(const Gguf& file) {
  FTH_ASSIGN_OR_RETURN(bos, special_id(file, "bos", vocabulary));
  FTH_ASSIGN_OR_RETURN(eos, special_id(file, "eos", vocabulary));
  FTH_ASSIGN_OR_RETURN(unknown, special_id(file, "unknown", vocabulary));
  FTH_ASSIGN_OR_RETURN(const int32_t eot, special_id(file, "eot", vocabulary));
  FTH_ASSIGN_OR_RETURN(const int32_t eom, special_id(file, "eom", vocabulary));
  FTH_RETURN_IF_ERROR(special_id(file, "padding", vocabulary));
  ends = {eos, eot, eom};
  for (const std::string_view text : kEndTexts)
    if (const int32_t id = vocabulary.find(text); id >= 0 && vocabulary.type(id) == TokenType::control) ends.push_back(id);
  std::erase(ends, -1);

  constexpr std::string_view kAddBos = "tokenizer.ggml.add_bos_token";
  if (file.find(kAddBos) == nullptr) {
    adds_bos = pre.adds_bos_by_default() && bos >= 0;
    return {};
  }
  FTH_ASSIGN_OR_RETURN(adds_bos, file.boolean(kAddBos));
  if (adds_bos && bos < 0) return fail(Code::data_loss, message(kAddBos, " is true, but there is no tokenizer.ggml.bos_token_id"));
  return {};
}

// SmolLM2's vocabulary lacks 21 bytes, which UTF-8 text hardly ever has; its unknown token takes their place.
Result<> Tokenizer::Impl::read_bytes() {
  for (size_t byte = 0; byte < 256; ++byte) {
    byte_ids[byte] = vocabulary.byte_token(static_cast<uint8_t>(byte));
    if (byte_ids[byte] < 0) byte_ids[byte] = unknown;
    if (byte_ids[byte] < 0)
      return fail(Code::data_loss, message("tokenizer.ggml.tokens: no token stands for byte ", byte,
                                           ", and there is no tokenizer.ggml.unknown_token_id to take its place"));
  }
  return {};
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::from_gguf(const Gguf& file) {
  FTH_ASSIGN_OR_RETURN(const std::string_view model, required_string(file, "tokenizer.ggml.model"));
  if (model != "gpt2") return fail(Code::unimplemented, message("tokenizer.ggml.model is ", in_quotes(model), "; known models: gpt2"));
  FTH_ASSIGN_OR_RETURN(const std::string_view pre_name, required_string(file, "tokenizer.ggml.pre"));
  FTH_ASSIGN_OR_RETURN(PreTokenizer pre, PreTokenizer::make(pre_name));
  FTH_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::read(file));
  FTH_ASSIGN_OR_RETURN(MergeTable merges, MergeTable::read(file, vocabulary));
  auto impl = std::make_unique<Impl>(std::move(vocabulary), std::move(merges), std::move(pre));
  FTH_RETURN_IF_ERROR(impl->read_ids(file));
  FTH_RETURN_IF_ERROR(impl->read_bytes());
  return Tokenizer(std::move(impl));
}

void Tokenizer::Impl::encode_plain(std::string_view text, std::vector<int32_t>& ids) const {
  std::vector<std::string_view> pieces;
  pre.split(text, pieces);
  std::string as_token;
  for (std::string_view piece : pieces) {
    if (pre.whole_piece_first()) {
      as_token.clear();
      for (const char c : piece) append_as_alphabet(as_token, static_cast<uint8_t>(c));
      if (const int32_t id = vocabulary.find(as_token); id >= 0 && vocabulary.type(id) == TokenType::normal) {
        ids.push_back(id);
        continue;
      }
    }
    for (; !piece.empty(); piece.remove_prefix(std::min(piece.size(), MergeTable::kLongest))) {
      const size_t first = ids.size();
      for (const char c : piece.substr(0, MergeTable::kLongest)) ids.push_back(byte_ids[static_cast<uint8_t>(c)]);
      merges.apply(ids, first);
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::vector<int32_t> ids;
  const SpecialTokenIndex& index = special == SpecialTokens::parse ? impl_->specials : impl_->user_defined;
  for (size_t at = 0; at < text.size();) {
    const SpecialTokenIndex::Match match = index.next(impl_->vocabulary, text, at);
    impl_->encode_plain(text.substr(at, match.begin - at), ids);
    if (match.bytes > 0) ids.push_back(match.id);
    at = match.begin + match.bytes;
  }
  return ids;
}

std::string Tokenizer::piece(int32_t id, bool control) const {
  const Vocabulary& vocabulary = impl_->vocabulary;
  if (!vocabulary.contains(id)) return {};
  const TokenType type = vocabulary.type(id);
  const std::string_view text = vocabulary.text(id);
  if (is_hidden(type)) return control ? std::string(text) : std::string();
  if (type == TokenType::user_defined) return std::string(text);
  if (type == TokenType::byte) return std::string(1, static_cast<char>(byte_value(text)));
  return from_alphabet(text);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool control) const {
  std::string out;
  for (const int32_t id : ids) out += piece(id, control);
  return out;
}

int32_t Tokenizer::size() const { return impl_->vocabulary.size(); }
int32_t Tokenizer::bos() const { return impl_->bos; }
int32_t Tokenizer::eos() const { return impl_->eos; }
bool Tokenizer::adds_bos() const { return impl_->adds_bos; }
bool Tokenizer::is_end(int32_t id) const { return std::find(impl_->ends.begin(), impl_->ends.end(), id) != impl_->ends.end(); }
int32_t Tokenizer::find(std::string_view token) const { return impl_->vocabulary.find(token); }
std::string_view Tokenizer::pre_tokenizer() const { return impl_->pre.name(); }

}  // namespace fth
