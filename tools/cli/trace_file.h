#pragma once
// Recorded events as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open: the JSON object form of the Trace Event Format. Times are
// microseconds since the first event; every event is on a named track.

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "core/profile/recorder.h"

namespace fth::cli {

struct TracePart {  // shown as a process of its own
  std::string name;
  const Recorder* recorder = nullptr;
};

// A whole file or none. failed_precondition when it cannot be written.
Result<> write_trace(const std::filesystem::path& path, const std::vector<TracePart>& parts);

// Writes `content` beside `path` and renames: a whole file or none. failed_precondition, with `option`, when it cannot be written.
Result<> write_whole(const std::filesystem::path& path, const std::string& content, const std::string& option);

}  // namespace fth::cli
