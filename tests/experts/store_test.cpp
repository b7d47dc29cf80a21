// What the store promises when storage behaves: the right bytes under every reader, shape and size; pins; leases; guesses; the warm set.
#include <gmock/gmock.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <fstream>
#include <numeric>
#include <random>
#include <set>
#include <thread>
#include <tuple>

#include "core/experts/block_reader.h"
#include "tests/experts/open_store.h"

namespace fth {
namespace {

using test::drain;
using test::ExpertFiles;
using test::Faults;
using test::faulty;
using test::open_faulty;
using test::open_store;
using test::Shape;
using test::some_experts;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAreArray;

// reader, packed, slots, queue depth, policy, direct
using Case = std::tuple<std::string, bool, uint64_t, uint32_t, std::string, bool>;
class EveryStore : public ::testing::TestWithParam<Case> {};

// Written once for all cases: what was just written has to reach the disk before it can be read without the page cache.
const ExpertFiles& plain_files() {
  static const ExpertFiles files(Shape{});
  return files;
}
const ExpertFiles& packed_files() {
  static const ExpertFiles files([] {
    Shape shape;
    shape.packed = true;
    return shape;
  }());
  return files;
}

TEST_P(EveryStore, HandsOutTheBytesOfTheFile) {
  const auto [reader, packed, n_slots, depth, policy, direct] = GetParam();
  const Shape shape;
  const ExpertFiles& files = packed ? packed_files() : plain_files();
  ExpertStoreOptions options;
  options.bytes = files.slots(n_slots);
  options.reader = reader;
  options.policy = policy;
  options.queue_depth = depth;
  options.request_bytes = 8192;
  options.direct = direct;
  options.verify = true;
  auto opened = ExpertStore::open(files.source(), options);
  if (!opened && opened.error().code == Code::unavailable && reader == "uring") GTEST_SKIP() << opened.error().message;
  ASSERT_TRUE(opened) << opened.error().message;
  ExpertStore& store = **opened;
  EXPECT_EQ(store.n_slots(), std::min<int64_t>(static_cast<int64_t>(n_slots), 3 * shape.n_expert));

  std::mt19937 random(depth + static_cast<uint32_t>(n_slots));
  uint64_t asked = 0;
  for (int token = 0; token < 25; ++token) {
    for (int64_t layer = 0; layer < shape.n_layer; ++layer) {
      if (!files.sparse(layer)) continue;
      const auto ids = some_experts(&random, shape.n_expert, shape.top_k);
      auto lease = store.request(layer, ids);
      ASSERT_TRUE(lease) << lease.error().message;
      asked += ids.size();
      if (random() % 8 == 0) continue;  // a step that is given up leaves its reads behind
      if (random() % 2 == 0) store.guess((layer + 2) % shape.n_layer, some_experts(&random, shape.n_expert, 2));
      EXPECT_THAT(drain(files, store, layer, &*lease), UnorderedElementsAreArray(ids));
    }
  }
  const ExpertStats stats = store.stats();
  EXPECT_EQ(stats.requested, asked);
  EXPECT_EQ(stats.hits + stats.late + stats.misses, stats.requested);
  EXPECT_LE(stats.wrong_guesses, stats.guesses);
  EXPECT_GT(stats.bytes_read, 0u);
}

INSTANTIATE_TEST_SUITE_P(All, EveryStore,
                         ::testing::Combine(::testing::Values("uring", "pread"), ::testing::Bool(), ::testing::Values(3, 7, 12, 100),
                                            ::testing::Values(1, 2, 16), ::testing::Values("lru", "lfu", "reuse"),
                                            ::testing::Values(true)));
INSTANTIATE_TEST_SUITE_P(Buffered, EveryStore,
                         ::testing::Combine(::testing::Values("auto", "uring", "pread"), ::testing::Bool(), ::testing::Values(4),
                                            ::testing::Values(4), ::testing::Values("auto"), ::testing::Values(false)));

TEST(ExpertStore, AnyLengthOfReadBringsTheSameBytes) {
  for (const uint64_t request : {4096u, 12288u, 1u << 20}) {
    Shape shape;
    shape.gate = 70000, shape.up = 4096, shape.down = 1;
    const ExpertFiles files(shape);
    ExpertStoreOptions options;
    options.request_bytes = request;
    const auto store = open_store(files, 4, options);
    for (int32_t e = 0; e < 8; ++e) {
      const std::vector<int32_t> ids{e};
      auto lease = store->request(2, ids);
      ASSERT_TRUE(lease);
      EXPECT_EQ(drain(files, *store, 2, &*lease), ids);
    }
  }
}

TEST(ExpertStore, OneSlabIsOneRead) {
  Shape shape;
  shape.packed = true;
  const ExpertFiles files(shape);
  uint64_t reads = 0;
  Faults faults;
  faults.reads = &reads;
  const auto store = open_faulty(files, 8, faults);
  const std::vector<int32_t> ids{0, 5, 7};
  auto lease = store->request(0, ids);
  drain(files, *store, 0, &*lease);
  EXPECT_EQ(reads, 3 + store->stats().retries);
}

TEST(ExpertStore, RepeatedRequestsHit) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 6);
  const std::vector<int32_t> ids{1, 4, 6};
  for (int i = 0; i < 5; ++i) {
    auto lease = store->request(0, ids);
    EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
  }
  const ExpertStats stats = store->stats();
  EXPECT_EQ(stats.misses, 3u);
  EXPECT_EQ(stats.hits, 12u);
  EXPECT_EQ(std::accumulate(stats.latency.begin(), stats.latency.end(), uint64_t{0}), 9 + stats.retries);  // three extents each
  EXPECT_GT(stats.io_s, 0);
}

