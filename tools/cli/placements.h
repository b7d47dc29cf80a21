#pragma once
// bench --placements: every placement that the planner considered, run in turn, and whether the chosen one was the fastest.

#include <cstdint>

#include "core/base/result.h"
#include "tools/cli/flags.h"

namespace fth::cli {

struct PlacementWork {
  int64_t n_prompt = 128, n_decode = 32;  // the decoded tokens follow the prompt
  int64_t repetitions = 3;                // each opens every placement once, so that what slows the machine down meets all of them
  bool software = false;                  // also software devices
  bool markdown = false, csv = false;
  bool must_hold = false;  // exit code 1 unless the chosen placement is the fastest, or as fast within the noise
};

// Prints a table, or one JSON object with common.json. Placements that do not fit or change nothing are listed with the reason. Call before any thread exists.
Result<int> bench_placements(const EngineFlags& flags, const CommonFlags& common, const PlacementWork& work);

}  // namespace fth::cli
