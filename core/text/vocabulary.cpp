// Reads tokenizer.ggml.tokens and tokenizer.ggml.token_type; see vocabulary.h.

#include "core/text/vocabulary.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "core/model/gguf.h"
#include "core/model/message.h"
#include "core/text/byte_alphabet.h"
#include "core/text/hash.h"

namespace fth {
namespace {

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr size_t kLongestSpecial = 1024;  // bounds the search; the longest in known models is below 100

Result<TokenType> read_type(const MetaArray& types, size_t id, std::string_view text) {
  const Result<int64_t> number = types.integer(id);
  if (!number) return tl::unexpected<Error>(Error(number.error()).context(kTypes));
  const int64_t type = *number;
  if (type < 1 || type > 6) return fail(Code::data_loss, message(kTypes, "[", id, "] is ", type, "; types are 1 to 6"));
  const auto result = static_cast<TokenType>(type);
  if (result == TokenType::byte && byte_value(text) < 0)
    return fail(Code::data_loss,
                message(kTokens, "[", id, "] is ", in_quotes(text), " and has type 6 (byte); such tokens are <0x00> to <0xFF>"));
  if (result != TokenType::normal && result != TokenType::unused && text.size() > kLongestSpecial)
    return fail(Code::data_loss,
                message(kTokens, "[", id, "]: a special token of ", text.size(), " bytes; the limit is ", kLongestSpecial));
  return result;
}

}  // namespace

Result<Vocabulary> Vocabulary::read(const Gguf& file) {
  for (const std::string_view key : {kTokens, kTypes})
    if (file.find(key) == nullptr) return fail(Code::data_loss, message(key, " is missing: the file carries no vocabulary"));
  FTH_ASSIGN_OR_RETURN(const MetaArray* tokens, file.array(kTokens));
  FTH_ASSIGN_OR_RETURN(const MetaArray* types, file.array(kTypes));
  const std::vector<std::string_view>& texts = tokens->strings;
  if (tokens->type != MetaType::string) return fail(Code::data_loss, message(kTokens, " is not an array of strings"));
  if (texts.empty()) return fail(Code::data_loss, message(kTokens, " is empty"));
  if (texts.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    return fail(Code::data_loss, message(kTokens, " has ", texts.size(), " entries; ids are 32-bit"));
  if (types->count < texts.size())
    return fail(Code::data_loss, message(kTypes, " has ", types->count, " entries, ", kTokens, " has ", texts.size()));

  Vocabulary result;
  uint64_t bytes = 0;
  for (const std::string_view text : texts) bytes += text.size();
  result.texts_.reserve(bytes);
  result.begins_.reserve(texts.size() + 1);
  result.types_.reserve(texts.size());
  result.begins_.push_back(0);
  for (size_t i = 0; i < texts.size(); ++i) {
    FTH_ASSIGN_OR_RETURN(const TokenType type, read_type(*types, i, texts[i]));
    result.types_.push_back(type);
    result.texts_ += texts[i];
    result.begins_.push_back(result.texts_.size());
  }
  result.index();
  return result;
}

void Vocabulary::index() {
  seed_ = table_seed(texts_.data());
  slots_.resize(std::bit_ceil(types_.size() + types_.size() / 2 + 1));
  const size_t mask = slots_.size() - 1;
  for (int32_t id = 0; id < size(); ++id) {
    const uint64_t h = hash(text(id), seed_);
    const auto tag = static_cast<uint32_t>(h >> 32);
    size_t at = h & mask;
    // An equal text stops the search too: the first of duplicates is the one that is found.
    while (slots_[at].id >= 0 && !(slots_[at].tag == tag && text(slots_[at].id) == text(id))) at = (at + 1) & mask;
    if (slots_[at].id < 0) slots_[at] = {tag, id};
  }
}

int32_t Vocabulary::find(std::string_view wanted) const {
  const size_t mask = slots_.size() - 1;
  const uint64_t h = hash(wanted, seed_);
  const auto tag = static_cast<uint32_t>(h >> 32);
  for (size_t at = h & mask; slots_[at].id >= 0; at = (at + 1) & mask)
    if (slots_[at].tag == tag && text(slots_[at].id) == wanted) return slots_[at].id;
  return -1;
}

int32_t Vocabulary::byte_token(uint8_t byte) const {
  std::string name;
  append_as_alphabet(name, byte);
  if (const int32_t id = find(name); id >= 0) return id;
  for (const char* hex : {"0123456789ABCDEF", "0123456789abcdef"}) {
    const char text[] = {'<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>'};
    const int32_t id = find({text, sizeof text});
    if (id >= 0 && type(id) == TokenType::byte) return id;
  }
  return -1;
}

SpecialTokenIndex::SpecialTokenIndex(const Vocabulary& vocabulary, std::vector<int32_t> ids) : sorted_(std::move(ids)) {
  std::erase_if(sorted_, [&](int32_t id) { return vocabulary.text(id).empty(); });  // would match everywhere and never advance
  std::stable_sort(sorted_.begin(), sorted_.end(), [&](int32_t a, int32_t b) { return vocabulary.text(a) < vocabulary.text(b); });
  for (const int32_t id : sorted_) ++by_first_[static_cast<uint8_t>(vocabulary.text(id)[0]) + 1u];
  for (size_t i = 1; i < by_first_.size(); ++i) by_first_[i] += by_first_[i - 1];
}

SpecialTokenIndex::Match SpecialTokenIndex::longest_at(const Vocabulary& vocabulary, std::string_view text, size_t begin) const {
  const auto first = static_cast<uint8_t>(text[begin]);
  auto low = sorted_.begin() + by_first_[first], high = sorted_.begin() + by_first_[first + 1u];
  Match best{.begin = text.size()};
  // [low, high) are the tokens that begin with text[begin, begin + depth): each byte narrows the range.
  for (size_t depth = 1; low != high; ++depth) {
    if (vocabulary.text(*low).size() == depth) best = {begin, depth, *low};
    if (begin + depth == text.size()) break;
    const char next = text[begin + depth];
    const auto at_depth = [&](int32_t id) {
      const std::string_view t = vocabulary.text(id);
      return t.size() > depth ? static_cast<int>(static_cast<uint8_t>(t[depth])) : -1;
    };
    const int wanted = static_cast<uint8_t>(next);
    low = std::partition_point(low, high, [&](int32_t id) { return at_depth(id) < wanted; });
    high = std::partition_point(low, high, [&](int32_t id) { return at_depth(id) == wanted; });
  }
  return best;
}

SpecialTokenIndex::Match SpecialTokenIndex::next(const Vocabulary& vocabulary, std::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    const auto first = static_cast<uint8_t>(text[begin]);
    if (by_first_[first] == by_first_[first + 1u]) continue;
    if (const Match match = longest_at(vocabulary, text, begin); match.bytes > 0) return match;
  }
  return {.begin = text.size()};
}

}  // namespace fth
