// What a recorder saw of segments, by their shape: the rows of a profile that the planner's costs rest on from then on.
#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/engine_impl.h"
#include "core/profile/statistics.h"

namespace fth {

void Engine::each_profiled(const Recorder& recorder,
                           const std::function<void(size_t device, const fth_segment& segment, double median_s)>& tell) const {
  struct Cell {
    SegmentKind kind = SegmentKind::embed;
    int64_t layer = -1, bucket = 1;
    std::vector<double> seconds;
  };
  std::map<std::pair<size_t, std::string>, Cell> cells;  // by device and shape: layers that are alike are one
  const auto take = [&](const Event& e) {
    const bool exact = e.kind == EventKind::segment || (e.kind == EventKind::beside && e.id == 1);
    if (!exact || e.cpu_ns >= 0 || e.rows != e.bucket) return;  // with rows to spare it would be faster than the cost means
    const auto* const found = std::find(std::begin(kSegmentKindNames), std::end(kSegmentKindNames), std::string_view(e.name));
    if (found == std::end(kSegmentKindNames)) return;
    const auto kind = static_cast<SegmentKind>(found - std::begin(kSegmentKindNames));
    // Experts that come in several submits, and a head that skips rows, are other work than their segment.
    if (kind == SegmentKind::experts && impl_->streamed()) return;
    if (kind == SegmentKind::head && impl_->options.head == HeadMode::screened) return;
    Cell& cell = cells[{e.device, impl_->estimates_of(kind, e.layer, e.bucket).shape}];
    cell.kind = kind;
    cell.layer = e.layer;
    cell.bucket = e.bucket;
    cell.seconds.push_back(1e-9 * static_cast<double>(e.end_ns - e.begin_ns));
  };
  for (const Event& e : recorder.engine().events()) take(e);
  for (size_t d = 0; d < recorder.devices().size(); ++d)
    for (const Event& e : recorder.device(d).events()) take(e);
  for (auto& [key, cell] : cells) {
    const Segment segment = impl_->build_planned(cell.kind, cell.layer, cell.bucket);
    tell(key.first, segment.view(), spread(std::move(cell.seconds)).p50);
  }
}

}  // namespace fth