TEST(ExpertStore, ResidentExpertsComeFirst) {
  bool hold = true;
  Faults faults;
  faults.hold = &hold;
  const ExpertFiles files(Shape{});
  const auto store = open_faulty(files, 6, faults);
  const std::vector<int32_t> first{2}, all{1, 2, 3};
  {
    auto lease = store->request(0, first);
    drain(files, *store, 0, &*lease);
  }
  auto lease = store->request(0, all);
  const auto places = lease->next();
  ASSERT_TRUE(places);
  ASSERT_EQ(places->size(), 1u);
  EXPECT_EQ(places->front().expert, 2);
  EXPECT_THAT(drain(files, *store, 0, &*lease), ::testing::UnorderedElementsAre(1, 3));
}

TEST(ExpertStore, TwoLeasesKeepTheirExperts) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 6);
  const std::vector<int32_t> a{0, 1, 2}, b{3, 4, 5}, c{6};
  auto first = store->request(0, a);
  auto second = store->request(2, b);
  const auto third = store->request(3, c);
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, Code::resource_exhausted);
  EXPECT_THAT(third.error().message, HasSubstr("0 of 6 are not in use"));
  std::vector<ExpertPlace> kept;
  while (true) {
    const auto places = first->next();
    ASSERT_TRUE(places);
    if (places->empty()) break;
    kept.insert(kept.end(), places->begin(), places->end());
  }
  drain(files, *store, 2, &*second);
  for (const auto& p : kept) EXPECT_TRUE(files.right(*store, 0, p));
  *first = {};
  auto fourth = store->request(3, c);
  ASSERT_TRUE(fourth);
  drain(files, *store, 3, &*fourth);
  EXPECT_EQ(store->stats().hits, 0u);
}

TEST(ExpertStore, AnExpertInTwoLeasesStaysUntilBothEnd) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 4);
  const std::vector<int32_t> shared{1, 2}, others{3, 4, 5}, two{3, 4};
  auto first = store->request(0, shared);
  auto second = store->request(0, shared);
  *first = {};
  EXPECT_FALSE(store->request(2, others));
  auto third = store->request(2, two);
  ASSERT_TRUE(third);
  drain(files, *store, 2, &*third);
  EXPECT_EQ(drain(files, *store, 0, &*second).size(), 2u);
}

TEST(ExpertStore, AnAbandonedLeaseNeverSharesItsSlotsWithTheNext) {
  const ExpertFiles files(Shape{});
  for (const char* reader : {"uring", "pread"}) {
    ExpertStoreOptions options;
    options.reader = reader;
    options.queue_depth = 3;
    options.bytes = files.slots(3);
    auto opened = ExpertStore::open(files.source(), options);
    if (!opened) continue;
    std::mt19937 random(1);
    for (int i = 0; i < 300; ++i) {
      const auto ids = some_experts(&random, 8, 3);
      { auto dropped = (*opened)->request(0, ids); }
      const auto next = some_experts(&random, 8, 3);
      auto lease = (*opened)->request(2, next);
      ASSERT_TRUE(lease) << lease.error().message;
      EXPECT_EQ(drain(files, **opened, 2, &*lease).size(), 3u);
    }
  }
}

