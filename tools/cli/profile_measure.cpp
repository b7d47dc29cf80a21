// Measuring a column: how much fits the time, then repetitions that are recorded.
#include "tools/cli/profile_measure.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/text/sampler.h"
#include "tools/cli/interrupt.h"
#include "tools/cli/machine.h"
#include "tools/cli/report.h"

namespace fth::cli {
namespace {

using Clock = std::chrono::steady_clock;

class Measuring {
 public:
  Measuring(Session session, Sampler sampler, const ProfileWork& work)
      : session_(std::move(session)), sampler_(std::move(sampler)), work_(work) {}

  Session& session() { return session_; }

  // Seconds for the prompt's first `n_prompt` tokens, and for `n_decode` more.
  Result<std::pair<double, double>> once(int64_t n_prompt, int64_t n_decode, Recorder* recorder) {
    session_.clear();
    auto begin = Clock::now();
    const auto first = std::span(work_.prompt).first(static_cast<size_t>(n_prompt));
    FTH_ASSIGN_OR_RETURN(std::span<const float> logits, session_.prefill(first, [](int64_t, int64_t) { return !interrupted(); }));
    const double prefill = seconds_since(begin);
    begin = Clock::now();
    for (int64_t i = 0; i < n_decode; ++i) {
      int32_t id = 0;
      {
        const Scope scope(recorder, EventKind::sample, "sample");
        FTH_ASSIGN_OR_RETURN(id, sampler_.sample(logits));
      }
      if (!work_.decode.empty()) id = work_.decode[static_cast<size_t>(i)];
      FTH_ASSIGN_OR_RETURN(logits, session_.decode(id));
      if (interrupted()) return fail(Code::cancelled, "interrupted");
    }
    return std::pair(prefill, seconds_since(begin));
  }

 private:
  static double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }
  Session session_;
  Sampler sampler_;
  const ProfileWork& work_;
};

// Fits the work into the time: a few tokens are tried, then repetitions go first, then tokens. Leaves what it tried compiled and warm.
Result<> fit(Measuring& m, const ProfileWork& work, Column* column) {
  constexpr int64_t kTry = 32, kFewest = 4;
  const int64_t n_prompt = std::min<int64_t>(kTry, static_cast<int64_t>(work.prompt.size())), n_decode = std::min(kFewest, work.n_decode);
  FTH_RETURN_IF_ERROR(m.once(n_prompt, n_decode, nullptr));  // compiles
  FTH_ASSIGN_OR_RETURN(const auto tried, m.once(n_prompt, n_decode, nullptr));
  const double per_prompt = tried.first / static_cast<double>(n_prompt);
  const double per_decode = n_decode == 0 ? 0 : tried.second / static_cast<double>(n_decode);
  column->n_prompt = static_cast<int64_t>(work.prompt.size());
  column->n_decode = work.n_decode;
  column->repetitions = work.repetitions;
  const auto too_long = [&] {
    const auto r = static_cast<double>(column->repetitions + 2);  // the unrecorded one and the one with CPU clocks
    return r * per_prompt * static_cast<double>(column->n_prompt) > work.seconds ||
           r * per_decode * static_cast<double>(column->n_decode) > work.seconds;
  };
  while (too_long() && column->repetitions > 1) --column->repetitions;
  while (too_long() && (column->n_prompt > n_prompt || column->n_decode > n_decode)) {
    column->n_prompt = std::max(n_prompt, std::min(column->n_prompt, static_cast<int64_t>(work.seconds / 3 / per_prompt)));
    column->n_decode =
        std::max(n_decode, std::min(column->n_decode, per_decode > 0 ? static_cast<int64_t>(work.seconds / 3 / per_decode) : 0));
    if (too_long()) break;  // nothing less would say anything
  }
  column->shortened = column->n_prompt < static_cast<int64_t>(work.prompt.size()) || column->n_decode < work.n_decode ||
                      column->repetitions < work.repetitions;
  return {};
}

}  // namespace

Result<Column> measure_column(Engine& engine, std::string name, const ProfileWork& work, const std::function<void(double)>& on_progress) {
  Column column;
  column.name = std::move(name);
  for (const DeviceEntry& entry : engine.registry().devices()) column.devices.push_back(entry.device.name());
  column.arenas = engine.plan().arenas;
  column.streaming = engine.streaming();
  column.predicted_s = engine.plan().seconds_per_token;
  column.recorder = engine.new_recorder();

  FTH_ASSIGN_OR_RETURN(Session session, engine.new_session());
  FTH_ASSIGN_OR_RETURN(Sampler sampler, Sampler::make({}));
  Measuring m(std::move(session), std::move(sampler), work);
  FTH_RETURN_IF_ERROR(fit(m, work, &column));
  FTH_RETURN_IF_ERROR(m.once(column.n_prompt, column.n_decode, nullptr));

  const Config& config = engine.model().config;
  if (config.is_sparse()) {
    column.experts.assign(static_cast<size_t>(config.n_layer * config.n_expert), 0);
    m.session().set_on_routing([&](int64_t layer, int64_t, int64_t rows, int64_t top_k, const int32_t* ids) {
      for (int64_t i = 0; i < rows * top_k; ++i) ++column.experts[static_cast<size_t>(layer * config.n_expert + ids[i])];
    });
  }
  const PageFaults before = page_faults();
  engine.set_recorder(column.recorder.get());
  Result<> done;
  for (int64_t r = 0; done && r <= column.repetitions; ++r) {
    const bool clocks = r == column.repetitions;
    column.recorder->set_cpu_clocks(clocks);
    if (auto one = m.once(column.n_prompt, clocks ? std::min<int64_t>(column.n_decode, 16) : column.n_decode, column.recorder.get()); !one)
      done = tl::unexpected<Error>(std::move(one).error());
    if (on_progress) on_progress(static_cast<double>(r + 1) / static_cast<double>(column.repetitions + 1));
  }
  engine.set_recorder(nullptr);
  m.session().set_on_routing({});
  if (!done) return tl::unexpected<Error>(std::move(done).error());
  const PageFaults after = page_faults();
  column.live = live_shares(engine);
  column.minor_faults = after.minor - before.minor;
  column.major_faults = after.major - before.major;
  for (const Event& e : column.recorder->counters().events())
    if (std::string_view(e.name) == "memory") column.resident_bytes = e.bytes;
  column.segments = segment_rows(*column.recorder);
  column.decode = step_row(*column.recorder, Phase::decode);
  column.prefill = step_row(*column.recorder, Phase::prefill);
  column.sample = spread_of(*column.recorder, EventKind::sample);
  return column;
}

}  // namespace fth::cli
