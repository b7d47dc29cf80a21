#pragma once
// What the token loop (step.cpp) stands on: runs one segment on its device for the tokens of one step. Activations move between devices only when
// the reader's memory does not hold the current value. Lives for one step; private to this folder. Two runners of one session may have steps under way at
// once if each has a StepMemory of its own, and if of the segments that are started on one device at most one is not waited for.

#include <chrono>
#include <cstring>
#include <span>

#include "core/engine/engine_impl.h"

namespace fth {

class SegmentRunner {
 public:
  SegmentRunner(Session::Impl& session, StepMemory& memory, std::span<const int32_t> ids, int64_t pos)
      : s_(session),
        m_(memory),
        e_(*session.engine),
        config_(session.engine->model->config),
        ids_(ids),
        n_(static_cast<int64_t>(ids.size())),
        pos_(pos),
        variant_(session.inspect ? Variant::norms : Variant::plain) {}
  ~SegmentRunner() { abandon(); }
  SegmentRunner(const SegmentRunner&) = delete;
  SegmentRunner& operator=(const SegmentRunner&) = delete;

  uint64_t bytes() const { return bytes_; }  // of weights and KV read so far

 protected:
  // Runs one segment and waits for it, with its time and bytes booked. EXPERTS segments use the experts of m_.bound; heads first_row_ and n_rows_.
  Result<> submit(SegmentKind kind, int64_t layer, Variant variant = Variant::plain);
  // The same in two halves: start() leaves a segment of a device beside the CPU running, and runs any other to its end; finish() waits for it and fetches what
  // the host needs of its outputs, since a copy asked for later would queue behind the device's next segment. One at a time.
  Result<> start(SegmentKind kind, int64_t layer);
  Result<> finish();

  // The layer's cache is in memory; the next one that has to be read begins to be.
  Result<> ready_cache(int64_t layer);

  Area& area(Port p) { return m_.areas[static_cast<size_t>(p)]; }
  void written_by_host(Port p) { area(p).valid = 1; }
  void put(Port port, const auto& values) {
    std::memcpy(m_.host<std::byte>(port), values.data(), values.size() * sizeof values[0]);
    written_by_host(port);
  }
  Result<> fetch_to_host(Port p);

  // The last position's logits where only the largest are wanted: screened, or exact while the estimates' errors are being measured.  [screened_head.cpp]
  Result<> wanted_head(int64_t k);

  // Some rows' logits by one of the heads, fetched; the exact head's with the errors of the estimates booked.
  Result<> head_rows(int64_t first_row, int64_t rows, Variant variant);
  Result<> measure_head(int64_t first_row, int64_t rows);

  // For the recorder; nothing without one.
  int64_t clock() const { return e_.recorder == nullptr ? 0 : Recorder::now(); }
  void note(EventKind kind, const char* what, int64_t begin_ns, int64_t layer, size_t device = 0, uint64_t bytes = 0);

  // Values for Session::set_inspect; nothing without it.
  Result<> look(const char* what, Port p, int64_t cols, int64_t layer);
  Result<> look_at_experts_sum(int64_t layer);

  Session::Impl& s_;
  StepMemory& m_;
  Engine::Impl& e_;
  const Config& config_;
  std::span<const int32_t> ids_;
  int64_t n_, pos_;
  Variant variant_;
  int64_t first_row_ = 0, n_rows_ = 0;  // of the head run

 private:
  void bind_pages(Port port);
  int64_t pages_in_use() const;
  Result<> bind_experts(const Compiled& c, Port port, int64_t layer);
  using Time = std::chrono::steady_clock::time_point;
  struct Run {  // of a segment, from its submit until it was waited for
    const Compiled* compiled = nullptr;
    fth_event* event = nullptr;
    int64_t layer = -1, n = 0, n_slots = 0;
    Time begin, end;
    int64_t cpu_ns = -1;        // while the engine's thread was at it
    double seconds = 0;         // likewise
    double waited_s = 0;        // of that, for its end
    bool left_running = false;  // the engine's thread did something else meanwhile
  };
  Result<Run> begin_run(SegmentKind kind, int64_t layer, Variant variant);
  Result<> end_run(Run run);
  tl::unexpected<Error> failed(const Compiled& c, Error e) const;
  void abandon();  // waits for what is still running, and forgets it
  void book(const Run& run);
  void record(const Run& run, uint64_t bytes);
  uint64_t used_bytes(const Area& a) const;
  Result<> make_valid(Port p, size_t space, size_t device);

  uint64_t bytes_ = 0;
  Run started_;
};

}  // namespace fth
