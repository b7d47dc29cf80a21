// The KV cache in pages, most of them on storage, against one in memory: the same bits, also after the conversation is cut; and what cannot work is said.
#include "core/engine/kv_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/engine/engine.h"
#include "tests/experts/faulty_reader.h"

namespace fth {
namespace {

using testing::HasSubstr;

std::filesystem::path tiny() {
  const char* root = std::getenv("FTH_SOURCE_DIR");
  return std::filesystem::path(root == nullptr ? "." : root) / "tools/tiny_model/tiny-smallthinker-q4_0.gguf";
}

// A directory on the disk that the test runs on: /tmp may be in memory.
std::filesystem::path directory() { return std::filesystem::current_path(); }

EngineOptions options(KvPlacement placement, DType dtype = DType::f16, int64_t ubatch = 64) {
  EngineOptions o;
  o.model = tiny();
  o.cpu_only = true;
  o.registry.n_threads = 2;
  o.n_ctx = 1024;
  o.ubatch = ubatch;
  o.kv = {dtype, placement, directory(), 32};
  // Windows longer than the context are none: all eight layers see everything, not the model's two, whose pages would stay in the two places for them.
  o.overrides = {{"attention.sliding_window", "2048"}};
  return o;
}

std::vector<int32_t> some_ids(size_t n, size_t seed) {
  std::vector<int32_t> ids(n);
  for (size_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>((i * 37 + i * i * 11 + seed * 101) % 2000 + 20);
  return ids;
}

void append(std::vector<float>* out, const Result<std::span<const float>>& logits) {
  ASSERT_TRUE(logits) << logits.error().message;
  out->insert(out->end(), logits->begin(), logits->end());
}

// A long prompt, some answers, back to the middle of it, another prompt, more answers.
std::vector<float> conversation(const EngineOptions& o, KvStats* kv = nullptr) {
  std::vector<float> out;
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return out;
  auto session = (*engine)->new_session();
  EXPECT_TRUE(session) << session.error().message;
  if (!session) return out;
  auto first = some_ids(380, 1);
  append(&out, session->prefill(first));
  for (int i = 0; i < 10; ++i) append(&out, session->decode(100 + i));
  for (const size_t keep : {360u, 233u, 7u}) {
    auto again = some_ids(380, 1);
    again.resize(keep);
    const auto more = some_ids(70, keep);
    again.insert(again.end(), more.begin(), more.end());
    const int64_t kept = session->reuse(again);
    append(&out, session->prefill(std::span<const int32_t>(again).subspan(static_cast<size_t>(kept))));
    for (int i = 0; i < 3; ++i) append(&out, session->decode(200 + i));
  }
  if (kv != nullptr) *kv = session->stats().kv;
  return out;
}

TEST(KvPages, BitsAreThoseOfACacheInMemory) {
  for (const DType dtype : {DType::f16, DType::f32, DType::q8_0}) {
    const auto memory = conversation(options(KvPlacement::memory, dtype));
    for (const int64_t ubatch : {64, 1, 17}) {
      if (dtype != DType::f16 && ubatch != 17) continue;
      KvStats kv;
      const auto storage = conversation(options(KvPlacement::storage, dtype, ubatch), &kv);
      ASSERT_EQ(storage.size(), memory.size());
      EXPECT_EQ(std::memcmp(storage.data(), memory.data(), memory.size() * sizeof(float)), 0) << name(dtype) << ", ubatch " << ubatch;
      EXPECT_GT(kv.bytes_read, 0u);
      EXPECT_GT(kv.bytes_written, 0u);
    }
  }
}

TEST(KvPages, EightBitsChangeLittle) {
  const auto f32 = conversation(options(KvPlacement::memory, DType::f32)), q8 = conversation(options(KvPlacement::memory, DType::q8_0));
  ASSERT_EQ(f32.size(), q8.size());
  double errors = 0, squares = 0;
  for (size_t i = 0; i < f32.size(); ++i) {
    errors += std::pow(static_cast<double>(f32[i] - q8[i]), 2);
    squares += std::pow(static_cast<double>(f32[i]), 2);
  }
  EXPECT_GT(errors, 0);
  EXPECT_LT(errors / squares, 5e-3);  // of random ids; an expert chosen otherwise counts
}

TEST(KvPages, ABudgetWithoutRoomForTheCacheUsesStorage) {
  const auto has_note = [](const Engine& e) {
    return std::any_of(e.plan().notes.begin(), e.plan().notes.end(),
                       [](const std::string& note) { return note.find("on storage but for the newest") != std::string::npos; });
  };
  EngineOptions o = options(KvPlacement::automatic, DType::f32);
  o.plan_only = true;
  auto roomy = Engine::open(o);
  ASSERT_TRUE(roomy) << roomy.error().message;
  EXPECT_FALSE(has_note(**roomy));
  o.ram_budget = 1;
  // The least that works, by the message, works, and is less than the cache in memory would need. This process grows a little meanwhile.
  auto tight = Engine::open(o);
  ASSERT_FALSE(tight);
  for (int tries = 0; !tight && tries < 5; ++tries) {
    ASSERT_EQ(tight.error().code, Code::resource_exhausted);
    const std::string message = tight.error().message;
    const size_t at = message.find("--ram ", message.find("smallest budget"));
    ASSERT_NE(at, std::string::npos) << message;
    o.ram_budget = std::stoull(message.substr(at + 6)) << 20;
    tight = Engine::open(o);
  }
  ASSERT_TRUE(tight) << tight.error().message;
  EXPECT_TRUE(has_note(**tight));
  EXPECT_LE((*tight)->plan().ram_bytes, o.ram_budget);
  o.kv.placement = KvPlacement::memory;
  EXPECT_FALSE(Engine::open(o));
  // With two such layers there is nothing to gain.
  o = options(KvPlacement::automatic);
  o.overrides.clear();
  o.plan_only = true;
  o.ram_budget = 1;
  EXPECT_THAT(Engine::open(o).error().message, HasSubstr("kv cache"));
  o.ram_budget = 0;
  o.kv.placement = KvPlacement::storage;
  roomy = Engine::open(o);
  ASSERT_TRUE(roomy) << roomy.error().message;
  EXPECT_TRUE(has_note(**roomy));
}

KvPagesShape shape() { return {3, 32, 20, 3, 128}; }

// Fills a cache position by position, 16 in a step, and looks at every position before and in it. How many calls failed; each is repeated until it does not.
int fill_and_look(KvPages& k) {
  const KvPagesShape& shape = k.shape();
  const uint64_t half = shape.half_page_bytes();
  const auto value = [](int64_t layer, int64_t position) { return static_cast<uint8_t>(layer * 7 + position * 13 + position / 32); };
  const auto cell = [&](int64_t position, uint64_t side) {
    return k.memory().data() + k.place(position / shape.page_cells) + side +
           static_cast<uint64_t>(position % shape.page_cells) * shape.cell_bytes;
  };
  int failures = 0;
  for (int64_t pos = 0; pos < shape.n_pages * shape.page_cells; pos += 16)
    for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
      for (auto ready = k.ready(layer, pos, 16); !ready && failures < 100; ready = k.ready(layer, pos, 16)) {
        EXPECT_THAT(ready.error().code, testing::AnyOf(Code::unavailable, Code::data_loss));
        EXPECT_THAT(ready.error().message, HasSubstr("KV cache's file in"));
        ++failures;
      }
      const bool last = layer + 1 == shape.n_layers;
      k.prefetch((layer + 1) % shape.n_layers, last ? pos + 16 : pos, last ? 1 : 16);
      for (int64_t p = pos; p < pos + 16; ++p)
        for (const uint64_t side : {uint64_t{0}, half}) std::memset(cell(p, side), value(layer, p) + (side > 0), shape.cell_bytes);
      for (int64_t p = 0; p < pos + 16; ++p)
        for (const uint64_t side : {uint64_t{0}, half})
          for (const uint64_t at : {uint64_t{0}, shape.cell_bytes - 1})
            if (std::to_integer<uint8_t>(cell(p, side)[at]) != static_cast<uint8_t>(value(layer, p) + (side > 0))) {
              ADD_FAILURE() << "layer " << layer << ", position " << p << " at " << pos << ", byte " << at;
              return failures;
            }
    }
  return failures;
}

TEST(KvPages, PagesComeBackAsTheyWere) {
  auto kv = KvPages::open(shape(), directory(), "auto");
  ASSERT_TRUE(kv) << kv.error().message;
  EXPECT_EQ(fill_and_look(**kv), 0);
  EXPECT_GT((*kv)->stats().bytes_read, (*kv)->stats().bytes_written);
}

TEST(KvPages, AFailedReadIsSaidAndReadAgain) {
  const KvPagesShape large = {3, 32, 7, 3, 32 * 1024};  // pages of two reads: one may fail while the other is on its way
  for (const int64_t fault : {int64_t{-EIO}, int64_t{4096}, int64_t{-EINTR}})
    for (int nth = 0; nth < 24; nth += 5)
      for (const bool reorder : {false, true}) {
        int reads = 0, faults_left = 3;  // as many as a read is tried
        uint64_t victim = 0;
        test::Faults faults;
        faults.reorder = reorder;
        faults.plan = [&](const BlockReader::Read& r) -> int64_t {
          if (reads++ == nth) victim = r.offset;
          if (reads <= nth || r.offset != victim || faults_left == 0) return 0;
          --faults_left;
          return fault;
        };
        auto kv = KvPages::open(large, directory(), test::faulty(faults));
        ASSERT_TRUE(kv) << kv.error().message;
        // A failed prefetch that nobody waited for is read again without a word.
        EXPECT_LE(fill_and_look(**kv), 1) << fault << ", read " << nth;
        EXPECT_EQ(faults_left, 0);
      }
}

TEST(KvPages, AFullDiskIsSaidAndTheConversationGoesOnWhenThereIsRoom) {
  const auto want = conversation(options(KvPlacement::memory));
  auto engine = Engine::open(options(KvPlacement::storage));
  ASSERT_TRUE(engine) << engine.error().message;
  auto session = (*engine)->new_session();
  ASSERT_TRUE(session) << session.error().message;
  const auto ids = some_ids(380, 1);
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small = {4096, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  auto logits = session->prefill(ids);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  ASSERT_FALSE(logits);
  EXPECT_EQ(logits.error().code, Code::resource_exhausted) << logits.error().message;
  EXPECT_THAT(logits.error().message, HasSubstr("--kv-dir"));
  const auto done = static_cast<size_t>(session->n_past());
  ASSERT_LT(done, ids.size());
  logits = session->prefill(std::span<const int32_t>(ids).subspan(done));
  ASSERT_TRUE(logits) << logits.error().message;
  EXPECT_EQ(std::memcmp(logits->data(), want.data(), logits->size_bytes()), 0);
}

TEST(KvPages, WhatCannotWorkIsSaid) {
  auto kv = KvPages::open(shape(), "/nonexistent/folder", "auto");
  ASSERT_FALSE(kv);
  EXPECT_EQ(kv.error().code, Code::unavailable);
  EXPECT_THAT(kv.error().message, testing::AllOf(HasSubstr("/nonexistent/folder"), HasSubstr("--kv-dir")));
  if (std::filesystem::exists("/dev/shm")) {
    kv = KvPages::open(shape(), "/dev/shm", "auto");
    ASSERT_FALSE(kv);
    EXPECT_THAT(kv.error().message, HasSubstr("in memory"));
  }
  KvPagesShape bad = shape();
  bad.resident = 21;
  EXPECT_EQ(KvPages::open(bad, directory(), "auto").error().code, Code::invalid_argument);
  EngineOptions o = options(KvPlacement::storage);
  o.kv.directory = "/nonexistent/folder";
  auto engine = Engine::open(o);
  ASSERT_TRUE(engine) << engine.error().message;
  EXPECT_FALSE((*engine)->new_session());
}

}  // namespace
}  // namespace fth