TEST(ExpertStore, WrongRequestsAreRefusedAndChangeNothing) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 4);
  const std::vector<int32_t> twice{1, 1}, outside{8}, negative{-1}, many{0, 1, 2, 3, 4}, one{0};
  for (const auto* ids : {&twice, &outside, &negative}) {
    const auto lease = store->request(0, *ids);
    ASSERT_FALSE(lease);
    EXPECT_EQ(lease.error().code, Code::invalid_argument);
  }
  EXPECT_EQ(store->request(0, many).error().code, Code::resource_exhausted);
  EXPECT_EQ(store->request(-1, one).error().code, Code::invalid_argument);
  EXPECT_EQ(store->request(4, one).error().code, Code::invalid_argument);
  EXPECT_EQ(store->request(1, one).error().code, Code::invalid_argument);  // dense
  EXPECT_EQ(store->stats().requested, 0u);
  auto none = store->request(0, {});
  ASSERT_TRUE(none);
  EXPECT_TRUE(none->next()->empty());
  ExpertStore::Lease empty;
  EXPECT_TRUE(empty.next()->empty());
}

TEST(ExpertStore, OpenSaysWhatDoesNotFit) {
  const ExpertFiles files(Shape{});
  ExpertStoreOptions options;
  options.bytes = files.slots(3) - 1;
  const auto small = ExpertStore::open(files.source(), options);
  ASSERT_FALSE(small);
  EXPECT_EQ(small.error().code, Code::resource_exhausted);
  EXPECT_THAT(small.error().message, HasSubstr("2 slots"));
  EXPECT_THAT(small.error().message, HasSubstr("3 experts"));
  options.bytes = files.slots(3);
  options.policy = "clock";
  EXPECT_EQ(ExpertStore::open(files.source(), options).error().code, Code::invalid_argument);
  options.policy = "lru";
  options.reader = "mmap";
  EXPECT_EQ(ExpertStore::open(files.source(), options).error().code, Code::invalid_argument);
  options.reader = "pread";
  options.request_bytes = 100;
  EXPECT_EQ(ExpertStore::open(files.source(), options).error().code, Code::invalid_argument);
  options.request_bytes = 0;
  options.queue_depth = 100000;
  EXPECT_EQ(ExpertStore::open(files.source(), options).error().code, Code::invalid_argument);
}

TEST(ExpertStore, SourcesThatContradictThemselvesAreRefused) {
  const ExpertFiles files(Shape{});
  ExpertStoreOptions options;
  options.bytes = files.slots(6);
  const auto code = [&](auto change) {
    ExpertSource s = files.source();
    change(&s);
    const auto store = ExpertStore::open(std::move(s), options);
    return store ? Code::internal : store.error().code;
  };
  constexpr uint64_t kHuge = ~uint64_t{0};
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].gate.file = 9; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].gate.bytes = 0; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].gate.bytes = kHuge; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].up.offset = kHuge; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].up.stride = kHuge; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].n_expert = int64_t{1} << 40; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].xxh3 = {1}; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->top_k = 9; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->top_k = 0; }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers.clear(); }), Code::invalid_argument);
  EXPECT_EQ(code([](ExpertSource* s) { s->layers[0].down.offset += uint64_t{1} << 30; }), Code::data_loss);
  EXPECT_EQ(code([](ExpertSource* s) { s->files[0] += ".gone"; }), Code::not_found);
}

TEST(ExpertStore, DescriptionSaysHowItReads) {
  const ExpertFiles files(Shape{});
  ExpertStoreOptions options;
  options.reader = "pread";
  options.queue_depth = 2;
  options.direct = false;
  EXPECT_THAT(open_store(files, 5, options)->description(), HasSubstr("pread, 2 threads, buffered (not asked for), queue 2, 5 slots of "));
}

// As containers do it; for the calling thread and its children only.
bool forbid_io_uring() {
  sock_filter code[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_io_uring_setup},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  sock_fprog program{4, code};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(ExpertStore, ReadsWithThreadsWhereIoUringIsForbidden) {
  const ExpertFiles files(Shape{});
  bool possible = false;
  std::thread([&] {
    possible = forbid_io_uring();
    if (!possible) return;
    ExpertStoreOptions options;
    options.bytes = files.slots(4);
    options.reader = "uring";
    const auto refused = ExpertStore::open(files.source(), options);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, Code::unavailable);
    EXPECT_THAT(refused.error().message, HasSubstr("io_uring: Operation not permitted"));
    const auto store = open_store(files, 4);
    EXPECT_THAT(store->description(), HasSubstr("pread"));
    const std::vector<int32_t> ids{7, 0, 3};
    auto lease = store->request(0, ids);
    EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
  }).join();
  if (!possible) GTEST_SKIP() << "no seccomp here";
}

