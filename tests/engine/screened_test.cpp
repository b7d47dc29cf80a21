// The screened head and repacking in memory, on the bundled trained model: the same tokens, and the same bits of what is there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "core/engine/engine.h"

namespace fth {
namespace {

using testing::HasSubstr;

constexpr const char* kPrompt = "<|im_start|>user\nTranslate to German: The old teacher buys a red car.<|im_end|>\n<|im_start|>assistant\n";

EngineOptions options(HeadMode head) {
  const char* root = std::getenv("FTH_SOURCE_DIR");
  EngineOptions o;
  o.model = std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
  o.cpu_only = true;
  o.registry.n_threads = 2;
  o.n_ctx = 512;
  o.head = head;
  return o;
}

std::unique_ptr<Engine> open(const EngineOptions& o) {
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  return engine ? std::move(*engine) : nullptr;
}

size_t arg_max(std::span<const float> v) { return static_cast<size_t>(std::max_element(v.begin(), v.end()) - v.begin()); }

bool skipped(float v) { return v == -std::numeric_limits<float>::infinity(); }

TEST(ScreenedHead, HasTheLargestLogitsOfTheExactOne) {
  auto engine = open(options(HeadMode::screened));
  ASSERT_TRUE(engine);
  for (const int64_t k : {1, 20}) {
    Session session = *engine->new_session();
    session.set_wanted_logits(k);
    auto logits = session.prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse));
    ASSERT_TRUE(logits) << logits.error().message;
    size_t n_skipped = 0;
    for (int i = 0; i < 150; ++i) {
      logits = session.decode(static_cast<int32_t>(arg_max(*logits)));
      ASSERT_TRUE(logits) << logits.error().message;
      const std::vector<float> some(logits->begin(), logits->end());
      const auto exact = session.head_again(0);
      ASSERT_TRUE(exact) << exact.error().message;
      std::vector<float> order(exact->begin(), exact->end());
      std::nth_element(order.begin(), order.begin() + k - 1, order.end(), std::greater<>());
      for (size_t j = 0; j < some.size(); ++j) {
        n_skipped += skipped(some[j]);
        if (skipped(some[j]))
          ASSERT_LT((*exact)[j], order[static_cast<size_t>(k - 1)]);
        else
          ASSERT_EQ((*exact)[j], some[j]);
      }
      // Either may have been the exact head: while errors are measured, and for a token that is checked.
      logits = session.head_again(k);
      ASSERT_TRUE(logits) << logits.error().message;
      for (size_t j = 0; j < some.size(); ++j) ASSERT_TRUE(skipped(some[j]) || skipped((*logits)[j]) || some[j] == (*logits)[j]);
    }
    EXPECT_GT(n_skipped, 100u * 1024u) << k;
    EXPECT_GT(session.stats().head.screened, 100u);
  }
  EXPECT_TRUE(engine->head_errors().enough());
  EXPECT_THAT(engine->screened_head(), HasSubstr("2 bits a weight"));
}

TEST(ScreenedHead, IsNotUsedUnlessFewLogitsAreWanted) {
  auto engine = open(options(HeadMode::screened)), exact = open(options(HeadMode::exact));
  ASSERT_TRUE(engine && exact);
  const auto ids = engine->tokenizer().encode(kPrompt, SpecialTokens::parse);
  Session a = *engine->new_session(), b = *exact->new_session();
  for (const int64_t k : {int64_t{0}, int64_t{2048}}) {  // 2048: most of the vocabulary
    a.clear(), b.clear();
    a.set_wanted_logits(k), b.set_wanted_logits(1);
    const auto x = a.prefill(ids), y = b.prefill(ids);
    ASSERT_TRUE(x && y);
    EXPECT_TRUE(std::equal(x->begin(), x->end(), y->begin()));
  }
  EXPECT_EQ(a.stats().head.screened + a.stats().head.exact, 0u);
  EXPECT_EQ(exact->screened_head(), "");
}

TEST(ScreenedHead, AllPositionsAreAlwaysExact) {
  auto engine = open(options(HeadMode::screened));
  ASSERT_TRUE(engine);
  engine->set_head_errors({64, 64, 0, 64, 1});
  Session session = *engine->new_session();
  session.set_wanted_logits(1);
  const int64_t n_vocab = engine->model().config.n_vocab;
  ASSERT_TRUE(session.prefill_all(engine->tokenizer().encode(kPrompt, SpecialTokens::parse),
                                  [&](int64_t, int64_t rows, const float* v) -> Result<> {
                                    EXPECT_EQ(std::count_if(v, v + rows * n_vocab, skipped), 0);
                                    return {};
                                  }));
}

