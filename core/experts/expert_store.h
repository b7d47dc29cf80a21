#pragma once
// Experts on storage, a fixed number of them in RAM: the storage engine of a model that is larger than its budget. The router names a layer's experts before
// its attention runs (arXiv 2507.20984, section 3.2); request() starts their reads then, and Lease::next() hands them out as they land.
// One thread (the engine's) calls everything here; the store's own I/O thread or ring is behind it.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "core/model/config.h"

namespace fth {

struct ExpertStoreOptions {
  uint64_t bytes = 0;           // for slots, all of it allocated and touched once by open()
  std::string reader = "auto";  // auto, uring, pread
  std::string policy = "auto";  // auto, lru, lfu ...: docs/memory.md
  uint32_t queue_depth = 0;     // 0: measured or default
  bool verify = false;          // check each slab's xxh3 as it lands (packed models)
};

// Where the three matrices of one expert lie, as offsets into memory().
struct ExpertPlace {
  int32_t expert = 0;
  uint64_t gate = 0, up = 0, down = 0;
};

struct ExpertStats {
  uint64_t requested = 0;  // experts asked for by request()
  uint64_t hits = 0;       // resident when asked for
  uint64_t late = 0;       // in flight (prefetched or guessed) when asked for
  uint64_t misses = 0;     // read because they were asked for
  uint64_t guesses = 0, wrong_guesses = 0;
  uint64_t bytes_read = 0;
  double stall_s = 0;  // spent inside Lease::next() waiting
  double io_s = 0;     // time during which at least one read was in flight
};

class ExpertStore {
 public:
  // Allocates the slots and opens the files. resource_exhausted when fewer than top_k experts fit: the message has the numbers.
  static Result<std::unique_ptr<ExpertStore>> open(const Model& model, const ExpertStoreOptions& options);
  virtual ~ExpertStore() = default;

  virtual std::span<std::byte> memory() const = 0;  // every slot; for Device::import_host
  virtual int64_t n_slots() const = 0;
  virtual std::string description() const = 0;  // "io_uring O_DIRECT, queue 8, 96 slots of 1.90 MiB, policy lru"

  // The exact experts of a layer (no duplicates, at most n_slots()): those that are absent start reading now; all are pinned until the Lease ends.
  // Two leases may be alive at once if their experts fit the slots together.
  class Lease {
   public:
    virtual ~Lease() = default;  // drops the pins; a read still in flight completes before its slot is used again
    // Blocks until at least one expert that was not handed out yet is resident, and hands out all that are: resident ones first. Empty when all have
    // been handed out. unavailable (EIO after retries) or data_loss (short file, checksum) name the expert and the file.
    virtual Result<std::vector<ExpertPlace>> next() = 0;
  };
  virtual Result<std::unique_ptr<Lease>> request(int64_t layer, std::span<const int32_t> experts) = 0;

  // A guess for a later layer: read behind all requests, into slots that nobody will miss soon; dropped when the layer's request does not name them.
  virtual void guess(int64_t layer, std::span<const int32_t> experts) = 0;

  virtual ExpertStats stats() const = 0;
};

}  // namespace fth
