// The stream that leaves the detokenizer: always UTF-8, never half a character, nothing from a stop string on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "core/text/utf8.h"
#include "tests/text/vocab.h"

namespace fth {
namespace {

using test::Vocab;
using testing::ElementsAre;

class DetokenizerTest : public testing::Test {
 protected:
  // One token for each byte: the cuts are where the test wants them.
  std::vector<std::string> bytewise(std::string_view bytes, std::vector<std::string> stops = {}) {
    Detokenizer d(tokenizer_, std::move(stops));
    std::vector<std::string> out;
    for (const char c : bytes) out.push_back(d.push(static_cast<uint8_t>(c)));
    out.push_back(d.finish());
    stopped_ = d.stopped();
    return out;
  }
  static std::string joined(const std::vector<std::string>& parts) {
    std::string out;
    for (const std::string& part : parts) out += part;
    return out;
  }
  Vocab vocab_;
  Tokenizer tokenizer_ = *test::load(vocab_);
  bool stopped_ = false;
};

TEST_F(DetokenizerTest, CharactersLeaveWhole) {
  EXPECT_THAT(bytewise("a\xC3\xA9z"), ElementsAre("a", "", "\xC3\xA9", "z", ""));
  EXPECT_THAT(bytewise("\xF0\x9F\x98\x80"), ElementsAre("", "", "", "\xF0\x9F\x98\x80", ""));
}

TEST_F(DetokenizerTest, WhatCanBeNoCharacterIsReplaced) {
  const std::string r(kReplacement);
  EXPECT_THAT(bytewise("\xFF\x80"), ElementsAre(r, r, ""));
  EXPECT_THAT(bytewise("\xE2\x82z"), ElementsAre("", "", r + "z", "")) << "one for the bytes that began a character";
  EXPECT_THAT(bytewise("\xE2\xE2\x82\xAC"), ElementsAre("", r, "", "\xE2\x82\xAC", ""));
  EXPECT_THAT(bytewise("\xED\xA0\x80"), ElementsAre("", r + r, r, "")) << "a surrogate";
  EXPECT_THAT(bytewise("\xC0\xAF"), ElementsAre(r, r, "")) << "overlong";
  EXPECT_THAT(bytewise("\xF4\x90\x80\x80"), ElementsAre("", r + r, r, r, "")) << "above U+10FFFF";
  EXPECT_THAT(bytewise("a\xF0\x9F"), ElementsAre("a", "", "", r)) << "the end leaves nothing open";
}

TEST_F(DetokenizerTest, StopStringsSpanTokens) {
  EXPECT_THAT(bytewise("one END two", {"END"}), ElementsAre("o", "n", "e", " ", "", "", "", "", "", "", "", ""));
  EXPECT_TRUE(stopped_);
  EXPECT_THAT(bytewise("EN EEND", {"END"}), ElementsAre("", "", "EN ", "", "E", "", "", "")) << "a false beginning is given back";
  EXPECT_TRUE(stopped_);
  EXPECT_THAT(bytewise("the EN", {"END"}), ElementsAre("t", "h", "e", " ", "", "", "EN"));
  EXPECT_FALSE(stopped_);
}

TEST_F(DetokenizerTest, AStopStringInsideOneToken) {
  Detokenizer d(tokenizer_, {"ll"});
  EXPECT_EQ(d.push(static_cast<int32_t>(vocab_.id("hello"))), "he");
  EXPECT_TRUE(d.stopped());
  EXPECT_EQ(d.push('x'), "");
  EXPECT_EQ(d.finish(), "");
}

TEST_F(DetokenizerTest, TheStopThatIsCompleteFirstCounts) {
  EXPECT_EQ(joined(bytewise("xbya", {"a", "b"})), "x");
  EXPECT_EQ(joined(bytewise("xabc", {"bc", "abc"})), "x") << "complete at once: the one that begins first";
  EXPECT_EQ(joined(bytewise("xabcd", {"abcd", "bc"})), "xa");
  Detokenizer d(tokenizer_, {"hello", "el"});
  EXPECT_EQ(d.push(static_cast<int32_t>(vocab_.id("hello"))), "h") << "the same as byte by byte";
}

TEST_F(DetokenizerTest, EmptyStopsAndBrokenStops) {
  EXPECT_EQ(joined(bytewise("abc", {""})), "abc");
  EXPECT_FALSE(stopped_);
  EXPECT_EQ(joined(bytewise("a\xFF"
                            "b",
                            {"\xFF"})),
            "a")
      << "a broken byte matches what replaces it";
  EXPECT_EQ(joined(bytewise("a\xC3\xA9", {"\xA9"})), "a\xC3\xA9") << "and no part of a character";
  EXPECT_EQ(joined(bytewise("a\xF0\x9F", {std::string(kReplacement)})), "a") << "also at the end";
}

TEST_F(DetokenizerTest, ControlTokensAreSilent) {
  Detokenizer d(tokenizer_, {});
  EXPECT_EQ(d.push(0xC3), "");
  EXPECT_EQ(d.push(static_cast<int32_t>(vocab_.id("<|im_end|>"))), "");
  EXPECT_EQ(d.push(0xA9), "\xC3\xA9");
  EXPECT_EQ(d.push(-7), "");
  EXPECT_EQ(d.push(static_cast<int32_t>(vocab_.id("<think>"))), "<think>");
}

// Against the obvious way: the whole text at once.
TEST_F(DetokenizerTest, TheCutsDoNotMatter) {
  std::mt19937 random(5);
  const std::vector<std::string> stops{"abab", "b\xC3\xA9", "aab"};
  for (int round = 0; round < 5000; ++round) {
    std::string bytes;
    for (size_t n = random() % 20; n > 0; --n) bytes += std::string_view("aabb\xC3\xA9\xE2\x82\xFF z", 11)[random() % 11];
    std::string text;
    for (std::string_view rest = bytes; !rest.empty();) {
      const Utf8Step step = utf8_step(rest);
      text += step.kind == Utf8::character ? rest.substr(0, step.bytes) : kReplacement;
      rest.remove_prefix(step.bytes);
    }
    size_t begin = text.size(), end = text.size() + 1;
    for (size_t to = 0; to <= text.size() && end > text.size(); ++to)
      for (const std::string& stop : stops)
        if (std::string_view(text).substr(0, to).ends_with(stop) && (end > text.size() || to - stop.size() < begin))
          begin = to - stop.size(), end = to;
    EXPECT_EQ(joined(bytewise(bytes, stops)), text.substr(0, begin)) << testing::PrintToString(bytes);
    EXPECT_EQ(stopped_, end <= text.size()) << testing::PrintToString(bytes);

    Detokenizer d(tokenizer_, stops);
    std::string merged;
    for (const int32_t id : tokenizer_.encode(bytes, SpecialTokens::as_text)) merged += d.push(id);
    merged += d.finish();
    EXPECT_EQ(merged, text.substr(0, begin)) << testing::PrintToString(bytes);
  }
}

}  // namespace
}  // namespace fth
