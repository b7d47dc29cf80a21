#pragma once
// A BlockReader that misbehaves on a plan: errors, short counts, completions held back and out of order, damaged bytes. What it lets through is real.

#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "core/experts/block_reader.h"
#include "core/experts/expert_store.h"

namespace fth::test {

struct Faults {
  // Of each read, before it is made: 0 lets it pass; -errno completes with that; a positive count shortens the read to as many bytes.
  std::function<int64_t(const BlockReader::Read&)> plan;
  // Of each completed read: may damage what it brought.
  std::function<void(const BlockReader::Read&)> after;
  bool reorder = false;       // hands completions out one at a time, in random order
  bool* hold = nullptr;       // while true, collect() without waiting finds nothing: storage that is slow
  uint64_t* reads = nullptr;  // counts submitted reads
  std::vector<BlockReader::Read>* log = nullptr;
};

class FaultyReader final : public BlockReader {
 public:
  FaultyReader(std::unique_ptr<BlockReader> inner, Faults faults) : inner_(std::move(inner)), faults_(std::move(faults)) {}
  std::string name() const override { return "faulty " + inner_->name(); }

  void submit(std::span<const Read> reads) override {
    for (Read r : reads) {
      if (faults_.reads != nullptr) ++*faults_.reads;
      if (faults_.log != nullptr) faults_.log->push_back(r);
      const int64_t fault = faults_.plan ? faults_.plan(r) : 0;
      if (fault < 0) {
        ready_.push_back({r.tag, fault});
        continue;
      }
      const uint64_t outer = r.tag;
      Flying f{r, outer, fault};
      r.tag = flying_.size();
      // The real read is whole and the count is cut: direct reads do not take odd lengths.
      flying_.push_back(f);
      ++n_inner_;
      inner_->submit({&r, 1});
    }
  }

  void collect(std::vector<Done>* out, bool wait) override {
    if (faults_.hold != nullptr && *faults_.hold && !wait) return;
    take(wait && ready_.empty());
    if (faults_.reorder && wait)  // so that there is an order to change
      while (n_inner_ > 0) take(true);
    if (ready_.empty()) return;
    if (!faults_.reorder) {
      out->insert(out->end(), ready_.begin(), ready_.end());
      ready_.clear();
      return;
    }
    std::swap(ready_[random_() % ready_.size()], ready_.back());
    out->push_back(ready_.back());
    ready_.pop_back();
  }

 private:
  struct Flying {
    Read read;
    uint64_t tag;
    int64_t cut;
  };
  void take(bool wait) {
    if (n_inner_ == 0) return;
    std::vector<Done> done;
    inner_->collect(&done, wait);
    for (Done d : done) {
      --n_inner_;
      const Flying& f = flying_[d.tag];
      if (f.cut > 0 && d.count > f.cut) {
        for (int64_t i = f.cut; i < d.count; ++i) f.read.dst[i] = std::byte{0xee};  // what was not delivered is not there
        d.count = f.cut;
      }
      if (faults_.after) faults_.after(f.read);
      ready_.push_back({f.tag, d.count});
    }
  }
  std::unique_ptr<BlockReader> inner_;
  Faults faults_;
  std::vector<Flying> flying_;
  std::vector<Done> ready_;
  uint64_t n_inner_ = 0;
  std::minstd_rand random_{7};
};

inline ExpertStore::MakeReader faulty(Faults faults, std::string kind = "pread") {
  return [faults = std::move(faults), kind = std::move(kind)](const FileSet& files, std::span<std::byte> memory,
                                                              uint32_t depth) -> Result<std::unique_ptr<BlockReader>> {
    FTH_ASSIGN_OR_RETURN(auto inner, open_reader(kind, files, memory, depth));
    return std::make_unique<FaultyReader>(std::move(inner), faults);
  };
}

}  // namespace fth::test