TEST(ScreenedHead, GivesUpWhenItDoesNotPay) {
  auto engine = open(options(HeadMode::screened));
  ASSERT_TRUE(engine);
  engine->set_head_errors({64, 64, 6400, 640000, 100});  // as if estimates were worth nothing
  Session session = *engine->new_session();
  session.set_wanted_logits(1);
  ASSERT_TRUE(session.prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse)));
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(session.decode(100));
  EXPECT_THAT(engine->screened_head(), HasSubstr("exact: too many rows"));
  EXPECT_EQ(session.stats().head.screened, 32u);
}

// 99.99 % is the promise; of these 2,000 positions all have to agree.
TEST(ScreenedHead, AgreesWithTheExactOneAtTwoThousandPositions) {
  auto engine = open(options(HeadMode::screened));
  ASSERT_TRUE(engine);
  Session session = *engine->new_session();
  ASSERT_TRUE(session.prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse)));
  std::vector<int32_t> ids(500);
  uint64_t state = 7;
  HeadAgreement sum;
  while (sum.positions < 2000) {
    for (int32_t& id : ids) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      id = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(engine->model().config.n_vocab));
    }
    session.clear();
    const auto done = session.compare_heads(ids, 40, &sum, {});
    ASSERT_TRUE(done) << done.error().message;
  }
  EXPECT_EQ(sum.same_first, sum.positions);
  EXPECT_EQ(sum.same_largest, sum.positions);
  EXPECT_LT(sum.share, 0.2 * static_cast<double>(sum.positions));
  EXPECT_EQ(engine->head_errors().checked, 2 * sum.positions);
  EXPECT_THAT(engine->screened_head(), HasSubstr("checked tokens"));
  const auto stopped = session.compare_heads(std::span(ids).first(5), 40, &sum, [] { return false; });
  ASSERT_FALSE(stopped);
  EXPECT_EQ(stopped.error().code, Code::cancelled);
}

TEST(ScreenedHead, IsGivenUpWhereItDisagrees) {
  auto engine = open(options(HeadMode::screened)), exact = open(options(HeadMode::exact));
  ASSERT_TRUE(engine && exact);
  engine->set_head_errors({64, 6400, 0, 0, 0});  // as if estimates were exact: rows of one deviation below the floor are skipped
  Session a = *engine->new_session(), b = *exact->new_session();
  a.set_wanted_logits(20);
  const auto ids = engine->tokenizer().encode(kPrompt, SpecialTokens::parse);
  auto x = a.prefill(ids), y = b.prefill(ids);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(x && y);
    ASSERT_EQ(arg_max(*x), arg_max(*y)) << "a token that is checked is the exact head's";
    const auto id = static_cast<int32_t>(arg_max(*y));
    x = a.decode(id), y = b.decode(id);
  }
  EXPECT_THAT(engine->screened_head(), HasSubstr("exact: the screened one had other largest logits in 1 of"));
  EXPECT_FALSE(engine->head_errors().trusted());
  // What was found out holds for the next run, too.
  auto later = open(options(HeadMode::screened));
  ASSERT_TRUE(later);
  later->set_head_errors(engine->head_errors());
  EXPECT_THAT(later->screened_head(), HasSubstr("exact: the screened one"));
  HeadAgreement sum;
  Session c = *later->new_session();
  EXPECT_EQ(c.compare_heads(ids, 40, &sum, {}).error().code, Code::failed_precondition);
}

TEST(HeadErrors, OneInTenThousandIsAllowed) {
  HeadErrors e;
  EXPECT_TRUE(e.trusted());
  e.checked = 9'999, e.same = 9'998;
  EXPECT_FALSE(e.trusted());
  e.checked = 10'000, e.same = 9'999;
  EXPECT_TRUE(e.trusted());
}

// Where up rows begin to be read all shows in the time alone.
TEST(GatherBelow, KeepsTheBits) {
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<Session> sessions;
  for (const char* how : {"gather_below=0", "", "gather_below=101"}) {
    EngineOptions o = options(HeadMode::exact);
    o.registry.cpu_options = how;
    engines.push_back(open(o));
    ASSERT_TRUE(engines.back());
    sessions.push_back(*engines.back()->new_session());
  }
  const auto ids = engines[0]->tokenizer().encode(kPrompt, SpecialTokens::parse);
  std::vector<Result<std::span<const float>>> logits;
  for (Session& s : sessions) logits.push_back(s.prefill(ids));
  for (int i = 0; i < 30; ++i) {
    for (const auto& l : logits) {
      ASSERT_TRUE(l);
      ASSERT_TRUE(std::equal(l->begin(), l->end(), logits[0]->begin())) << i;
    }
    const auto id = static_cast<int32_t>(arg_max(*logits[0]));
    for (size_t s = 0; s < sessions.size(); ++s) logits[s] = sessions[s].decode(id);
  }
  for (const char* wrong : {"gather_below=102", "gather_below=-1", "gather_below=many"}) {
    EngineOptions o = options(HeadMode::exact);
    o.registry.cpu_options = wrong;
    const auto refused = Engine::open(o);
    ASSERT_FALSE(refused) << wrong;
    EXPECT_EQ(refused.error().code, Code::invalid_argument);
  }
}

