// The pieces of the store by themselves: layout of extents, policies, measuring, readers, checksums.
#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>

#include "core/experts/block_reader.h"
#include "core/experts/checksum.h"
#include "core/experts/layout.h"
#include "core/experts/measure.h"
#include "core/experts/slot_memory.h"
#include "core/experts/usage.h"
#include "tests/experts/files.h"

namespace fth {
namespace {

using ::testing::HasSubstr;

TEST(Layout, ThreeStacksAreThreeExtentsWithTheirOwnBlocks) {
  ExpertSource::Layer layer;
  layer.n_expert = 4;
  layer.gate = {0, 100, 5000, 5000};
  layer.up = {0, 100000, 5000, 5000};
  layer.down = {1, 8191, 2, 2};
  const ExpertLayout at = lay_out(layer, 1);
  ASSERT_EQ(at.n_extents, 3u);
  EXPECT_EQ(at.extents[0].begin, 5100u);
  EXPECT_EQ(at.extents[0].block_begin(), 4096u);
  EXPECT_EQ(at.extents[0].block_end(), 12288u);
  EXPECT_EQ(at.gate, 1004u);  // 5100 - 4096
  EXPECT_EQ(at.extents[1].slot_at, 8192u);
  EXPECT_EQ(at.up, 8192u + 105000u % 4096u);
  EXPECT_EQ(at.down, at.extents[2].slot_at + 1);
  EXPECT_EQ(at.bytes, at.extents[2].slot_at + 4096u);
  EXPECT_EQ(lay_out(layer, 0).extents[2].block_end(), 12288u);  // two bytes over a block's border are two blocks
}

TEST(Layout, NeighboursAreOneExtent) {
  ExpertSource::Layer layer;
  layer.n_expert = 2;
  layer.gate = {0, 4096, 3000, 12288};
  layer.up = {0, 4096 + 3000, 3000, 12288};
  layer.down = {0, 4096 + 6100, 3000, 12288};
  const ExpertLayout at = lay_out(layer, 1);
  ASSERT_EQ(at.n_extents, 1u);
  EXPECT_EQ(at.extents[0].begin, 16384u);
  EXPECT_EQ(at.extents[0].end, 16384u + 9100u);
  EXPECT_EQ(at.gate, 0u);
  EXPECT_EQ(at.up, 3000u);
  EXPECT_EQ(at.down, 6100u);
  EXPECT_EQ(at.bytes, 12288u);
}

TEST(Usage, KnowsItsPolicies) {
  EXPECT_EQ(policy_from_name("auto").value(), kDefaultPolicy);
  EXPECT_EQ(policy_from_name("lru").value(), Policy::lru);
  EXPECT_EQ(policy_from_name("lfu").value(), Policy::lfu);
  EXPECT_EQ(policy_from_name("reuse").value(), Policy::reuse);
  EXPECT_THAT(policy_from_name("arc").error().message, HasSubstr("arc"));
}

TEST(Usage, LruKeepsTheLatest) {
  Usage u(Policy::lru, 2, 4, 2);
  for (const size_t key : {1u, 2u, 1u, 3u}) {
    u.begin(0);
    u.used(key);
  }
  EXPECT_LT(u.worth(0), u.worth(2));
  EXPECT_LT(u.worth(2), u.worth(1));
  EXPECT_LT(u.worth(1), u.worth(3));
}

TEST(Usage, LfuKeepsTheMostUsedUntilItFades) {
  Usage u(Policy::lfu, 2, 4, 2);
  const auto token = [&u](size_t key) {
    u.begin(0);
    u.used(key);
    u.begin(1);
  };
  for (int i = 0; i < 5; ++i) token(1);
  token(2);
  EXPECT_GT(u.worth(1), u.worth(2));
  for (int i = 0; i < 1000; ++i) {
    u.begin(0);
    u.begin(1);
  }
  token(2);
  EXPECT_LT(u.worth(1), u.worth(2));
  for (int i = 0; i < 10000; ++i) {
    u.begin(0);
    u.begin(1);
  }
  EXPECT_GE(u.worth(1), 0.0);
  EXPECT_LT(u.worth(1), 1e-6);
}

TEST(Usage, ReuseLooksAtChanceThenAtTheLayer) {
  Usage u(Policy::reuse, 4, 4, 4);
  const auto key = [](size_t layer, size_t expert) { return layer * 4 + expert; };
  for (int token = 0; token < 8; ++token) {
    for (int64_t layer = 0; layer < 4; ++layer) {
      u.begin(layer);
      u.used(key(static_cast<size_t>(layer), 0));
      if (token % 4 == 0) u.used(key(static_cast<size_t>(layer), 1));
    }
  }
  u.begin(0);
  u.used(key(0, 0));
  EXPECT_GT(u.worth(key(2, 0)), u.worth(key(2, 1)));
  EXPECT_GT(u.worth(key(1, 0)), u.worth(key(3, 0)));  // as often, and its layer is next
  EXPECT_GT(u.weight(key(0, 0)), 0.3);
  EXPECT_LE(u.weight(key(0, 0)), 1.0);
}

TEST(Usage, ACycleIsOneRequestOfEachLayer) {
  Usage u(Policy::lru, 3, 2, 3);
  EXPECT_FALSE(u.within_cycle(0));
  u.begin(0);
  u.used(0);
  for (int i = 0; i < 3; ++i) {
    u.begin((i + 1) % 3);
    EXPECT_TRUE(u.within_cycle(0)) << i;
  }
  u.begin(1);
  EXPECT_FALSE(u.within_cycle(0));
}

TEST(Checksum, IsThatOfTheWhole) {
  std::vector<std::byte> bytes(100000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = test::byte_at(i, 5);
  const std::span<const std::byte> all(bytes);
  const uint64_t whole = xxh3_64({all});
  EXPECT_EQ(xxh3_64({all.first(1), all.subspan(1, 70000), all.subspan(70001)}), whole);
  EXPECT_EQ(xxh3_64({}), 0x2d06800538d394c2u);  // the published value for no input, seed 0
  bytes[99999] ^= std::byte{1};
  EXPECT_NE(xxh3_64({all}), whole);
}

TEST(SlotMemory, IsZeroedAlignedAndResident) {
  auto m = SlotMemory::allocate(3 << 20, false);
  ASSERT_TRUE(m);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(m->bytes().data()) % (2 << 20), 0u);
  EXPECT_TRUE(std::all_of(m->bytes().begin(), m->bytes().end(), [](std::byte b) { return b == std::byte{0}; }));
  const auto huge = SlotMemory::allocate(uint64_t{1} << 60, true);
  ASSERT_FALSE(huge);
  EXPECT_EQ(huge.error().code, Code::resource_exhausted);
  EXPECT_EQ(SlotMemory::allocate(~uint64_t{0}, true).error().code, Code::resource_exhausted);
}

class Readers : public ::testing::TestWithParam<const char*> {};

TEST_P(Readers, BringBytesErrorsAndEndsOfFiles) {
  const test::TempDir folder;
  const std::filesystem::path path = folder / "file";
  test::write_file(path, 20000, 3);
  auto files = FileSet::open({&path, 1}, true);
  ASSERT_TRUE(files);
  auto memory = SlotMemory::allocate(1 << 20, false);
  ASSERT_TRUE(memory);
  std::byte* const base = memory->bytes().data();
  auto opened = open_reader(GetParam(), *files, memory->bytes(), 4);
  if (!opened && opened.error().code == Code::unavailable) GTEST_SKIP() << opened.error().message;
  ASSERT_TRUE(opened);
  BlockReader& reader = **opened;
  std::vector<BlockReader::Done> done;
  reader.collect(&done, false);  // nothing yet: returns at once
  EXPECT_TRUE(done.empty());
  const std::vector<BlockReader::Read> reads{
      {0, 4096, 4096, base, 1}, {0, 16384, 8192, base + 8192, 2}, {0, 40960, 4096, base + 65536, 3}, {0, 0, 4096, nullptr, 4}};
  reader.submit(reads);
  while (done.size() < 4) reader.collect(&done, true);
  std::map<uint64_t, int64_t> counts;
  for (const auto& d : done) counts[d.tag] = d.count;
  EXPECT_EQ(counts[1], 4096);
  EXPECT_EQ(counts[2], 20000 - 16384);
  EXPECT_EQ(counts[3], 0);
  EXPECT_EQ(counts[4], -EFAULT);
  for (uint64_t i = 0; i < 4096; ++i) ASSERT_EQ(base[i], test::byte_at(4096 + i, 3));
  reader.submit({reads.data(), 2});  // left in flight: the reader's end waits
}
INSTANTIATE_TEST_SUITE_P(All, Readers, ::testing::Values("uring", "pread"));

TEST(Files, SayWhatHappenedToThem) {
  const test::TempDir folder;
  const std::vector<std::filesystem::path> paths{folder / "a", folder / "b"};
  for (const auto& p : paths) test::write_file(p, 5000, 1);
  auto files = FileSet::open(paths, true);
  ASSERT_TRUE(files);
  EXPECT_EQ(files->changed(0), "");
  EXPECT_EQ(files->direct(), files->buffered().empty());
  std::filesystem::resize_file(paths[0], 100);
  EXPECT_THAT(files->changed(0), HasSubstr("changed from 5000 to 100 bytes"));
  EXPECT_TRUE(files->written(0));
  std::filesystem::remove(paths[1]);
  EXPECT_THAT(files->changed(1), HasSubstr("is gone"));
  EXPECT_FALSE(files->written(1));
  const std::vector<std::filesystem::path> directory{folder.path()};
  EXPECT_FALSE(FileSet::open(directory, true));
}

TEST(Measure, FindsADepthAndALength) {
  const test::TempDir folder;
  const std::filesystem::path path = folder / "file";
  test::write_file(path, 3 << 20, 1);
  for (const char* reader : {"auto", "pread"}) {
    const auto m = measure_reads(path, reader, 0.05);
    ASSERT_TRUE(m) << m.error().message;
    ASSERT_EQ(m->rows.size(), 10u);
    double fastest = 0;
    for (const auto& r : m->rows) {
      EXPECT_GT(r.bytes_per_s, 0);
      fastest = std::max(fastest, r.bytes_per_s);
    }
    EXPECT_GE(m->best.bytes_per_s, 0.95 * fastest);
    EXPECT_GE(m->best.queue_depth, 1u);
    EXPECT_GT(m->steady_bytes_per_s, 0);
    EXPECT_LE(m->steady_bytes_per_s, fastest);
    EXPECT_GE(m->wait_s, 0);
    EXPECT_LT(m->wait_s, 1);
  }
  EXPECT_EQ(measure_reads(folder / "none").error().code, Code::not_found);
  test::write_file(folder / "short", 10, 1);
  EXPECT_EQ(measure_reads(folder / "short").error().code, Code::data_loss);
  EXPECT_TRUE(measure_reads(path, "tape").error().code == Code::invalid_argument);
}

}  // namespace
}  // namespace fth
