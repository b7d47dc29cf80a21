#pragma once
// The KV cache of layers that see every position, when it does not fit memory whole: each layer keeps its newest pages in RAM, older ones lie in a file and are
// read again for every step, those of the next such layer while the layers between compute. Attention gets pages, not one piece (ATTENTION, fth_ops.def), so
// that the bits are those of a cache in memory. One thread (the engine's) makes every call.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "core/experts/block_reader.h"
#include "core/experts/expert_store.h"
#include "core/experts/files.h"
#include "core/experts/slot_memory.h"

namespace fth {

struct KvPagesShape {
  int64_t n_layers = 0;     // that are in pages, counted from 0 here whatever their place in the model
  int64_t page_cells = 0;   // positions of a page
  int64_t n_pages = 0;      // of a layer: enough for the context
  int64_t resident = 0;     // newest pages of a layer that stay in RAM, n_pages at most
  uint64_t cell_bytes = 0;  // one position's keys, or its values

  uint64_t half_page_bytes() const;  // a page's keys, or its values, in whole blocks
  uint64_t page_bytes() const { return 2 * half_page_bytes(); }
  int64_t staged() const { return n_pages - resident; }  // pages of one layer that a step may have to read
  uint64_t resident_bytes() const { return static_cast<uint64_t>(n_layers * resident) * page_bytes(); }
  uint64_t staging_bytes() const {
    return static_cast<uint64_t>(2 * staged()) * page_bytes();
  }  // for two layers: one in use, one being read
  // Pages that a step of n_tokens may write, wherever it begins: the fewest that may be resident.
  static int64_t least_resident(int64_t n_tokens, int64_t page_cells) { return (n_tokens + page_cells - 2) / page_cells + 1; }
};

struct KvPagesStats {
  uint64_t bytes_read = 0, bytes_written = 0;
  double stall_s = 0;  // waiting for reads, and writing
};

class KvPages {
 public:
  // Allocates and touches resident_bytes() + staging_bytes() and makes a file without a name in `directory`, which takes up to n_layers * n_pages * page_bytes().
  // resource_exhausted for the memory; unavailable with the directory and the reason when no file can be made there, failed_precondition when it is a file
  // system in memory, invalid_argument for a shape that contradicts itself.
  static Result<std::unique_ptr<KvPages>> open(const KvPagesShape& shape, const std::filesystem::path& directory,
                                               const std::string& reader);
  // The same with a reader of the caller's choice; for tests of faults.
  static Result<std::unique_ptr<KvPages>> open(const KvPagesShape& shape, const std::filesystem::path& directory,
                                               const ExpertStore::MakeReader& make_reader);
  ~KvPages();  // waits for reads in flight
  KvPages(const KvPages&) = delete;
  KvPages& operator=(const KvPages&) = delete;

  const KvPagesShape& shape() const { return shape_; }
  std::span<std::byte> memory() const { return memory_.bytes(); }
  std::string description() const;  // "io_uring, O_DIRECT"

  // Begins reading what `layer` will need for a step over positions [pos, pos + n). Never an error: ready() hears of it.
  void prefetch(int64_t layer, int64_t pos, int64_t n);
  // Until the next call of ready(): every page that positions 0 .. pos + n - 1 reach is in memory, those that the step writes among the resident ones.
  // unavailable or resource_exhausted (no space on the device), with the file's directory and the system's reason; data_loss for a short read.
  Result<> ready(int64_t layer, int64_t pos, int64_t n);
  // Offset into memory() of a page of the layer of the last ready(): its keys, and half_page_bytes() after them its values.
  uint64_t place(int64_t page) const;
  // Moves reads along; never blocks.
  void poll();
  // Positions from n_past on are forgotten.
  void truncate(int64_t n_past);

  KvPagesStats stats() const { return stats_; }

 private:
  struct Half {  // of the staging
    int64_t layer = -1;
    std::vector<char> state;  // per page: kAbsent, kReading, kSpoilt (being read, and part of it failed), kThere
    int64_t reading = 0;      // pages with reads to come, spoilt ones among them
  };
  struct Piece {
    uint64_t offset = 0;
    uint32_t bytes = 0;
    std::byte* to = nullptr;
    uint32_t half = 0;
    int64_t page = 0;
    uint32_t tries = 0;
  };

  explicit KvPages(const KvPagesShape& shape) : shape_(shape) {}
  uint64_t resident_at(int64_t layer, int64_t page) const;
  uint64_t staged_at(uint32_t half, int64_t page) const;
  uint64_t file_at(int64_t layer, int64_t page) const;
  int64_t& owner(int64_t layer, int64_t page);  // which page is in the place that `page` has among the resident ones, -1 for none
  void begin_read(uint32_t half, int64_t page);
  Result<> move(bool wait);  // completions and submissions; the error of a read that failed for good
  void drain(Half& half);    // until nothing is read into it
  Result<> write(int64_t layer, int64_t page, const std::byte* from);
  Result<> read_now(int64_t layer, int64_t page, std::byte* to);
  uint32_t half_for(int64_t layer);
  std::string where() const { return "the KV cache's file in " + directory_.string(); }

  KvPagesShape shape_;
  std::filesystem::path directory_;
  int write_fd_ = -1;
  FileSet files_;
  SlotMemory memory_;
  std::vector<int64_t> owners_;  // [layer * resident + page % resident]
  Half halves_[2];
  uint32_t last_half_ = 1;
  int64_t current_layer_ = -1, first_resident_ = 0;  // of the last ready()
  uint32_t current_half_ = 0;
  std::deque<uint32_t> waiting_;
  std::vector<Piece> pieces_;
  std::vector<uint32_t> free_pieces_;
  uint32_t in_flight_ = 0;
  std::vector<int64_t> pages_left_;  // [half * n_pages + page]: pieces that are still to come
  KvPagesStats stats_;
  std::unique_ptr<BlockReader> reader_;  // last: its end waits for reads into memory
};

}  // namespace fth
