#pragma once
// What the token loop (step.cpp) stands on: runs one segment on its device for the tokens of one step. Activations move between devices only when
// the reader's memory does not hold the current value. Lives for one step; private to this folder.

#include <chrono>
#include <cstring>
#include <span>

#include "core/engine/engine_impl.h"

namespace fth {

class SegmentRunner {
 public:
  SegmentRunner(Session::Impl& session, std::span<const int32_t> ids, int64_t pos)
      : s_(session),
        e_(*session.engine),
        config_(session.engine->model->config),
        ids_(ids),
        n_(static_cast<int64_t>(ids.size())),
        pos_(pos),
        variant_(session.inspect ? Variant::norms : Variant::plain) {}

  uint64_t bytes() const { return bytes_; }  // of weights and KV read so far

 protected:
  // Runs one segment and waits for it, with its time and bytes booked. EXPERTS segments use the experts of s_.bound; heads first_row_ and n_rows_.
  Result<> submit(SegmentKind kind, int64_t layer, Variant variant = Variant::plain);

  // The layer's cache is in memory; the next one that has to be read begins to be.
  Result<> ready_cache(int64_t layer);

  Area& area(Port p) { return s_.areas[static_cast<size_t>(p)]; }
  void written_by_host(Port p) { area(p).valid = 1; }
  void put(Port port, const auto& values) {
    std::memcpy(s_.host<std::byte>(port), values.data(), values.size() * sizeof values[0]);
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
  void book(const Compiled& c, int64_t layer, int64_t n, int64_t n_slots, Time begin, Time end, int64_t cpu_ns);
  void record(const Compiled& c, int64_t layer, int64_t n, uint64_t bytes, Time begin, Time end, int64_t cpu_ns);
  uint64_t used_bytes(const Area& a) const;
  Result<> make_valid(Port p, size_t space, size_t device);

  uint64_t bytes_ = 0;
};

}  // namespace fth
