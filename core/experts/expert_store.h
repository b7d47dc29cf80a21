#pragma once
// Experts on storage, a fixed number of them in RAM: the storage engine of a model that is larger than its budget. The router names a layer's experts before
// its attention runs (arXiv 2507.20984, section 3.2); request() starts their reads then, and Lease::next() hands them out as they land.
// One thread (the engine's) makes every call here. io_uring needs no thread of ours; the pread reader has its own, behind BlockReader.
// The store knows files and extents, not models: whoever opens the model fills in an ExpertSource.

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/result.h"

namespace fth {

class BlockReader;
class FileSet;
class Recorder;
class Tier;

// Where the experts lie in files. A packed model has the three parts of an expert in one slab; an unpacked GGUF has three stacks of matrices. Parts of an
// expert that touch, or lie within a block of each other, are read as one. Not trusted: open() checks every number against the files' sizes.
struct ExpertSource {
  struct Part {  // one matrix of each expert of a layer: expert e is files[file], bytes [offset + e * stride, offset + e * stride + bytes)
    uint32_t file = 0;
    uint64_t offset = 0, bytes = 0, stride = 0;
  };
  struct Layer {
    int64_t n_expert = 0;  // 0: a dense layer, never requested
    Part gate, up, down;
    std::vector<uint64_t>
        xxh3;  // empty, or for each expert xxh3_64 (seed 0) of gate, up and down, one after the other without what lies between them
  };
  std::vector<std::filesystem::path> files;
  std::vector<Layer> layers;  // by the model's layer index
  int64_t top_k = 0;          // experts that one token uses per layer: the floor for slots
  uint64_t fingerprint = 0;   // of the model; ties a saved warm set to it
};

struct ExpertStoreOptions {
  uint64_t bytes = 0;           // for slots, all of it allocated and touched once by open()
  std::string reader = "auto";  // auto (uring, else pread), uring, pread
  std::string policy = "auto";  // auto, lru, lfu, reuse: docs/memory.md
  uint32_t queue_depth = 0;     // reads in flight at most; 0: default. measure_reads() in core/experts/measure.h finds one
  uint64_t request_bytes = 0;   // longest single read, a multiple of 4096; longer extents are split; 0: default
  bool direct = true;           // O_DIRECT where the file system has it; false: through the page cache
  bool huge_pages = true;       // ask for huge pages for the slots
  bool verify = false;          // check each expert's xxh3 as it lands, where the source has one
  std::shared_ptr<Tier> tier;   // tier.h; null: none
};

// Where the three matrices of one expert lie, as offsets into memory(). An address equals its file offset modulo 4096: what is aligned in the file is in memory.
struct ExpertPlace {
  int32_t expert = 0;
  uint64_t gate = 0, up = 0, down = 0;
  bool whole = true;  // false: only gate is there
};

struct ExpertStats {
  uint64_t requested = 0;      // experts asked for by request(); hits + late + misses
  uint64_t hits = 0;           // resident when asked for
  uint64_t late = 0;           // being read, for a guess or an earlier lease, when asked for
  uint64_t misses = 0;         // read because they were asked for
  uint64_t early = 0;          // of those and the late ones, whose gate was handed out before the rest
  uint64_t tier = 0;           // of the hits, those that were copied from the tier
  uint64_t guesses = 0;        // experts whose read began as a guess
  uint64_t wrong_guesses = 0;  // of those, not named by the layer's next request, or cancelled before they were read
  uint64_t bytes_read = 0;     // that arrived, blocks around the extents and retries included
  uint64_t retries = 0;        // reads repeated after EINTR, EAGAIN, ECANCELED, EIO, a short count or a checksum
  double stall_s = 0;          // spent waiting for storage, in Lease::next() and in request()
  double io_s =
      0;  // during which at least one read was in flight; io_uring's completions are seen at the next call, so this is an upper bound there
  std::array<uint64_t, 24> latency{};  // reads by floor(log2(microseconds)) from submission until seen complete
};

class ExpertStore {
 public:
  // Allocates and touches the slots and opens the files; nothing is read but a probe block per file.
  // resource_exhausted when fewer than top_k experts fit, or the memory is not there: the message has the numbers. not_found for a file. data_loss when
  // extents pass the end of their file. invalid_argument for unknown names and for a source that contradicts itself. unavailable when `reader` cannot run here.
  static Result<std::unique_ptr<ExpertStore>> open(ExpertSource source, const ExpertStoreOptions& options);
  // The same with a reader of the caller's choice, which gets the opened files and the slots' memory; for tests of faults.
  using MakeReader =
      std::function<Result<std::unique_ptr<BlockReader>>(const FileSet& files, std::span<std::byte> memory, uint32_t queue_depth)>;
  static Result<std::unique_ptr<ExpertStore>> open(ExpertSource source, const ExpertStoreOptions& options, const MakeReader& make_reader);
  // Bytes of one slot of this source: what options.bytes is divided by. Needs no file. invalid_argument as open() has it.
  static Result<uint64_t> slot_bytes(const ExpertSource& source);

