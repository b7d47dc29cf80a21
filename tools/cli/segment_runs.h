#pragma once
// How long segments take on devices, kept by device, driver, program and the segment's shape: medians of a profile, else measured on made-up data where there is more than one device to choose
// from. The planner's costs rest on it.

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/device/registry.h"
#include "core/engine/engine.h"
#include "tools/cli/storage_profile.h"

namespace fth::cli {

class SegmentRuns {
 public:
  // if_unknown leave: only what is kept.
  SegmentRuns(uint32_t threads, std::string cpu_options, IfUnknown if_unknown);
  // Of one run each; 0 seconds: not known. Measures in a process of its own, all that are missing at once, unless one of both parties leaves them.
  std::vector<SegmentRun> seconds(const Registry& registry, size_t device, std::span<const fth_segment> segments,
                                  IfUnmeasured if_unmeasured);
  // What a profile saw, instead of anything that is kept of it; save() makes it last.
  void take_profiled(const Registry& registry, size_t device, const fth_segment& segment, double seconds);
  void save() const;

 private:
  struct Row {
    double seconds = 0;
    bool busy = false;        // measured while other programs ran
    bool by_profile = false;  // stays until the next profile
  };
  std::string about(const Registry& registry, size_t device) const;
  uint32_t threads_;
  std::string cpu_options_;
  IfUnknown if_unknown_;
  std::filesystem::path path_;
  std::map<std::pair<std::string, std::string>, Row> rows_;  // by device and shape
  std::set<std::string> in_use_;                             // devices of rows_ that this program has
};

// The other side: `forethought measure-segments`, which only ask_child() starts.
int measure_segments_main(const std::vector<std::string>& args);

}  // namespace fth::cli