// What a plan expects of decoding with a screened head is less to read and less to wait for.
TEST(ScreenedHead, IsPartOfWhatThePlanExpects) {
  const auto plan_of = [](HeadMode head) {
    EngineOptions o = options(head);
    o.plan_only = true;
    return open(o)->plan();
  };
  const Plan exact = plan_of(HeadMode::exact), screened = plan_of(HeadMode::screened);
  EXPECT_LT(screened.bytes_per_token, exact.bytes_per_token);
  EXPECT_LT(screened.seconds_per_token, exact.seconds_per_token);
}

TEST(ScreenedHead, IsInThePlan) {
  const auto arenas = [](HeadMode head) {
    EngineOptions o = options(head);
    o.plan_only = true;
    auto engine = open(o);
    std::vector<std::string> names;
    for (const Arena& a : engine->plan().arenas) names.push_back(a.name);
    return names;
  };
  EXPECT_THAT(arenas(HeadMode::screened), testing::Contains("head plane"));
  EXPECT_THAT(arenas(HeadMode::exact), testing::Not(testing::Contains("head plane")));
}

TEST(ScreenedHead, AgainOnlyAfterADecode) {
  auto engine = open(options(HeadMode::screened));
  ASSERT_TRUE(engine);
  Session session = *engine->new_session();
  ASSERT_TRUE(session.prefill(engine->tokenizer().encode(kPrompt, SpecialTokens::parse)));
  const auto again = session.head_again(0);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, Code::failed_precondition);
}

TEST(HeadErrors, ZIsAboveAllThatWasSeen) {
  HeadErrors e{64, 1000, 1500, 1000 * (1.5 * 1.5 + 1), 3.9};
  EXPECT_NEAR(e.z(), 6.5, 1e-9);
  e.largest = 7;
  EXPECT_NEAR(e.z(), 8.75, 1e-9);
  EXPECT_FALSE(HeadErrors{}.enough());
}

TEST(Repack, KeepsTheBits) {
  EngineOptions plain = options(HeadMode::exact), repacked = plain;
  plain.repack = Repack::off;
  repacked.repack = Repack::memory;
  auto a = open(plain), b = open(repacked);
  ASSERT_TRUE(a && b);
  EXPECT_THAT(a->repacked(), HasSubstr("asked for"));
  EXPECT_THAT(b->repacked(), HasSubstr("neuron-major"));
  EXPECT_EQ(b->model().layers[0].down_layout, DownLayout::neuron_major);
  EXPECT_FALSE(a->model().layers[0].q.interleaved);
  EXPECT_TRUE(b->model().layers[0].q.interleaved);
  EXPECT_TRUE(b->model().layers[0].gate.interleaved);
  const auto ids = a->tokenizer().encode(kPrompt, SpecialTokens::parse);
  Session x = *a->new_session(), y = *b->new_session();
  auto p = x.prefill(ids), q = y.prefill(ids);
  for (int i = 0; i < 30; ++i) {
    ASSERT_TRUE(p && q);
    ASSERT_TRUE(std::equal(p->begin(), p->end(), q->begin())) << i;
    const auto id = static_cast<int32_t>(arg_max(*p));
    p = x.decode(id), q = y.decode(id);
  }
}

TEST(Repack, StreamedExpertsStayAsTheFileHasThem) {
  EngineOptions o = options(HeadMode::exact);
  o.experts = ExpertPlacement::streamed;
  o.stream.slots = 24;
  auto engine = open(o);
  ASSERT_TRUE(engine);
  EXPECT_THAT(engine->repacked(), HasSubstr("streamed"));
  EXPECT_EQ(engine->model().layers[0].down_layout, DownLayout::row_major);
  EXPECT_TRUE(engine->model().layers[0].q.interleaved);
  EXPECT_FALSE(engine->model().layers[0].gate.interleaved);
  o.repack = Repack::memory;
  const auto refused = Engine::open(o);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::failed_precondition);
}

}  // namespace
}  // namespace fth