TEST(Guesses, ARightGuessIsNoMiss) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 12);
  const std::vector<int32_t> ids{1, 2}, guess{4, 5};
  auto lease = store->request(0, ids);
  store->guess(2, guess);
  drain(files, *store, 0, &*lease);
  auto next = store->request(2, guess);
  EXPECT_EQ(drain(files, *store, 2, &*next).size(), 2u);
  const ExpertStats stats = store->stats();
  EXPECT_EQ(stats.guesses, 2u);
  EXPECT_EQ(stats.wrong_guesses, 0u);
  EXPECT_EQ(stats.misses, 2u);
  EXPECT_EQ(stats.hits + stats.late, 2u);
}

TEST(Guesses, AreReadBehindRequestsAndDroppedWhenWrong) {
  bool hold = true;
  uint64_t reads = 0;
  Faults faults;
  faults.hold = &hold;
  faults.reads = &reads;
  ExpertStoreOptions options;
  options.queue_depth = 1;
  Shape shape;
  shape.packed = true;
  const ExpertFiles files(shape);
  const auto store = open_faulty(files, 12, faults, options);
  const std::vector<int32_t> first{0, 1, 2}, guess{4, 5}, second{6};
  auto lease = store->request(0, first);
  store->guess(2, guess);
  auto next = store->request(2, second);  // behind nothing but the first; the guesses were never read
  EXPECT_EQ(drain(files, *store, 2, &*next).size(), 1u);
  EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
  EXPECT_EQ(reads, 4 + store->stats().retries);
  EXPECT_EQ(store->stats().guesses, 2u);
  EXPECT_EQ(store->stats().wrong_guesses, 2u);
}

TEST(Guesses, NeverEvictWhatTheLastCycleUsed) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 9);
  const std::vector<int32_t> ids{0, 1, 2}, guess{5, 6, 7};
  for (const int64_t layer : {0, 2, 3}) {
    auto lease = store->request(layer, ids);
    drain(files, *store, layer, &*lease);
  }
  store->guess(0, guess);
  EXPECT_EQ(store->stats().guesses, 0u);
  for (const int64_t layer : {0, 2, 3}) {
    auto lease = store->request(layer, ids);
    drain(files, *store, layer, &*lease);
  }
  EXPECT_EQ(store->stats().misses, 9u);
}

TEST(Guesses, NonsenseIsIgnored) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 12);
  const std::vector<int32_t> ids{-5, 99, 1};
  store->guess(-1, ids);
  store->guess(77, ids);
  store->guess(1, ids);  // dense
  store->guess(0, ids);
  EXPECT_EQ(store->stats().guesses, 1u);
}

TEST(Demand, OvertakesWhatNobodyWaitsFor) {
  bool hold = true;
  std::vector<BlockReader::Read> log;
  Faults faults;
  faults.hold = &hold;
  faults.log = &log;
  ExpertStoreOptions options;
  options.queue_depth = 1;
  Shape shape;
  shape.packed = true;
  const ExpertFiles files(shape);
  const auto store = open_faulty(files, 12, faults, options);
  const std::vector<int32_t> a{0, 1, 2}, b{3, 4};
  auto first = store->request(0, a);
  auto second = store->request(2, b);
  drain(files, *store, 2, &*second);
  drain(files, *store, 0, &*first);
  // The order in which slabs were first asked for: a read that came back short is made again.
  const auto& source = files.source();
  std::vector<int64_t> order;  // layers
  std::set<uint64_t> seen;
  for (const BlockReader::Read& read : log) {
    const ExpertSource::Part& last = source.layers[2].gate;
    const auto& of = source.layers[read.offset < last.offset ? 0 : 2].gate;
    if (seen.insert(of.offset + (read.offset - of.offset) / of.stride * of.stride).second)
      order.push_back(read.offset < last.offset ? 0 : 2);
  }
  EXPECT_EQ(log.size(), 5 + store->stats().retries);
  EXPECT_THAT(order, ::testing::ElementsAre(0, 2, 2, 0, 0));  // the first was in flight already
}

