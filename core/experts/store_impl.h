#pragma once
// What an ExpertStore is made of: slots and their states, leases, the guesses that wait for their layer. The header of the store says what it promises.

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/experts/expert_store.h"
#include "core/experts/files.h"
#include "core/experts/layout.h"
#include "core/experts/loader.h"
#include "core/experts/slot_memory.h"
#include "core/experts/tier.h"
#include "core/experts/usage.h"
#include "core/profile/recorder.h"

namespace fth {

struct ExpertStore::Impl {
  enum class State : uint8_t { empty, loading, resident, failed };  // failed: pinned by leases that have yet to hear of it
  static constexpr uint32_t kNone = ~uint32_t{0};

  struct Slot {
    int32_t layer = -1, expert = -1;
    State state = State::empty;
    bool guessed = false;  // its layer's request has not come yet
    bool held = false;     // pin(): one of the pins
    bool reread = false;   // its checksum was wrong once
    uint32_t pins = 0;
    std::optional<Error> error;
  };
  struct Entry {
    uint32_t slot = kNone;
    bool handed = false, gate_handed = false;
  };
  struct LeaseRecord {
    std::vector<Entry> entries;
    std::vector<ExpertPlace> places, early;  // what the last next() returned: whole ones, or gates
  };

  Impl(ExpertSource s, const SourceShape& shape, const ExpertStoreOptions& options, Policy p);

  size_t key(int64_t layer, int64_t expert) const { return static_cast<size_t>(layer * max_expert + expert); }
  size_t key(const Slot& slot) const { return key(slot.layer, slot.expert); }
  std::byte* base(uint32_t slot) const { return memory.bytes().data() + uint64_t{slot} * slot_bytes; }
  ExpertLayout layout(const Slot& slot) const { return lay_out(source.layers[static_cast<size_t>(slot.layer)], slot.expert); }
  ExpertPlace place(uint32_t slot) const;
  std::string named(const Slot& slot) const;  // "layer 3, expert 5"

  Result<> check_request(int64_t layer, std::span<const int32_t> experts) const;
  void pin(uint32_t slot);
  void unpin(uint32_t slot);  // the last one frees a failed slot and cancels reads that were not started
  void empty(uint32_t slot);
  // The slot that goes for an expert that was asked for, or for a guess: empty, else of the least worth. kNone when there is none now.
  enum class For : uint8_t { request, guess, certain_guess };
  uint32_t victim(For what) const;
  void read(uint32_t slot, Urgency urgency);
  void keep_in_tier(uint32_t slot);                    // before a resident expert leaves its slot
  bool fetch_from_tier(uint32_t slot, size_t key_of);  // into a slot that is empty but for its name
  std::span<std::byte> bytes_of(uint32_t slot) const { return {base(slot), static_cast<size_t>(slot_bytes)}; }
  void begin_load(uint32_t slot, int64_t layer, int32_t expert, Urgency urgency);
  void settle_guesses(int64_t layer, std::span<const int32_t> experts);
  bool drop_guess();        // one that was not started
  void collect(bool wait);  // a wait is a stall
  void land(const Loader::Landed& landed);
  void note(const Loader::Landed& landed) const;  // for the recorder
  bool intact(uint32_t slot) const;               // the checksum, where there is one and it is asked for
  uint32_t new_lease();
  void end_lease(uint32_t id);
  Result<std::span<const ExpertPlace>> next(uint32_t id, bool early);

  ExpertSource source;
  uint64_t slot_bytes = 0;
  int64_t max_expert = 0, n_sparse = 0;
  bool verify = false;
  Policy policy = kDefaultPolicy;
  Usage usage;
  std::vector<Slot> slots;
  std::vector<uint32_t> slot_of;  // by key; kNone: absent
  std::vector<uint32_t> guessed;  // slots with guessed set
  uint64_t n_unpinned = 0, n_held = 0;
  std::deque<LeaseRecord> leases;  // a deque: spans into a record outlive the making of others
  std::vector<uint32_t> free_leases;
  ExpertStats counts;
  Recorder* recorder = nullptr;
  std::vector<Loader::Landed> landed;
  FileSet files;
  SlotMemory memory;
  std::string description, tier_error;
  std::shared_ptr<Tier> tier;
  std::optional<TierIndex> tier_index;
  std::unique_ptr<Loader> loader;  // last: its end waits for reads into memory
};

}  // namespace fth
