// Adding up events.
#include "core/profile/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <map>
#include <tuple>
#include <utility>

namespace fth {
namespace {

double seconds_of(const Event& e) { return 1e-9 * static_cast<double>(e.end_ns - e.begin_ns); }

// CPU time over wall time of the events that it was taken of.
struct CpuTime {
  double cpu = 0, wall = 0;
  void add(const Event& e) {
    cpu += 1e-9 * static_cast<double>(e.cpu_ns);
    wall += seconds_of(e);
  }
  double share() const { return wall > 0 ? cpu / wall : 0; }
};

}  // namespace

double percentile(std::span<const double> sorted, double share) {
  if (sorted.empty()) return 0;
  const auto n = static_cast<double>(sorted.size());
  const double rank = std::ceil(share * n);
  return sorted[static_cast<size_t>(std::clamp(rank, 1.0, n)) - 1];
}

Spread spread(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  Spread out;
  out.count = seconds.size();
  for (const double s : seconds) out.total += s;
  out.p50 = percentile(seconds, 0.50);
  out.p95 = percentile(seconds, 0.95);
  out.p99 = percentile(seconds, 0.99);
  return out;
}

double Roofline::attainable(double intensity) const {
  if (flops_per_second <= 0 || bytes_per_second <= 0) return 0;
  return std::min(flops_per_second, intensity * bytes_per_second);
}

double SegmentRow::roofline_share(const Roofline& roofline) const {
  if (flops == 0) return roofline.bytes_per_second > 0 ? bytes_per_second() / roofline.bytes_per_second : 0;
  const double most = bytes == 0 ? roofline.flops_per_second : roofline.attainable(intensity());
  return most > 0 ? flops_per_second() / most : 0;
}

std::vector<SegmentRow> segment_rows(const Recorder& recorder) {
  struct Cell {
    SegmentRow row;
    std::vector<double> seconds, on_device;
    CpuTime cpu;
    int64_t first_ns = 0;
  };
  std::map<std::tuple<size_t, int64_t, std::string>, Cell> cells;
  const auto add = [&](const Event& e) {
    Cell& cell = cells[{e.device, e.bucket, e.name}];
    if (cell.row.name.empty()) {
      cell.row.device = e.device;
      cell.row.name = e.name;
      cell.row.bucket = e.bucket;
      cell.first_ns = e.begin_ns;
    }
    if (e.cpu_ns >= 0) {
      cell.cpu.add(e);
      return;
    }
    cell.seconds.push_back(seconds_of(e));
    cell.row.bytes += e.bytes;
    cell.row.flops += e.flops;
  };
  for (const Event& e : recorder.engine().events())
    if (e.kind == EventKind::segment) add(e);
  for (size_t d = 0; d < recorder.devices().size(); ++d)
    for (const Event& e : recorder.device(d).events())
      if (e.kind == EventKind::beside) add(e);
  for (size_t d = 0; d < recorder.devices().size(); ++d)
    for (const Event& e : recorder.device(d).events()) {
      if (e.kind != EventKind::queue || e.id < 0 || e.cpu_ns >= 0) continue;
      const auto cell = cells.find({e.device, e.bucket, e.name});
      if (cell != cells.end()) cell->second.on_device.push_back(seconds_of(e));
    }
  std::vector<Cell> in_order;
  for (auto& [key, cell] : cells) in_order.push_back(std::move(cell));
  std::stable_sort(in_order.begin(), in_order.end(), [](const Cell& a, const Cell& b) {
    return std::make_tuple(a.row.device, a.row.bucket, a.first_ns) < std::make_tuple(b.row.device, b.row.bucket, b.first_ns);
  });
  std::vector<SegmentRow> out;
  for (Cell& cell : in_order) {
    cell.row.time = spread(std::move(cell.seconds));
    cell.row.on_device = spread(std::move(cell.on_device));
    cell.row.cpu_share = cell.cpu.share();
    out.push_back(std::move(cell.row));
  }
  return out;
}

StepRow step_row(const Recorder& recorder, Phase phase) {
  StepRow out;
  std::vector<Event> steps;
  std::vector<double> seconds;
  CpuTime cpu;
  for (const Event& e : recorder.engine().events()) {
    if (e.kind != EventKind::step || (e.rows == 1) != (phase == Phase::decode)) continue;
    if (e.cpu_ns >= 0) {
      cpu.add(e);
      continue;
    }
    steps.push_back(e);
    seconds.push_back(seconds_of(e));
    out.tokens += e.rows;
    out.bytes += e.bytes;
  }
  out.time = spread(std::move(seconds));
  out.cpu_share = cpu.share();
  // Steps are in order of time and do not overlap: the one that an instant belongs to is found by its begin.
  const auto step_at = [&](int64_t at) -> const Event* {
    const auto after = std::upper_bound(steps.begin(), steps.end(), at, [](int64_t t, const Event& s) { return t < s.begin_ns; });
    if (after == steps.begin() || at > std::prev(after)->end_ns) return nullptr;
    return &*std::prev(after);
  };
  for (const Event& e : recorder.engine().events()) {
    if (step_at(e.begin_ns) == nullptr) continue;
    switch (e.kind) {
      case EventKind::copy:
        out.copy_seconds += seconds_of(e);
        out.copied_bytes += e.bytes;
        ++out.copies;
        break;
      case EventKind::stall: out.stall_seconds += seconds_of(e); break;
      case EventKind::route: out.route_seconds += seconds_of(e); break;
      case EventKind::request: out.request_seconds += seconds_of(e); break;
      default: break;
    }
  }
  std::vector<std::pair<int64_t, int64_t>> reads;
  for (const Event& e : recorder.storage().events()) {
    if (step_at(e.begin_ns) == nullptr) continue;
    out.read_bytes += e.bytes;
    ++out.reads;
    reads.emplace_back(e.begin_ns, e.end_ns);
  }
  std::sort(reads.begin(), reads.end());
  int64_t covered = INT64_MIN;
  for (const auto& [begin, end] : reads) {
    const int64_t from = std::max(begin, covered);
    if (end > from) out.io_seconds += 1e-9 * static_cast<double>(end - from);
    covered = std::max(covered, end);
  }
  return out;
}

Spread spread_of(const Recorder& recorder, EventKind kind) {
  std::vector<double> seconds;
  for (const Event& e : recorder.engine().events())
    if (e.kind == kind) seconds.push_back(seconds_of(e));
  return spread(std::move(seconds));
}

}  // namespace fth
