#pragma once
// The seam between the expert store and the system: reads go down, completions come up, in any order. One attempt each: whoever owns a reader judges short
// counts and errors and submits again. All calls come from one thread.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "core/experts/files.h"

namespace fth {

class BlockReader {
 public:
  struct Read {
    uint32_t file = 0;
    uint64_t offset = 0;       // of the file; offset, bytes and dst are multiples of kBlock
    uint32_t bytes = 0;        // may pass the end of the file: then the count is short
    std::byte* dst = nullptr;  // untouched by anyone else until the completion
    uint64_t tag = 0;          // comes back
  };
  struct Done {
    uint64_t tag = 0;
    int64_t count = 0;  // bytes read, or -errno
  };

  virtual ~BlockReader() = default;      // waits for every read in flight; their completions are lost
  virtual std::string name() const = 0;  // "io_uring", "pread, 4 threads"
  // Starts reads. The caller keeps at most the queue depth it asked for in flight. What the system refuses becomes a completion with its errno.
  virtual void submit(std::span<const Read> reads) = 0;
  // Appends completions to `out`. `wait`: blocks until there is at least one; the caller does that only while reads are in flight.
  virtual void collect(std::vector<Done>* out, bool wait) = 0;
};

// `files` outlives the reader. `memory` is what reads land in; registered with the kernel where it lets us, which saves pinning pages for every read.
// unavailable with the reason where io_uring is missing or forbidden.
Result<std::unique_ptr<BlockReader>> open_uring_reader(const FileSet& files, std::span<std::byte> memory, uint32_t queue_depth);
// min(queue_depth, 8) threads, each blocking in one pread. resource_exhausted when not one thread can be started.
Result<std::unique_ptr<BlockReader>> open_pread_reader(const FileSet& files, uint32_t queue_depth);
// By name: auto (uring; pread where that is unavailable, or where the files are not direct: buffered io_uring is punted to kernel threads and was measured
// 3 to 5 times slower), uring, pread. invalid_argument for others.
Result<std::unique_ptr<BlockReader>> open_reader(const std::string& name, const FileSet& files, std::span<std::byte> memory,
                                                 uint32_t queue_depth);

}  // namespace fth
