#pragma once
// What is measured once for the disk that a streamed model lies on, and kept: how fast it reads, and the queue depth and length of reads that get it there.

#include <cstdint>
#include <filesystem>
#include <string>

#include "tools/cli/machine_profile.h"

namespace fth::cli {

struct StorageProfile {
  double bytes_per_second = 0;  // 0: not known
  double wait_seconds = 0;      // before the first bytes of a read on an idle queue
  uint32_t queue_depth = 0;     // reads in flight that are enough for it
  uint64_t request_bytes = 0;   // of each
  std::string note;             // where the figures come from, or why there are none
};

enum class IfUnknown { measure, leave };

// From storage.json in the cache folder, by the file system's device and type and the disk's model and size; measured (under half a second) and stored there when it is not
// in it. Never fails: `note` says why figures are missing. `reader` as ExpertStoreOptions has it. Reads `file` in a forked child, so that this process's peak RSS stays its own:
// call it before any thread exists.
StorageProfile storage_profile(const std::filesystem::path& file, const std::string& reader, Measure when, IfUnknown if_unknown);

}  // namespace fth::cli
