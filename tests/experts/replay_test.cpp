// The replay against the store that it stands for, and the traces that it runs on.
#include "core/experts/replay.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <numeric>

#include "core/experts/expert_store.h"
#include "tests/experts/files.h"

namespace fth {
namespace {

using ::testing::HasSubstr;

ExpertTrace skewed(int64_t layers, int64_t experts, int64_t top_k, int64_t tokens) {
  SyntheticTrace r;
  r.n_layer = layers, r.n_expert = experts, r.top_k = top_k, r.n_tokens = tokens;
  return make_trace(r);
}

// The trace through a real store, a block per expert: hits after the warmup.
uint64_t store_hits(const ExpertTrace& t, const std::string& policy, int64_t slots, int64_t warmup, const std::filesystem::path& file) {
  ExpertSource s;
  s.files = {file};
  s.top_k = t.top_k;
  for (int64_t l = 0; l < t.n_layer; ++l) {
    ExpertSource::Layer layer;
    layer.n_expert = t.sparse[static_cast<size_t>(l)] ? t.n_expert : 0;
    const auto begin = static_cast<uint64_t>(l * t.n_expert) * 4096;
    layer.gate = {0, begin, 1024, 4096}, layer.up = {0, begin + 1024, 1024, 4096}, layer.down = {0, begin + 2048, 2048, 4096};
    s.layers.push_back(layer);
  }
  ExpertStoreOptions o;
  o.policy = policy;
  o.bytes = *ExpertStore::slot_bytes(s) * static_cast<uint64_t>(slots);
  auto store = ExpertStore::open(s, o);
  EXPECT_TRUE(store) << store.error().message;
  uint64_t before = 0;
  bool counting = false;
  for (const auto& row : t.rows) {
    if (!counting && row.token >= warmup) before = (*store)->stats().hits, counting = true;
    auto lease = (*store)->request(row.layer, row.experts);
    EXPECT_TRUE(lease);
    while (true) {
      const auto places = lease->next();
      EXPECT_TRUE(places);
      if (!places || places->empty()) break;
    }
  }
  return (*store)->stats().hits - before;
}

TEST(Replay, DecidesAsTheStoreDoes) {
  const test::TempDir folder;
  const ExpertTrace t = skewed(5, 16, 3, 60);
  test::write_file(folder / "experts", static_cast<size_t>(t.n_layer * t.n_expert) * 4096, 1);
  for (const auto& [policy, name] : {std::pair{Policy::lru, "lru"}, std::pair{Policy::lfu, "lfu"}, std::pair{Policy::reuse, "reuse"}})
    for (const int64_t slots : {3, 7, 15, 33, 70, 80, 90}) {
      const auto found = replay(t, policy, slots, 10);
      ASSERT_TRUE(found);
      EXPECT_EQ(found->requested, 50u * 5 * 3);
      EXPECT_EQ(found->requested - found->misses, store_hits(t, name, slots, 10, folder / "experts")) << name << ", " << slots << " slots";
    }
}

TEST(Replay, CountsMissesByLayer) {
  ExpertTrace t;
  t.n_layer = 3, t.n_expert = 4, t.top_k = 2, t.n_tokens = 4;
  t.sparse = {true, false, true};
  for (int32_t token = 0; token < 4; ++token) {
    t.rows.push_back({token, 0, {0, 1}});                    // always the same
    t.rows.push_back({token, 2, {token, (token + 1) % 4}});  // one that is new to the token before
  }
  const auto found = replay(t, Policy::lru, 6, 1);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->tokens, 3);
  EXPECT_EQ(found->requested, 12u);
  EXPECT_EQ(found->misses, 2u);  // experts 2 and 3 of layer 2; all six fit then
  EXPECT_EQ(found->miss_shares[0], (std::vector<double>{1, 0, 0}));
  EXPECT_TRUE(found->miss_shares[1].empty());
  EXPECT_NEAR(found->miss_shares[2][1], 2.0 / 3, 1e-12);
  EXPECT_NEAR(found->hit_rate(), 10.0 / 12, 1e-12);
}

TEST(Replay, KnowsNoBetterThanTheFuture) {
  const ExpertTrace t = skewed(6, 16, 4, 100);
  for (const int64_t slots : {4, 12, 24, 48, 96}) {
    const auto best = replay_optimum(t, slots, 12);
    ASSERT_TRUE(best);
    for (const Policy p : {Policy::lru, Policy::lfu, Policy::reuse}) EXPECT_LE(best->misses, replay(t, p, slots, 12)->misses) << slots;
  }
  EXPECT_EQ(replay(t, Policy::reuse, 3, 12).error().code, Code::invalid_argument);
  EXPECT_EQ(replay(t, Policy::reuse, 4, 100).error().code, Code::invalid_argument);
}

TEST(Replay, UniformUseHitsAsOftenAsThereAreSlots) {
  SyntheticTrace r;
  r.skewed = false;
  r.n_layer = 8, r.n_expert = 16, r.top_k = 2, r.n_tokens = 400;
  const ExpertTrace t = make_trace(r);
  for (const int64_t slots : {32, 64, 96})
    EXPECT_NEAR(replay(t, Policy::lru, slots, 50)->hit_rate(), static_cast<double>(slots) / 128, 0.03);
}

TEST(Replay, TheAssumptionIsWhatItsTracesGive) {
  for (const auto& [layers, experts, top_k] : {std::tuple{32, 32, 4}, std::tuple{52, 64, 6}}) {
    const ExpertTrace t = skewed(layers, experts, top_k, 256);
    for (const double share : {0.12, 0.25, 0.5, 0.75}) {
      const auto slots = static_cast<int64_t>(share * layers * experts);
      EXPECT_NEAR(assumed_hit_rate(share), replay(t, kDefaultPolicy, slots, 128)->hit_rate(), 0.05) << layers << " layers, " << share;
    }
    // The report: a fifth of the experts are used by about 40 to 60 % of the tokens, the others by fewer than 14 %.
    const auto assumed = assumed_popularity(experts, top_k), made = popularity(t);
    EXPECT_NEAR(std::accumulate(assumed.begin(), assumed.end(), 0.0), top_k, 1e-9);
    EXPECT_NEAR(std::accumulate(made.begin(), made.end(), 0.0), top_k, 1e-9);
    EXPECT_GT(assumed.front(), 0.3);
    EXPECT_LT(assumed.back(), 0.14);
    EXPECT_NEAR(hot_share(t, 0.22), 0.8, 0.06);
  }
  EXPECT_EQ(assumed_hit_rate(0), 0);
  EXPECT_EQ(assumed_hit_rate(1), 1);
  for (double s = 0; s < 1; s += 0.01) EXPECT_LE(assumed_hit_rate(s), assumed_hit_rate(s + 0.01));
  for (const int64_t n : {2, 3, 5}) {
    const auto p = assumed_popularity(n, n - 1);
    EXPECT_NEAR(std::accumulate(p.begin(), p.end(), 0.0), static_cast<double>(n - 1), 0.2) << n;
    EXPECT_LE(p.front(), 1);
  }
}

TEST(Trace, FollowsSavedCounts) {
  std::vector<double> chances(3 * 8, 0.0);
  chances[0] = 0.9, chances[1] = 0.6, chances[2] = 0.3, chances[3] = 0.2;      // layer 0: sums to 2
  chances[16] = 0.5, chances[17] = 0.5, chances[18] = 0.5, chances[19] = 0.5;  // layer 2; nothing is known of layer 1
  const ExpertTrace t = make_trace(chances, 3, 8, 2, 2000);
  EXPECT_TRUE(t.sparse[0] && !t.sparse[1] && t.sparse[2]);
  std::vector<double> uses(24);
  for (const auto& row : t.rows)
    for (const int32_t e : row.experts) uses[static_cast<size_t>(row.layer * 8 + e)] += 1.0 / 2000;
  EXPECT_NEAR(uses[0], 0.9, 0.12);
  EXPECT_NEAR(uses[1], 0.6, 0.12);
  EXPECT_NEAR(uses[17], 0.5, 0.05);
  EXPECT_EQ(uses[4], 0);
}

TEST(Trace, ReadsWhatItWrites) {
  const test::TempDir folder;
  const ExpertTrace t = skewed(3, 8, 2, 5);
  ASSERT_TRUE(write_trace(folder / "t", t, "made for a test"));
  const auto back = read_trace(folder / "t");
  ASSERT_TRUE(back) << back.error().message;
  EXPECT_EQ(back->source, t.source);
  EXPECT_EQ(back->n_tokens, 5);
  ASSERT_EQ(back->rows.size(), t.rows.size());
  for (size_t i = 0; i < t.rows.size(); ++i) EXPECT_EQ(back->rows[i].experts, t.rows[i].experts);
}

TEST(Trace, DamagedFilesAreRefusedWithTheLine) {
  const test::TempDir folder;
  const auto refused = [&](const std::string& text) {
    std::ofstream(folder / "bad") << text;
    const auto t = read_trace(folder / "bad");
    EXPECT_FALSE(t) << text;
    return t ? std::string() : t.error().message;
  };
  const std::string head = "forethought-trace 1\nmodel m\nsource recorded\nshape 2 4 2\n";
  EXPECT_THAT(refused("other\n"), HasSubstr(":1: not \"forethought-trace 1\""));
  EXPECT_THAT(refused(head), HasSubstr("no rows"));
  EXPECT_THAT(refused(head + "0 0 1 4\n"), HasSubstr(":5: expert 4 of 4"));
  EXPECT_THAT(refused(head + "0 0 1 1\n"), HasSubstr("twice"));
  EXPECT_THAT(refused(head + "0 0 1 2 3\n"), HasSubstr("3 experts, top_k is 2"));
  EXPECT_THAT(refused(head + "0 1 1\n0 0 1\n"), HasSubstr("in order"));
  EXPECT_THAT(refused(head + "1 0 1\n"), HasSubstr("in order"));
  EXPECT_THAT(refused(head + "-1 0 1\n"), HasSubstr("in order"));
  EXPECT_THAT(refused(head + "0 0 x\n"), HasSubstr("is not an expert"));
  EXPECT_THAT(refused("forethought-trace 1\nshape 9999999 4 2\n"), HasSubstr("out of range"));
  EXPECT_THAT(refused("forethought-trace 1\n0 0 1\n"), HasSubstr("before \"shape\""));
  EXPECT_EQ(read_trace(folder / "none").error().code, Code::not_found);
  EXPECT_FALSE(read_trace("/dev/zero"));
  EXPECT_FALSE(read_trace(folder / "."));
}

}  // namespace
}  // namespace fth
