// Sorting, and rows for reads that overlap.
#include "core/profile/tracks.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

namespace fth {
namespace {

bool encloses_or_precedes(const Event& a, const Event& b) {
  // At the same instant the longer one encloses; of two equal ones the wider kind does (a step, then its segments, then what they wait for).
  return std::make_tuple(a.begin_ns, -a.end_ns, a.kind) < std::make_tuple(b.begin_ns, -b.end_ns, b.kind);
}

std::vector<Event> sorted(std::span<const Event> events) {
  std::vector<Event> out(events.begin(), events.end());
  std::sort(out.begin(), out.end(), encloses_or_precedes);
  return out;
}

}  // namespace

std::vector<Track> make_tracks(const Recorder& recorder) {
  std::vector<Track> out;
  out.push_back({TrackKind::thread, "engine", sorted(recorder.engine().events())});
  for (uint32_t i = 1; i < recorder.n_threads(); ++i)
    out.push_back({TrackKind::thread, recorder.worker(i).name(), sorted(recorder.worker(i).events())});
  for (size_t d = 0; d < recorder.devices().size(); ++d)
    if (!recorder.device(d).events().empty())
      out.push_back({TrackKind::device, recorder.devices()[d], sorted(recorder.device(d).events())});

  Track waits{TrackKind::storage, "waiting for storage", {}};
  for (const Event& e : out[0].events)
    if (e.kind == EventKind::stall) waits.events.push_back(e);
  if (!waits.events.empty()) out.push_back(std::move(waits));
  std::vector<Track> rows;
  for (const Event& e : sorted(recorder.storage().events())) {
    auto row = std::find_if(rows.begin(), rows.end(), [&](const Track& t) { return t.events.back().end_ns <= e.begin_ns; });
    if (row == rows.end()) row = rows.insert(row, {TrackKind::storage, "read " + std::to_string(rows.size() + 1), {}});
    row->events.push_back(e);
  }
  out.insert(out.end(), std::make_move_iterator(rows.begin()), std::make_move_iterator(rows.end()));
  return out;
}

std::vector<Event> make_counters(const Recorder& recorder) {
  std::vector<Event> out(recorder.counters().events().begin(), recorder.counters().events().end());
  std::vector<std::pair<int64_t, int64_t>> changes;
  for (const Event& e : recorder.storage().events()) {
    changes.emplace_back(e.begin_ns, static_cast<int64_t>(e.bytes));
    changes.emplace_back(e.end_ns, -static_cast<int64_t>(e.bytes));
  }
  std::sort(changes.begin(), changes.end());
  int64_t flying = 0;
  for (const auto& [at, change] : changes) {
    flying += change;
    Event e;
    e.kind = EventKind::counter;
    e.name = "bytes in flight";
    e.begin_ns = e.end_ns = at;
    e.bytes = static_cast<uint64_t>(std::max<int64_t>(flying, 0));
    out.push_back(e);
  }
  std::stable_sort(out.begin(), out.end(), [](const Event& a, const Event& b) { return a.begin_ns < b.begin_ns; });
  return out;
}

}  // namespace fth
