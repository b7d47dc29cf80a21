// What the engine records on the bundled model: every segment of every step, the figures that its statistics have, copies, reads and waits. Results
// do not depend on whether anything is recorded.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>

#include "core/engine/engine.h"
#include "core/profile/statistics.h"
#include "core/profile/tracks.h"

namespace fth {
namespace {

std::filesystem::path from_env(const char* variable, const char* rest) {
  const char* root = std::getenv(variable);
  return std::filesystem::path(root == nullptr ? "." : root) / rest;
}

EngineOptions options() {
  EngineOptions o;
  o.model = from_env("FTH_SOURCE_DIR", "tools/tiny_model/tiny-smallthinker-q4_0.gguf");
  o.cpu_only = true;
  o.registry.n_threads = 2;
  o.n_ctx = 512;
  o.ubatch = 64;
  return o;
}

std::vector<int32_t> prompt() {
  std::vector<int32_t> ids(150);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 37 + i * i * 11) % 2000 + 20);
  return ids;
}

constexpr int kDecoded = 10;

struct Recorded {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<Recorder> recorder;
  Stats stats;
  std::vector<float> logits;
};

// 150 tokens in three steps (64, 64, 22), then ten decoded.
Recorded record(const EngineOptions& o, bool on = true) {
  Recorded out;
  auto engine = Engine::open(o);
  EXPECT_TRUE(engine) << engine.error().message;
  if (!engine) return out;
  out.engine = std::move(*engine);
  out.recorder = out.engine->new_recorder();
  auto session = out.engine->new_session();
  EXPECT_TRUE(session) << session.error().message;
  if (on) out.engine->set_recorder(out.recorder.get());
  auto logits = session->prefill(prompt());
  for (int i = 0; i < kDecoded && logits; ++i) {
    out.logits.insert(out.logits.end(), logits->begin(), logits->end());
    logits = session->decode(100 + i);
  }
  EXPECT_TRUE(logits) << logits.error().message;
  if (logits) out.logits.insert(out.logits.end(), logits->begin(), logits->end());
  out.engine->set_recorder(nullptr);
  out.stats = session->stats();
  return out;
}

// On every track, in order, any two spans nest or do not overlap.
void expect_nesting(const Recorder& recorder) {
  for (const Track& t : make_tracks(recorder)) {
    std::vector<int64_t> open;
    for (const Event& e : t.events) {
      EXPECT_LE(e.begin_ns, e.end_ns);
      while (!open.empty() && open.back() <= e.begin_ns) open.pop_back();
      if (!open.empty()) {
        ASSERT_LE(e.end_ns, open.back()) << t.name << ": " << e.name << " crosses its neighbour's end";
      }
      open.push_back(e.end_ns);
    }
  }
}

TEST(ProfileEngine, EverySegmentOfEveryStep) {
  const Recorded r = record(options());
  ASSERT_TRUE(r.engine);
  const Config& c = r.engine->model().config;
  std::map<std::string, size_t> count;
  size_t steps = 0;
  for (const Event& e : r.recorder->engine().events()) {
    if (e.kind == EventKind::segment) ++count[e.name];
    steps += e.kind == EventKind::step;
  }
  const size_t layers = static_cast<size_t>(c.n_layer), all = 3 + kDecoded;
  EXPECT_EQ(steps, all);
  EXPECT_EQ(count["embed"], all);
  EXPECT_EQ(count["router"], all * layers);
  EXPECT_EQ(count["attention"], all * layers);
  EXPECT_EQ(count["experts"], all * layers);
  EXPECT_EQ(count["combine"], all * layers);
  EXPECT_EQ(count["head"], 1u + kDecoded);
  EXPECT_EQ(r.recorder->dropped(), 0u);
  expect_nesting(*r.recorder);

  // The same bytes and runs as the session's own account.
  std::map<std::string, std::pair<uint64_t, uint64_t>> recorded;
  for (const SegmentRow& row : segment_rows(*r.recorder)) {
    recorded[row.name].first += row.time.count;
    recorded[row.name].second += row.bytes;
  }
  for (const SegmentTime& s : r.stats.segments) {
    EXPECT_EQ(recorded[s.kind].first, s.count) << s.kind;
    EXPECT_EQ(recorded[s.kind].second, s.bytes) << s.kind;
  }
  const StepRow decode = step_row(*r.recorder, Phase::decode), prefill = step_row(*r.recorder, Phase::prefill);
  EXPECT_EQ(decode.time.count, size_t{kDecoded});
  EXPECT_EQ(decode.bytes, r.stats.decode_bytes);
  EXPECT_EQ(prefill.tokens, 150);
  EXPECT_GT(decode.route_seconds, 0);
  EXPECT_EQ(decode.copies, 0u);
  EXPECT_LE(decode.time.total, r.stats.decode_seconds);
}

