#pragma once
// Where each kind of segment stands under the machine's roofs, memory bandwidth and int8 multiply-adds, after "AI and Memory Wall" (arXiv 2403.14123): operations per byte
// decide which roof is the lower one. `forethought bench --roofline` prints it.

#include <boost/json/object.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "tools/cli/output.h"

namespace fth::cli {

// One row of `bench`, all repetitions together.
struct Measured {
  std::string name;  // "tg128"
  bool decode = false;
  int64_t before = 0, tokens = 0;  // tokens in the context before; measured, in one repetition
  int64_t repetitions = 0;
  double seconds = 0, stall_seconds = 0;
  std::vector<SegmentTime> segments;
};

// Per token, except bytes and flops of the head in prefill, which runs once for a prompt and is spread over it.
struct RooflineRow {
  std::string test, kind, device;  // kind "all": the whole pass; "stall": waiting for storage; "rest": between segments
  double bytes = 0, flops = 0, seconds = 0;
};

struct Peaks {
  double bytes_per_second = 0, int8_ops_per_second = 0;  // 0: not known
  std::string int8_how;
};

// A multiplication and an addition are two operations. Bytes are weights and KV cache, each counted once per pass over it. Operations of experts are counted as if
// every neuron lived, so a sparse pass may stand above that roof; bytes in decode are those of live neurons where they were counted.
std::vector<RooflineRow> roofline(const Model& model, const Measured& measured);
Table roofline_table(std::span<const RooflineRow> rows, const Peaks& peaks);
std::string roofline_legend(const Peaks& peaks);
boost::json::object roofline_json(std::span<const RooflineRow> rows, const Peaks& peaks);

// Adds by device and kind.
void add_segments(std::span<const SegmentTime> from, std::vector<SegmentTime>& to);

}  // namespace fth::cli
