// Malformed vocabularies: each ends in its error, which names the key and the numbers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/text/vocab.h"

namespace fth {
namespace {

using test::Vocab;
using testing::HasSubstr;

struct Malformed {
  std::string name;
  std::function<void(Vocab&)> spoil;
  Code code;
  std::string message;  // a part of it
  std::function<void(test::GgufWriter&)> spoil_arrays = nullptr;
};

void PrintTo(const Malformed& m, std::ostream* out) { *out << m.name; }

class MalformedVocabulary : public testing::TestWithParam<Malformed> {};

TEST_P(MalformedVocabulary, EndsInItsError) {
  Vocab vocab;
  GetParam().spoil(vocab);
  vocab.bytes();
  if (GetParam().spoil_arrays) GetParam().spoil_arrays(vocab.writer);
  const auto tokenizer = test::load(vocab.writer.bytes());
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().code, GetParam().code) << tokenizer.error().message;
  EXPECT_THAT(tokenizer.error().message, HasSubstr(GetParam().message));
}

const auto kKeep = [](Vocab&) {};

INSTANTIATE_TEST_SUITE_P(
    All, MalformedVocabulary,
    testing::Values(
        Malformed{"NoModel", [](Vocab& v) { v.writer.erase("tokenizer.ggml.model"); }, Code::data_loss, "tokenizer.ggml.model is missing"},
        Malformed{"OtherModel", [](Vocab& v) { v.writer.text("tokenizer.ggml.model", "llama"); }, Code::unimplemented,
                  "tokenizer.ggml.model is 'llama'; known models: gpt2"},
        Malformed{"NoPre", [](Vocab& v) { v.writer.erase("tokenizer.ggml.pre"); }, Code::data_loss, "tokenizer.ggml.pre is missing"},
        Malformed{"OtherPre", [](Vocab& v) { v.writer.text("tokenizer.ggml.pre", "tekken"); }, Code::unimplemented,
                  "tokenizer.ggml.pre is 'tekken'; known pre-tokenizers: qwen2"},
        Malformed{"PreIsNumber", [](Vocab& v) { v.writer.u32("tokenizer.ggml.pre", 3); }, Code::data_loss, "tokenizer.ggml.pre"},
        Malformed{"NoTokens", kKeep, Code::data_loss, "tokenizer.ggml.tokens is missing",
                  [](test::GgufWriter& w) { w.erase("tokenizer.ggml.tokens"); }},
        Malformed{"EmptyTokens", kKeep, Code::data_loss, "tokenizer.ggml.tokens is empty",
                  [](test::GgufWriter& w) { w.texts("tokenizer.ggml.tokens", {}); }},
        Malformed{"TokensAreNumbers", kKeep, Code::data_loss, "tokenizer.ggml.tokens is not an array of strings",
                  [](test::GgufWriter& w) {
                    w.array<int32_t>("tokenizer.ggml.tokens", MetaType::i32, {1, 2, 3});
                  }},
        Malformed{"TokensAreNoArray", kKeep, Code::data_loss, "tokenizer.ggml.tokens",
                  [](test::GgufWriter& w) { w.u32("tokenizer.ggml.tokens", 1); }},
        Malformed{"NoTypes", kKeep, Code::data_loss, "tokenizer.ggml.token_type is missing",
                  [](test::GgufWriter& w) { w.erase("tokenizer.ggml.token_type"); }},
        Malformed{"TypesTooShort", [](Vocab& v) { v.types.resize(17); }, Code::data_loss,
                  "tokenizer.ggml.token_type has 17 entries, tokenizer.ggml.tokens has 279"},
        Malformed{"TypesAreStrings", kKeep, Code::data_loss, "tokenizer.ggml.token_type",
                  [](test::GgufWriter& w) { w.texts("tokenizer.ggml.token_type", std::vector<std::string>(400, "1")); }},
        Malformed{"TypeOutOfRange", [](Vocab& v) { v.types[5] = 7; }, Code::data_loss,
                  "tokenizer.ggml.token_type[5] is 7; types are 1 to 6"},
        Malformed{"TypeNegative", [](Vocab& v) { v.types[5] = -1; }, Code::data_loss, "tokenizer.ggml.token_type[5] is -1"},
        Malformed{"ByteNotHex", [](Vocab& v) { v.add("<0xZZ>", 6); }, Code::data_loss, "tokenizer.ggml.tokens[279] is '<0xZZ>'"},
        Malformed{"ByteNegative", [](Vocab& v) { v.add("<0x-1>", 6); }, Code::data_loss, "tokenizer.ggml.tokens[279] is '<0x-1>'"},
        Malformed{"ByteTooLong", [](Vocab& v) { v.add("<0x100>", 6); }, Code::data_loss, "tokenizer.ggml.tokens[279] is '<0x100>'"},
        Malformed{"ByteEmpty", [](Vocab& v) { v.add("", 6); }, Code::data_loss, "tokenizer.ggml.tokens[279] is ''"},
        Malformed{"LongSpecial", [](Vocab& v) { v.add(std::string(1025, 'x'), 3); }, Code::data_loss,
                  "tokenizer.ggml.tokens[279]: a special token of 1025 bytes; the limit is 1024"},
        Malformed{"NoCharacterForAByte", [](Vocab& v) { v.tokens[200] = "no"; }, Code::data_loss, "no token stands for byte 200"},
        Malformed{"NoMerges", kKeep, Code::data_loss, "tokenizer.ggml.merges is missing",
                  [](test::GgufWriter& w) { w.erase("tokenizer.ggml.merges"); }},
        Malformed{"MergesAreNumbers", kKeep, Code::data_loss, "tokenizer.ggml.merges is not an array of strings",
                  [](test::GgufWriter& w) { w.array<float>("tokenizer.ggml.merges", MetaType::f32, {1}); }},
        Malformed{"MergeWithoutSpace", [](Vocab& v) { v.merges[3] = "he"; }, Code::data_loss,
                  "tokenizer.ggml.merges[3] is 'he'; expected two pieces with one space between"},
        Malformed{"MergeWithTwoSpaces", [](Vocab& v) { v.merges[3] = "h e l"; }, Code::data_loss, "tokenizer.ggml.merges[3] is 'h e l'"},
        Malformed{"MergeWithoutLeft", [](Vocab& v) { v.merges[3] = " e"; }, Code::data_loss, "tokenizer.ggml.merges[3] is ' e'"},
        Malformed{"MergeWithoutRight", [](Vocab& v) { v.merges[3] = "h "; }, Code::data_loss, "tokenizer.ggml.merges[3] is 'h '"},
        Malformed{"MergeEmpty", [](Vocab& v) { v.merges[3] = ""; }, Code::data_loss, "tokenizer.ggml.merges[3] is ''"},
        Malformed{"MergeOfUnknownPiece", [](Vocab& v) { v.merges[3] = "h zzz"; }, Code::data_loss,
                  "tokenizer.ggml.merges[3] is 'h zzz'; 'zzz' is none of the 279 tokens"},
        Malformed{"MergeToUnknownPiece", [](Vocab& v) { v.merges[3] = "q q"; }, Code::data_loss,
                  "tokenizer.ggml.merges[3] is 'q q'; 'qq' is none of the 279 tokens"},
        Malformed{"EosOutOfRange", [](Vocab& v) { v.writer.u32("tokenizer.ggml.eos_token_id", 279); }, Code::data_loss,
                  "tokenizer.ggml.eos_token_id is 279; the vocabulary has 279 tokens"},
        Malformed{"BosHuge", [](Vocab& v) { v.writer.u64("tokenizer.ggml.bos_token_id", 1ull << 40); }, Code::data_loss,
                  "tokenizer.ggml.bos_token_id is 1099511627776"},
        Malformed{"EotNegative", [](Vocab& v) { v.writer.i32("tokenizer.ggml.eot_token_id", -5); }, Code::data_loss,
                  "tokenizer.ggml.eot_token_id is -5"},
        Malformed{"UnknownOutOfRange", [](Vocab& v) { v.writer.u32("tokenizer.ggml.unknown_token_id", 9999); }, Code::data_loss,
                  "tokenizer.ggml.unknown_token_id is 9999"},
        Malformed{"EosIsText", [](Vocab& v) { v.writer.text("tokenizer.ggml.eos_token_id", "</s>"); }, Code::data_loss,
                  "tokenizer.ggml.eos_token_id"},
        Malformed{"BosWantedButAbsent",
                  [](Vocab& v) { v.writer.erase("tokenizer.ggml.bos_token_id").boolean("tokenizer.ggml.add_bos_token", true); },
                  Code::data_loss, "tokenizer.ggml.add_bos_token is true, but there is no tokenizer.ggml.bos_token_id"},
        Malformed{"AddBosIsNumber", [](Vocab& v) { v.writer.u32("tokenizer.ggml.add_bos_token", 1); }, Code::data_loss,
                  "tokenizer.ggml.add_bos_token"}),
    [](const auto& param) { return param.param.name; });

// A count that the file cannot hold is the reader's to refuse.
TEST(Vocabulary, TokenCountBeyondTheFile) {
  Vocab vocab;
  vocab.bytes();
  for (auto& key : vocab.writer.keys)
    if (key.name == "tokenizer.ggml.tokens") std::memset(key.value.data() + 4, 0x7F, 8);
  const auto tokenizer = test::load(vocab.writer.bytes());
  ASSERT_FALSE(tokenizer);
  EXPECT_EQ(tokenizer.error().code, Code::data_loss) << tokenizer.error().message;
}

TEST(Vocabulary, OddButUsable) {
  Vocab vocab;
  vocab.add("", 3);  // would match everywhere
  vocab.add("", 1);
  vocab.add("\xFF\xFE raw bytes", 1);
  vocab.types.push_back(1);  // more types than tokens
  const auto t = test::load(vocab);
  ASSERT_TRUE(t) << t.error().message;
  EXPECT_EQ(t->decode(t->encode("hello", SpecialTokens::parse)), "hello");
  EXPECT_EQ(t->piece(t->size() - 1), "\xFF\xFE raw bytes");

  Vocab without_merges;
  without_merges.bytes();
  without_merges.writer.array<int32_t>("tokenizer.ggml.merges", MetaType::i32, {});
  const auto bytes_only = test::load(without_merges.writer.bytes());
  ASSERT_TRUE(bytes_only) << bytes_only.error().message;
  EXPECT_EQ(bytes_only->encode("hello", SpecialTokens::parse).size(), 5u);
}

TEST(Vocabulary, TheFileMayGo) {
  Result<Tokenizer> t = fail(Code::internal, "");
  {
    Vocab vocab;
    test::Bytes file = vocab.bytes();
    t = test::load(file);
    ASSERT_TRUE(t);
    std::fill(file.begin(), file.end(), std::byte{0});
  }
  EXPECT_EQ(t->decode(t->encode("hello world", SpecialTokens::parse)), "hello world");
}

// Many special tokens that begin alike cost no more than one.
TEST(Vocabulary, ManySpecialTokens) {
  Vocab vocab;
  std::string deep;
  for (int i = 0; i < 1000; ++i) vocab.add(deep += 'a', 4);
  for (int i = 0; i < 20000; ++i) vocab.add("aaaa" + std::to_string(i), 3);
  const auto t = test::load(vocab);
  ASSERT_TRUE(t) << t.error().message;
  const auto ids = t->encode(std::string(2500, 'a') + "aaaa19999", SpecialTokens::parse);
  EXPECT_EQ(t->decode(ids, true), std::string(2500, 'a') + "aaaa19999");
  EXPECT_EQ(ids.front(), static_cast<int32_t>(vocab.id(deep)));
}

}  // namespace
}  // namespace fth