TEST(ProfileEngine, FlopsAreThoseOfTheShapes) {
  const Recorded r = record(options());
  ASSERT_TRUE(r.engine);
  const Config& c = r.engine->model().config;
  const auto& layers = r.engine->model().layers;
  for (const Event& e : r.recorder->engine().events()) {
    if (e.kind != EventKind::segment) continue;
    const std::string name = e.name;
    const int64_t n = e.rows, width = c.n_embd, q = c.n_head * c.head_dim, kv = c.n_head_kv * c.head_dim;
    int64_t expected = 0;
    if (name == "router") expected = 2 * n * width * c.n_expert;
    if (name == "head") expected = 2 * n * width * c.n_vocab;
    if (name == "combine") expected = 2 * n * width * c.top_k;
    if (name == "experts") expected = 6 * n * c.top_k * width * layers[static_cast<size_t>(e.layer)].gate.rows;
    if (name == "attention") {
      // The step that encloses it has the position.
      int64_t pos = -1;
      for (const Event& s : r.recorder->engine().events())
        if (s.kind == EventKind::step && s.begin_ns <= e.begin_ns && e.end_ns <= s.end_ns) pos = s.id;
      ASSERT_GE(pos, 0);
      const int64_t window = layers[static_cast<size_t>(e.layer)].window;
      int64_t seen = 0;
      for (int64_t p = pos; p < pos + n; ++p) seen += window == 0 ? p + 1 : std::min(p + 1, window);
      expected = 2 * n * width * (2 * q + 2 * kv) + 4 * q * seen;
    }
    EXPECT_EQ(e.flops, static_cast<uint64_t>(expected)) << name << " layer " << e.layer << ", " << n << " rows";
  }
}

TEST(ProfileEngine, TheSameBitsRecordedOrNot) {
  const Recorded off = record(options(), false), on = record(options());
  ASSERT_FALSE(on.logits.empty());
  EXPECT_EQ(off.logits, on.logits);
  EXPECT_TRUE(off.recorder->engine().events().empty());
  EXPECT_TRUE(off.recorder->counters().events().empty());
}

TEST(ProfileEngine, CpuTimeWhenAskedFor) {
  auto engine = Engine::open(options());
  ASSERT_TRUE(engine) << engine.error().message;
  const auto recorder = (*engine)->new_recorder();
  auto session = (*engine)->new_session();
  ASSERT_TRUE(session);
  (*engine)->set_recorder(recorder.get());
  recorder->set_cpu_clocks(true);
  ASSERT_TRUE(session->prefill(prompt()));
  (*engine)->set_recorder(nullptr);
  for (const SegmentRow& row : segment_rows(*recorder)) {
    EXPECT_EQ(row.time.count, 0u) << "what was slowed by clocks is not counted as a time";
    if (row.name == "experts") {
      EXPECT_GT(row.cpu_share, 0);
    }
  }
  EXPECT_GT(step_row(*recorder, Phase::prefill).cpu_share, 0);
}

TEST(ProfileEngine, CopiesAndTheDevicesLane) {
  EngineOptions o = options();
  o.cpu_only = false;
  o.registry.plugin_paths = {std::filesystem::absolute(from_env("FTH_BUILD_DIR", "tests/fake_plugins/libfth_copying.so"))};
  o.device = "copying:0";
  const Recorded r = record(o);
  ASSERT_TRUE(r.engine);
  const auto found = r.engine->registry().find("copying:0");
  ASSERT_TRUE(found) << found.error().message;
  size_t attention = 0, runs = 0;
  uint64_t copied = 0;
  for (const Event& e : r.recorder->engine().events()) {
    if (e.kind == EventKind::copy) copied += e.bytes;
    if (e.kind != EventKind::segment) continue;
    runs += e.device == *found;
    if (std::string_view(e.name) == "attention") attention += e.device == *found;
  }
  // Of two steps at once, what runs beside the CPU's work is on the device's lane alone.
  for (const Event& e : r.recorder->device(*found).events()) {
    if (e.kind != EventKind::beside) continue;
    ++runs;
    attention += std::string_view(e.name) == "attention";
  }
  EXPECT_EQ(copied, r.stats.copied_bytes);
  EXPECT_GT(copied, 0u);
  EXPECT_EQ(attention, static_cast<size_t>(r.engine->model().config.n_layer) * (3 + kDecoded));
  const Recorder& read = *r.recorder;
  EXPECT_EQ(read.device(*found).events().size(), runs);
  EXPECT_TRUE(read.device(0).events().empty()) << "the CPU's work is on its threads";
  expect_nesting(*r.recorder);
}

TEST(ProfileEngine, ReadsAndWaitsOfStreamedExperts) {
  EngineOptions o = options();
  o.experts = ExpertPlacement::streamed;
  o.stream.slots = 16;
  o.stream.guess = Guess::on;
  const Recorded r = record(o);
  ASSERT_TRUE(r.engine);
  const IoStats& prompt_io = r.stats.prompt_io;
  const IoStats& decode_io = r.stats.decode_io;
  const Config& c = r.engine->model().config;
  uint64_t bytes = 0;
  for (const Event& e : std::as_const(*r.recorder).storage().events()) {
    EXPECT_EQ(e.kind, EventKind::read);
    EXPECT_GT(e.end_ns, e.begin_ns);
    EXPECT_TRUE(e.layer >= 0 && e.layer < c.n_layer && e.id >= 0 && e.id < c.n_expert) << e.layer << "." << e.id;
    bytes += e.bytes;
  }
  // Reads that nothing waited for may still be in flight at the end.
  EXPECT_GT(bytes, 0u);
  EXPECT_NEAR(static_cast<double>(bytes), static_cast<double>(prompt_io.bytes_read + decode_io.bytes_read),
              0.05 * static_cast<double>(bytes));
  double stalled = 0;
  for (const Event& e : r.recorder->engine().events())
    if (e.kind == EventKind::stall) stalled += 1e-9 * static_cast<double>(e.end_ns - e.begin_ns);
  EXPECT_NEAR(stalled, prompt_io.stall_seconds + decode_io.stall_seconds, 1e-6 + 0.01 * stalled);
  expect_nesting(*r.recorder);
  EXPECT_GT(step_row(*r.recorder, Phase::decode).reads, 0u);
}

}  // namespace
}  // namespace fth
