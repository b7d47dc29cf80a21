#pragma once
// forethought plan --sweep: what each of a row of budgets buys, as a table, JSON and a plot.

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tools/cli/prediction.h"

namespace fth::cli {

struct SweepRange {
  uint64_t low = 0, high = 0;
  int64_t steps = 8;  // budgets, both ends included
};
// "1GiB:8GiB" or "1GiB:8GiB:15". invalid_argument.
Result<SweepRange> parse_sweep(std::string_view range);

struct SweepRow {
  uint64_t budget = 0;
  std::optional<Plan> plan;  // none: does not fit
  std::string reason;        // why not
  Predicted predicted;
};
struct Sweep {
  std::vector<SweepRow> rows;
  uint64_t resident_bytes = 0;  // the budget from which on all experts are in memory; 0 when they never are (--experts streamed)
  Predicted resident;           // with all experts in memory
};
// Errors of anything but a budget that is too small.
Result<Sweep> sweep(Engine& engine, const SweepRange& range, const ExpertUses& uses, const StorageSpeed& storage);

std::string sweep_table(const Sweep& s, const Config& config);
boost::json::object sweep_json(const Sweep& s);
// tok/s (left axis) and hit rate (right axis) over the budget; needs nothing but itself.
std::string sweep_svg(const Sweep& s, std::string_view title, const std::vector<std::string>& subtitles);

}  // namespace fth::cli
