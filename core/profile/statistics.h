#pragma once
// What a recorder's events add up to: a row for each device, segment and bucket, figures per token, and the roofline that they are held against.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/profile/recorder.h"

namespace fth {

// Nearest rank: the smallest value that at least `share` of the values do not exceed. 0 of no values. `sorted` ascends.
double percentile(std::span<const double> sorted, double share);

struct Spread {  // seconds
  uint64_t count = 0;
  double p50 = 0, p95 = 0, p99 = 0, total = 0;
};
Spread spread(std::vector<double> seconds);

// Williams, Waterman, Patterson: Roofline (CACM 2009). Both 0 when not known.
struct Roofline {
  double flops_per_second = 0, bytes_per_second = 0;
  // The least of both limits at `intensity` FLOP per byte; 0 when it is not known.
  double attainable(double intensity) const;
};

struct SegmentRow {
  size_t device = 0;
  std::string name;      // "attention"
  int64_t bucket = 0;    // tokens that the segment was compiled for; 1 is decoding
  Spread time;           // of runs whose CPU time was not taken
  uint64_t bytes = 0;    // of those runs
  uint64_t flops = 0;    // of those runs
  Spread on_device;      // of those runs, by the device's own clock; count 0 where it has none
  double cpu_share = 0;  // CPU time of all threads over wall time, of the runs whose CPU time was taken: 2.0 is two busy cores; 0 when none
  double bytes_per_second() const { return time.total > 0 ? static_cast<double>(bytes) / time.total : 0; }
  double flops_per_second() const { return time.total > 0 ? static_cast<double>(flops) / time.total : 0; }
  double intensity() const { return bytes > 0 ? static_cast<double>(flops) / static_cast<double>(bytes) : 0; }
  // Share of what the roofline allows: of its FLOP/s, or of its bandwidth for a segment without FLOPs. 0 when it is not known.
  double roofline_share(const Roofline& roofline) const;
};

// In order of device, bucket, and first run.
std::vector<SegmentRow> segment_rows(const Recorder& recorder);

// Steps of one token (decode) or of more (prefill), and what else they spent time with. Of steps whose CPU time was not taken, but for cpu_share.
struct StepRow {
  Spread time;
  int64_t tokens = 0;
  uint64_t bytes = 0;  // weights and KV
  double copy_seconds = 0, stall_seconds = 0, route_seconds = 0, request_seconds = 0;
  uint64_t copied_bytes = 0, copies = 0, read_bytes = 0, reads = 0;
  double io_seconds = 0;  // with at least one read in flight
  double cpu_share = 0;
};
enum class Phase { decode, prefill };
StepRow step_row(const Recorder& recorder, Phase phase);

// Time of an event's kind over all of the recorder, "sample" for instance.
Spread spread_of(const Recorder& recorder, EventKind kind);

}  // namespace fth
