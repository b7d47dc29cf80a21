// What the store promises when storage does not behave: a retry or a typed error that names the place, never wrong bytes, never a hang.
#include <gmock/gmock.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <thread>

#include "tests/experts/faulty_reader.h"
#include "tests/experts/files.h"

namespace fth {
namespace {

using test::drain;
using test::ExpertFiles;
using test::Faults;
using test::faulty;
using test::Shape;
using ::testing::HasSubstr;

std::unique_ptr<ExpertStore> open_store(const ExpertFiles& files, uint64_t n_slots, Faults faults, bool verify = false) {
  ExpertStoreOptions options;
  options.bytes = files.slots(n_slots);
  options.request_bytes = 8192;
  options.verify = verify;
  auto store = ExpertStore::open(files.source(), options, faulty(std::move(faults)));
  if (!store) throw std::runtime_error(store.error().message);
  return std::move(*store);
}

// The error that a lease ends with, after any experts that came.
Error failure(ExpertStore::Lease* lease) {
  for (int i = 0; i < 100; ++i) {
    const auto places = lease->next();
    if (!places) return places.error();
    if (places->empty()) break;
  }
  ADD_FAILURE() << "no error came";
  return {};
}

const std::vector<int32_t> kThree{0, 3, 7};

class Disturbed : public ::testing::TestWithParam<bool> {};

TEST_P(Disturbed, StillBringsTheRightBytes) {
  Shape shape;
  shape.packed = GetParam();
  const ExpertFiles files(shape);
  std::mt19937 random(11);
  Faults faults;
  faults.reorder = true;
  faults.plan = [&random](const BlockReader::Read& r) -> int64_t {
    switch (random() % 8) {
      case 0: return -EINTR;
      case 1: return -EAGAIN;
      case 2: return r.bytes > 4096 ? 4096 : 0;
      case 3: return 1 + static_cast<int64_t>(random() % r.bytes);
      default: return 0;
    }
  };
  const auto store = open_store(files, 7, faults);
  for (int token = 0; token < 60; ++token) {
    for (const int64_t layer : {0, 2, 3}) {
      const int32_t first = static_cast<int32_t>(random() % 8);
      const std::vector<int32_t> ids{first, (first + 2) % 8, (first + 3) % 8};
      auto lease = store->request(layer, ids);
      ASSERT_TRUE(lease) << lease.error().message;
      if (random() % 4 == 0) continue;
      EXPECT_EQ(drain(files, *store, layer, &*lease).size(), 3u);
    }
  }
  EXPECT_GT(store->stats().retries, 50u);
}
INSTANTIATE_TEST_SUITE_P(Both, Disturbed, ::testing::Bool());

TEST(Faults, EioThatGoesAwayIsRetried) {
  const ExpertFiles files(Shape{});
  int left = 2;
  Faults faults;
  faults.plan = [&left](const BlockReader::Read&) { return left-- > 0 ? -EIO : 0; };
  const auto store = open_store(files, 6, faults);
  auto lease = store->request(0, kThree);
  EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
  EXPECT_EQ(store->stats().retries, 2u);
}

TEST(Faults, EioThatStaysNamesThePlaceAndSparesTheRest) {
  const ExpertFiles files(Shape{});
  bool broken = true;
  const uint64_t bad = files.source().layers[0].up.offset + 3 * files.source().layers[0].up.stride;
  Faults faults;
  faults.plan = [&](const BlockReader::Read& r) { return broken && r.file == 0 && r.offset <= bad && bad < r.offset + r.bytes ? -EIO : 0; };
  const auto store = open_store(files, 6, faults);
  {
    const std::vector<int32_t> ids{0, 3};
    auto lease = store->request(0, ids);
    int arrived = 0;
    while (true) {
      const auto places = lease->next();
      if (!places) {
        EXPECT_EQ(places.error().code, Code::unavailable);
        EXPECT_THAT(places.error().message, HasSubstr("layer 0, expert 3"));
        EXPECT_THAT(places.error().message, HasSubstr(files.file(0).string()));
        EXPECT_THAT(places.error().message, HasSubstr("at byte " + std::to_string(bad / 4096 * 4096)));
        break;
      }
      ASSERT_FALSE(places->empty());
      arrived += static_cast<int>(places->size());
    }
    EXPECT_EQ(arrived, 1);
    EXPECT_EQ(failure(&*lease).code, Code::unavailable);  // and again
    const std::vector<int32_t> same{3};
    auto second = store->request(0, same);  // shares the slot of the failed one
    ASSERT_TRUE(second);
    EXPECT_EQ(failure(&*second).code, Code::unavailable);
  }
  broken = false;
  auto again = store->request(0, kThree);
  EXPECT_EQ(drain(files, *store, 0, &*again).size(), 3u);
}

TEST(Faults, AReadThatNeverGetsOnEnds) {
  Shape shape;
  shape.packed = true;  // one read for an expert
  const ExpertFiles files(shape);
  for (const int64_t fault : {int64_t{-EINTR}, int64_t{-EAGAIN}, int64_t{-ECANCELED}, int64_t{100}}) {
    Faults faults;
    faults.plan = [fault](const BlockReader::Read&) { return fault; };
    const auto store = open_store(files, 6, faults);
    const std::vector<int32_t> one{2};
    auto lease = store->request(0, one);
    EXPECT_EQ(failure(&*lease).code, fault > 0 ? Code::data_loss : Code::unavailable);
  }
}

// Refusals come back at once: without a pause a hundred of them are over before the kernel has a worker again.
TEST(Faults, AKernelThatIsShortOfWorkersIsWaitedFor) {
  const ExpertFiles files(Shape{});
  for (const int64_t fault : {int64_t{-EAGAIN}, int64_t{-ECANCELED}}) {
    std::optional<std::chrono::steady_clock::time_point> first;
    Faults faults;
    faults.plan = [&](const BlockReader::Read&) {
      const auto now = std::chrono::steady_clock::now();
      if (!first) first = now;
      return now - *first < std::chrono::milliseconds(25) ? fault : 0;
    };
    const auto store = open_store(files, 6, faults);
    auto lease = store->request(0, kThree);
    EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
    EXPECT_GT(store->stats().retries, 20u);
  }
}

TEST(Faults, AFailedGuessIsNobodysError) {
  const ExpertFiles files(Shape{});
  bool broken = true;
  Faults faults;
  faults.plan = [&broken](const BlockReader::Read&) { return broken ? -EIO : 0; };
  const auto store = open_store(files, 12, faults);
  store->guess(0, kThree);
  for (int i = 0; i < 100; ++i) store->poll();
  broken = false;
  auto lease = store->request(0, kThree);
  EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
  EXPECT_EQ(store->stats().misses, 3u);
}

TEST(Faults, AFileThatIsCutIsDataLoss) {
  for (const char* reader : {"uring", "pread"}) {
    const ExpertFiles files(Shape{});
    ExpertStoreOptions options;
    options.bytes = files.slots(6);
    options.reader = reader;
    auto store = ExpertStore::open(files.source(), options);
    if (!store) continue;  // no io_uring here
    std::filesystem::resize_file(files.file(0), files.source().layers[0].gate.offset + 5000);
    auto lease = (*store)->request(0, kThree);
    ASSERT_TRUE(lease);
    const Error e = failure(&*lease);
    EXPECT_EQ(e.code, Code::data_loss);
    EXPECT_THAT(e.message, HasSubstr(files.file(0).string() + " changed from "));
    EXPECT_THAT(e.message, HasSubstr("layer 0, expert "));
  }
}

TEST(Faults, AFileThatIsWrittenToIsDataLoss) {
  const ExpertFiles files(Shape{});
  const auto store = open_store(files, 6, {});
  const std::vector<int32_t> before{1}, after{2};
  {
    auto lease = store->request(0, before);
    drain(files, *store, 0, &*lease);
  }
  std::filesystem::last_write_time(files.file(0), std::filesystem::last_write_time(files.file(0)) + std::chrono::seconds(5));
  auto lease = store->request(0, after);
  const Error e = failure(&*lease);
  EXPECT_EQ(e.code, Code::data_loss);
  EXPECT_THAT(e.message, HasSubstr("was written to while in use"));
  auto resident = store->request(0, before);  // read before that
  EXPECT_EQ(drain(files, *store, 0, &*resident).size(), 1u);
}

TEST(Faults, AReplacedFileIsReadAsItWas) {
  const ExpertFiles files(Shape{});
  bool broken = false;
  Faults faults;
  faults.plan = [&broken](const BlockReader::Read&) { return broken ? -EIO : 0; };
  const auto store = open_store(files, 3, faults);
  const auto other = files.folder() / "other";
  test::write_file(other, std::filesystem::file_size(files.file(0)), 99);
  std::filesystem::rename(other, files.file(0));
  {
    auto lease = store->request(0, kThree);  // the open file is the old one
    EXPECT_EQ(drain(files, *store, 0, &*lease).size(), 3u);
  }
  broken = true;
  const std::vector<int32_t> ids{1};
  auto lease = store->request(2, ids);
  const Error e = failure(&*lease);
  EXPECT_EQ(e.code, Code::data_loss);
  EXPECT_THAT(e.message, HasSubstr("was replaced while in use"));
}

TEST(Faults, AWrongChecksumIsReadAgainThenNamed) {
  Shape shape;
  shape.packed = true;
  const ExpertFiles files(shape);
  int damaged = 1;
  const uint64_t bad = files.source().layers[2].gate.offset + 3 * files.source().layers[2].gate.stride;
  Faults faults;
  faults.after = [&](const BlockReader::Read& r) {
    if (damaged > 0 && r.offset == bad) --damaged, r.dst[17] ^= std::byte{1};
  };
  {
    const auto store = open_store(files, 6, faults, true);
    auto lease = store->request(2, kThree);
    EXPECT_EQ(drain(files, *store, 2, &*lease).size(), 3u);
    EXPECT_EQ(store->stats().retries, 1u);
  }
  damaged = 1000;
  const auto store = open_store(files, 6, faults, true);
  {
    auto lease = store->request(2, kThree);
    const Error e = failure(&*lease);
    EXPECT_EQ(e.code, Code::data_loss);
    EXPECT_THAT(e.message, HasSubstr("layer 2, expert 3"));
    EXPECT_THAT(e.message, HasSubstr("checksum of the slab at byte " + std::to_string(bad)));
  }
  damaged = 0;
  auto lease = store->request(2, kThree);
  EXPECT_EQ(drain(files, *store, 2, &*lease).size(), 3u);
}

TEST(Faults, OneFlippedBitOnDiskIsFound) {
  Shape shape;
  shape.packed = true;
  const ExpertFiles files(shape);
  {
    std::fstream f(files.file(0), std::ios::in | std::ios::out | std::ios::binary);
    const auto at = static_cast<std::streamoff>(files.source().layers[0].down.offset + 7);
    f.seekg(at);
    const char c = static_cast<char>(f.get() ^ 1);
    f.seekp(at);
    f.put(c);
  }
  const auto store = open_store(files, 6, {}, true);
  auto lease = store->request(0, kThree);
  EXPECT_EQ(failure(&*lease).code, Code::data_loss);
  const auto pinned = store->pin(0, kThree);
  ASSERT_FALSE(pinned);
  EXPECT_EQ(pinned.error().code, Code::data_loss);
}

// Every request ends in bytes or in an error whatever the reader does, and the slots survive it.
TEST(Faults, SoakOfEverythingAtOnce) {
  Shape shape;
  shape.packed = true;
  const ExpertFiles files(shape);
  std::mt19937 random(23);
  Faults faults;
  faults.reorder = true;
  faults.plan = [&random](const BlockReader::Read& r) -> int64_t {
    switch (random() % 12) {
      case 0: return -EIO;
      case 1: return -EINTR;
      case 2: return 1 + static_cast<int64_t>(random() % r.bytes);
      case 3: return random() % 4 == 0 ? -EINVAL : 0;
      default: return 0;
    }
  };
  faults.after = [&random](const BlockReader::Read& r) {
    if (random() % 10 == 0) r.dst[random() % 4096] ^= std::byte{2};
  };
  const auto store = open_store(files, 8, faults, true);
  int errors = 0, good = 0;
  std::vector<ExpertStore::Lease> alive;
  for (int i = 0; i < 1500; ++i) {
    const int64_t layer = std::array<int64_t, 3>{0, 2, 3}[static_cast<size_t>(i % 3)];
    const int32_t first = static_cast<int32_t>(random() % 8);
    const std::vector<int32_t> ids{first, (first + 1) % 8, (first + 5) % 8};
    if (alive.size() > 1) alive.erase(alive.begin());
    auto lease = store->request(layer, ids);
    ASSERT_TRUE(lease) << lease.error().message;
    if (random() % 3 == 0) store->guess(random() % 4, ids);
    while (random() % 6 != 0) {
      const auto places = lease->next();
      if (!places) {
        ++errors;
        break;
      }
      if (places->empty()) break;
      for (const auto& p : *places) {
        ++good;
        ASSERT_TRUE(files.right(*store, layer, p));
      }
    }
    alive.push_back(std::move(*lease));
  }
  EXPECT_GT(errors, 0);
  EXPECT_GT(good, 1000);
}

}  // namespace
}  // namespace fth