TEST(Pin, KeepsExpertsUntilUnpinned) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 5);
  const std::vector<int32_t> pinned{6, 7}, more{5};
  ASSERT_TRUE(store->pin(0, pinned));
  ASSERT_TRUE(store->pin(0, pinned));  // again is no more
  const auto full = store->pin(0, more);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, Code::resource_exhausted);
  std::mt19937 random(3);
  for (int i = 0; i < 20; ++i) {
    const auto ids = some_experts(&random, 8, 3);
    auto lease = store->request(2, ids);
    ASSERT_TRUE(lease);
    drain(files, *store, 2, &*lease);
  }
  const uint64_t hits = store->stats().hits;
  auto lease = store->request(0, pinned);
  drain(files, *store, 0, &*lease);
  EXPECT_EQ(store->stats().hits, hits + 2);
  store->unpin(0, pinned);
  store->unpin(0, pinned);
  EXPECT_TRUE(store->pin(0, more));
}

TEST(WarmSet, BringsBackTheMostUsed) {
  const ExpertFiles files(Shape{});
  const auto path = files.folder() / "model.warm";
  const std::vector<int32_t> often{3, 5}, once{1};
  {
    const auto store = open_store(files, 10);
    for (int i = 0; i < 10; ++i) {
      auto lease = store->request(0, often);
      drain(files, *store, 0, &*lease);
      if (i == 0) {
        auto other = store->request(2, once);
        drain(files, *store, 2, &*other);
      } else {
        auto other = store->request(2, {});
      }
    }
    const auto saved = store->save_warm(path);
    ASSERT_TRUE(saved) << saved.error().message;
  }
  const auto store = open_store(files, 3);
  const auto loaded = store->load_warm(path);
  ASSERT_TRUE(loaded) << loaded.error().message;
  EXPECT_EQ(*loaded, 3);
  auto lease = store->request(0, often);
  EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 2u);
  EXPECT_EQ(store->stats().hits, 2u);
}

TEST(WarmSet, MostUsedComeFirstAndPinsAreCounted) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 10);
  EXPECT_TRUE(store->most_used(5).empty());
  const std::vector<int32_t> often{3, 5}, once{1};
  for (int i = 0; i < 10; ++i) {
    auto lease = store->request(0, often);
    drain(files, *store, 0, &*lease);
    auto other = store->request(2, i == 4 ? std::span<const int32_t>(once) : std::span<const int32_t>());
    drain(files, *store, 2, &*other);
  }
  const auto most = store->most_used(100);
  ASSERT_EQ(most.size(), 3u);
  EXPECT_EQ(most[0].layer, 0);
  EXPECT_EQ(most[0].expert + most[1].expert, 8);
  EXPECT_EQ(most[2].layer, 2);
  EXPECT_EQ(most[2].expert, 1);
  EXPECT_EQ(store->most_used(2).size(), 2u);
  EXPECT_TRUE(store->most_used(-1).empty());
  EXPECT_EQ(store->n_pinned(), 0);
  ASSERT_TRUE(store->pin(0, often));
  ASSERT_TRUE(store->pin(0, often)) << "a second time changes nothing";
  EXPECT_EQ(store->n_pinned(), 2);
  store->unpin(0, once);
  store->unpin(0, often);
  EXPECT_EQ(store->n_pinned(), 0);
}

TEST(WarmSet, DamagedStaleOrAbsentIsRefusedAndHarmless) {
  const ExpertFiles files(Shape{});
  const auto path = files.folder() / "model.warm";
  const auto store = open_store(files, 4);
  EXPECT_EQ(store->load_warm(path).error().code, Code::not_found);
  const std::vector<int32_t> ids{3, 5};
  {
    auto lease = store->request(0, ids);
    drain(files, *store, 0, &*lease);
  }
  ASSERT_TRUE(store->save_warm(path));
  std::string text;
  {
    std::ifstream in(path);
    text.assign(std::istreambuf_iterator<char>(in), {});
  }
  // Every cut and every changed byte.
  for (size_t i = 0; i < text.size(); ++i) {
    for (const bool cut : {true, false}) {
      std::string bad = cut ? text.substr(0, i) : text;
      if (!cut) bad[i] = static_cast<char>(bad[i] ^ 4);
      std::ofstream(path) << bad;
      const auto r = store->load_warm(path);
      ASSERT_FALSE(r) << "byte " << i;
      EXPECT_EQ(r.error().code, Code::data_loss);
    }
  }
  std::ofstream(path) << text;
  ExpertSource other = files.source();
  other.fingerprint ^= 1;
  ExpertStoreOptions options;
  options.bytes = files.slots(4);
  auto stranger = ExpertStore::open(std::move(other), options);
  ASSERT_TRUE(stranger);
  EXPECT_EQ((*stranger)->load_warm(path).error().code, Code::failed_precondition);
  EXPECT_EQ((*stranger)->stats().bytes_read, 0u);
  EXPECT_TRUE(store->load_warm(path));
}

}  // namespace
}  // namespace fth
