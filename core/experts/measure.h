#pragma once
// How fast a file can be read, by queue depth and length of reads: what ExpertStoreOptions' queue_depth and request_bytes are chosen by.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/result.h"

namespace fth {

struct ReadSpeed {
  uint32_t queue_depth = 0;
  uint64_t request_bytes = 0;
  double bytes_per_s = 0;
};

struct ReadMeasurement {
  std::string reader;             // "io_uring, O_DIRECT"
  bool direct = false;            // false: the page cache was measured, not the disk
  std::vector<ReadSpeed> rows;    // depths 1, 2, 4, 8, 16 with 256 KiB, then with 1 MiB
  double steady_bytes_per_s = 0;  // the third of the rows by speed: a disk is not planned for by its luckiest moment
  double wait_s = 0;              // of one read on an idle queue, beyond its share of that: what comes before the first bytes
  ReadSpeed best;                 // of the rows within 5 % of the fastest, the one with the fewest bytes in flight: the least latency
};

// Reads at random places for `seconds` in all (0.2 is enough on an idle disk) and takes up to 16 MiB of memory meanwhile. `reader` as ExpertStoreOptions has it.
// data_loss when the file is shorter than one block; errors of opening and reading. Keeping the answer is the caller's business.
Result<ReadMeasurement> measure_reads(const std::filesystem::path& path, const std::string& reader = "auto", double seconds = 0.2);

}  // namespace fth