  ~ExpertStore();  // waits for the reads in flight; no Lease may be left
  ExpertStore(const ExpertStore&) = delete;
  ExpertStore& operator=(const ExpertStore&) = delete;

  std::span<std::byte> memory()
      const;  // every slot; for Device::import_host. The store's own: read what places name, while their lease lives
  int64_t n_slots() const;
  int64_t n_pinned() const;                               // of those, kept by pin()
  bool is_resident(int64_t layer, int32_t expert) const;  // now; the next call of anything may change it
  std::string tier_error() const;                         // why the tier is no longer used; empty while it is, or when there is none
  std::string description() const;                        // "io_uring O_DIRECT, queue 16, 96 slots of 1.90 MiB, policy reuse"

  // A claim on experts of one layer. Movable; an empty one has nothing. Must not outlive its store.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease();  // drops the pins; a read still in flight completes before its slot is used again

    // Blocks until at least one expert that was not handed out yet is resident, and hands out all that are: resident ones first. Empty when all have
    // been handed out. The span is valid until the next call of next() or the end of the lease; the places until the end of the lease.
    // unavailable (an error of the device after retries) or data_loss (short, replaced or damaged file) name file, layer, expert and offset; they come
    // after the experts that did arrive, and again at every further call. The store lives on: a later request reads again.
    // With `early`, what has its gate but not yet the rest is handed out when nothing is there whole (`whole` is false), and once more when it is.
    // Not with ExpertStoreOptions::verify: what a checksum has not passed is not used.
    Result<std::span<const ExpertPlace>> next(bool early = false);

   private:
    friend class ExpertStore;
    void release();
    ExpertStore* store_ = nullptr;
    uint32_t id_ = 0;
  };

  // The exact experts of a layer (no duplicates, at most n_slots()): those that are absent start reading now; all are pinned until the Lease ends.
  // Several leases may be alive at once if their experts fit the slots together, else resource_exhausted. Returns without waiting, unless every slot that
  // could be used is still being read for a lease that ended: then it waits for one of those reads.
  Result<Lease> request(int64_t layer, std::span<const int32_t> experts);

  // A guess for a later layer: read behind all requests, into slots that nobody will miss soon; dropped when the layer's request does not name them.
  // Never an error: ids that are out of range and guesses that find no room are ignored. `certain`: a batch so large that it uses nearly every expert; such
  // guesses may take the slots of experts that were used lately, as a request may.
  void guess(int64_t layer, std::span<const int32_t> experts, bool certain = false);

  // Notices completed reads and starts waiting ones; never blocks. Worth a call between segments when more reads wait than the queue holds.
  void poll();

  // Reads experts and keeps them until unpin(). resource_exhausted when fewer than top_k slots would be left for the others; errors as Lease::next().
  Result<> pin(int64_t layer, std::span<const int32_t> experts);
  void unpin(int64_t layer, std::span<const int32_t> experts);

  struct Used {
    int64_t layer = 0;
    int32_t expert = 0;
  };
  // The experts of the largest chance of use, at most n, the likeliest first; those that were never used are not among them.
  std::vector<Used> most_used(int64_t n) const;

  // The warm set: which experts were used how often, with the model's fingerprint and a checksum. load_warm() takes over the counts, fills free slots with
  // the most used experts (waiting for them) and returns how many it read; it changes nothing and says why when the file is absent (not_found),
  // damaged (data_loss) or of another model (failed_precondition): a caller goes on without it.
  Result<> save_warm(const std::filesystem::path& path) const;
  Result<int64_t> load_warm(const std::filesystem::path& path);

  ExpertStats stats() const;
  // Where each expert's read and each wait for storage is noted; null: nowhere. It lives until it is replaced.
  void set_recorder(Recorder* recorder);

 private:
  struct Impl;
  explicit ExpertStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fth
