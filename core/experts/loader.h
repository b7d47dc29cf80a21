#pragma once
// Loads slots: splits extents into reads, keeps them in order of service (demand, exact, guess), judges what comes back, repeats what may be repeated.
// One thread.

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/base/result.h"
#include "core/experts/block_reader.h"
#include "core/experts/expert_store.h"
#include "core/experts/layout.h"

namespace fth {

enum class Urgency : uint8_t { demand, exact, guess };  // somebody waits; a layer's router named it; a guess

class Loader {
 public:
  using Clock = std::chrono::steady_clock;
  struct Landed {
    uint32_t slot = 0;
    std::optional<Error> error;      // without it, every byte of the extents is there
    Clock::time_point begun, ended;  // its first read's start, and when its last was seen complete
    uint64_t bytes = 0;
  };

  // `files` outlives the loader.
  Loader(const FileSet& files, std::unique_ptr<BlockReader> reader, uint32_t n_slots, uint32_t queue_depth, uint64_t request_bytes);

  struct Range {
    uint64_t begin = 0, end = 0;
  };
  // Queues the reads of one slot, which has none waiting or in flight: those of `front`, bytes of the slot, before the others. pump() starts them.
  void load(uint32_t slot, std::span<const Extent> extents, Range front, std::byte* base, Urgency urgency);
  // Whether the front of a slot that is still being read has arrived whole.
  bool front_is_there(uint32_t slot) const {
    return jobs_[slot].front == 0 && jobs_[slot].waiting + jobs_[slot].flying > 0 && !jobs_[slot].error;
  }
  void raise(uint32_t slot, Urgency urgency);  // moves waiting reads forward; never back
  bool cancel(uint32_t slot);                  // drops the slot's reads, if none of them was started: true then
  void pump();                                 // starts what the queue depth allows; guesses use half of it
  // Takes completions, appends slots whose last read came back, and pumps. `wait`: blocks for a completion, when a read is in flight.
  void collect(bool wait, std::vector<Landed>* landed);

  bool idle() const { return in_flight_ == 0 && waiting_ == 0; }
  uint64_t guess_bytes() const { return guess_bytes_; }  // waiting or in flight as guesses
  std::string reader_name() const { return reader_->name(); }
  void add_to(ExpertStats* stats) const;

 private:
  struct Piece {  // one read, with what is left of it
    uint32_t slot = 0, file = 0;
    uint64_t at = 0, need = 0, end = 0;  // next byte to read (a block's first), end of what is needed, end of its last block
    std::byte* dst = nullptr;            // of `at`
    bool front = false;
    uint32_t repeats = 0, failures = 0;
    Clock::time_point begun;
  };
  struct Job {  // a slot's load
    Urgency urgency = Urgency::guess;
    uint32_t waiting = 0, flying = 0, front = 0;  // pieces; of the front those that are not there
    uint64_t bytes = 0;
    bool started = false;
    std::optional<Error> error;
    Clock::time_point begun;  // when started
  };
  void add_pieces(uint32_t slot, const Extent& extent, uint64_t begin, uint64_t end, std::byte* base, bool front);
  void finish(const BlockReader::Done& done, std::vector<Landed>* landed);
  std::optional<Error> judge(Piece* piece, int64_t count);
  std::deque<uint32_t>& queue_for(Urgency urgency, bool front) { return queues_[2 * static_cast<size_t>(urgency) + (front ? 0 : 1)]; }
  void queue(uint32_t piece, Urgency urgency, bool first);
  void drop_waiting(uint32_t slot);
  void note_guess(const Job& job, bool add);

  const FileSet& files_;
  uint32_t depth_;
  uint64_t request_bytes_;
  std::vector<Piece> pieces_;
  std::vector<uint32_t> free_pieces_;
  std::vector<Job> jobs_;                       // by slot
  std::array<std::deque<uint32_t>, 6> queues_;  // by urgency; of each, fronts before the rest
  uint32_t in_flight_ = 0, waiting_ = 0;
  uint64_t guess_bytes_ = 0;
  Clock::time_point busy_since_;
  ExpertStats stats_;
  std::vector<BlockReader::Read> batch_;
  std::vector<BlockReader::Done> done_;
  std::unique_ptr<BlockReader> reader_;  // last: its destructor waits for reads into what is above
};

}  // namespace fth
