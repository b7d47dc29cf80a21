#pragma once
// How long segments take on devices, measured on made-up data at their first use and kept by device, driver, program and the segment's shape. The planner's costs rest on it where there is
// more than one device to choose from.

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/device/registry.h"
#include "tools/cli/storage_profile.h"

namespace fth::cli {

class SegmentRuns {
 public:
  // if_unknown leave: only what is kept.
  SegmentRuns(uint32_t threads, std::string cpu_options, IfUnknown if_unknown);
  // Of one run each, in seconds; 0: not known. Measures in a process of its own, all that are missing at once.
  std::vector<double> seconds(const Registry& registry, size_t device, std::span<const fth_segment> segments);

 private:
  struct Row {
    double seconds = 0;
    bool busy = false;  // measured while other programs ran
  };
  uint32_t threads_;
  std::string cpu_options_;
  IfUnknown if_unknown_;
  std::filesystem::path path_;
  std::map<std::pair<std::string, std::string>, Row> rows_;  // by device and shape
};

// The other side: `forethought measure-segments`, which only ask_child() starts.
int measure_segments_main(const std::vector<std::string>& args);

}  // namespace fth::cli
