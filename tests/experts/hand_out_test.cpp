// What is handed out before it is whole, and what comes back from a device's memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/experts/tier.h"
#include "tests/experts/open_store.h"

namespace fth {
namespace {

using test::drain;
using test::ExpertFiles;
using test::Faults;
using test::open_faulty;
using test::open_store;
using test::Shape;
using test::some_experts;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAreArray;

TEST(ExpertStore, AGateIsHandedOutBeforeTheRestAndTheWholeAfterIt) {
  for (const bool packed : {true, false})
    for (const bool verify : {false, true}) {
      Shape shape;
      shape.packed = packed;
      const ExpertFiles files(shape);
      ExpertStoreOptions options;
      options.request_bytes = 4096;
      options.verify = verify;
      Faults faults;
      faults.reorder = true;
      const auto store = open_faulty(files, 8, faults, options);
      int gates = 0;
      for (int32_t first = 0; first + 3 <= 8; ++first) {
        const std::vector<int32_t> ids{first, first + 1, first + 2};
        auto lease = store->request(0, ids);
        ASSERT_TRUE(lease);
        std::map<int32_t, int> early, whole;
        while (true) {
          const auto places = lease->next(true);
          ASSERT_TRUE(places) << places.error().message;
          if (places->empty()) break;
          for (const ExpertPlace& p : *places) {
            EXPECT_EQ(p.whole, places->front().whole);
            EXPECT_TRUE(files.right(*store, 0, p));
            EXPECT_EQ(whole[p.expert], 0) << "nothing comes after the whole";
            ++(p.whole ? whole : early)[p.expert];
          }
        }
        for (const int32_t e : ids) EXPECT_EQ(whole[e], 1);
        for (const auto& [expert, count] : early) EXPECT_EQ(count, 1) << expert;
        for (const auto& [expert, count] : early) gates += count;
      }
      EXPECT_EQ(store->stats().early, static_cast<uint64_t>(gates));
      EXPECT_EQ(gates > 0, !verify) << "nothing is used before its checksum, where checksums are asked for";
    }
}

// Memory of a device, as the store sees it; damages or refuses when told to.
class FakeTier final : public Tier {
 public:
  FakeTier(int64_t n, uint64_t slot_bytes) : slots_(static_cast<size_t>(n), std::vector<std::byte>(slot_bytes)) {}
  std::string name() const override { return "fake:0"; }
  int64_t n_slots() const override { return static_cast<int64_t>(slots_.size()); }
  Result<> write(int64_t slot, std::span<const std::byte> from) override {
    if (fail_writes) return fail(Code::unavailable, "lost");
    std::copy(from.begin(), from.end(), slots_[static_cast<size_t>(slot)].begin());
    ++writes;
    return {};
  }
  Result<> read(int64_t slot, std::span<std::byte> to) override {
    if (fail_reads) return fail(Code::unavailable, "lost");
    std::copy(slots_[static_cast<size_t>(slot)].begin(), slots_[static_cast<size_t>(slot)].end(), to.begin());
    if (damage) to[5000] ^= std::byte{1};
    return {};
  }
  bool fail_writes = false, fail_reads = false, damage = false;
  int writes = 0;

 private:
  std::vector<std::vector<std::byte>> slots_;
};

TEST(Tier, HoldsWhatLeavesTheSlots) {
  for (const char* fault : {"", "writes", "reads", "damage"}) {
    Shape shape;
    shape.packed = true;
    const ExpertFiles files(shape);
    ExpertStoreOptions options;
    options.verify = true;
    auto tier = std::make_shared<FakeTier>(4, files.slots(1));
    options.tier = tier;
    const auto store = open_store(files, 4, options);
    EXPECT_THAT(store->description(), HasSubstr("4 more in fake:0"));
    std::mt19937 random(5);
    for (int token = 0; token < 60; ++token) {
      if (token == 20) {
        tier->fail_writes = fault == std::string("writes");
        tier->fail_reads = fault == std::string("reads");
        tier->damage = fault == std::string("damage");
      }
      for (const int64_t layer : {0, 2}) {
        if (!files.sparse(layer)) continue;
        const auto ids = some_experts(&random, 4, 3);  // eight experts in all: slots and tier together hold them
        auto lease = store->request(layer, ids);
        ASSERT_TRUE(lease);
        EXPECT_THAT(drain(files, *store, layer, &*lease), UnorderedElementsAreArray(ids));
      }
    }
    const ExpertStats stats = store->stats();
    EXPECT_EQ(stats.requested, stats.hits + stats.late + stats.misses);
    EXPECT_GT(stats.tier, 0u);
    EXPECT_GT(tier->writes, 0);
    const bool lost = fault == std::string("writes") || fault == std::string("reads");
    EXPECT_EQ(store->tier_error(), lost ? "fake:0: lost" : "") << fault;
    EXPECT_LE(stats.misses, *fault == 0 ? 80u : 1000u) << "of 240: slots and tier together hold nearly all";
  }
}

}  // namespace
}  // namespace fth
