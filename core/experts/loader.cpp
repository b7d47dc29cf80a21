// The life of a read: waiting, in flight, judged, perhaps again.
#include "core/experts/loader.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <utility>

#include "core/base/check.h"

namespace fth {
namespace {

constexpr uint32_t kRepeats = 100;  // after EINTR, EAGAIN, ECANCELED and short counts: none is a fault, but a read that never gets on is
constexpr uint32_t kAtOnce = 20;    // of those; the rest wait a little, since a hundred refusals take the kernel less than a millisecond
constexpr uint32_t kFailures = 3;   // tries in all after EIO and the like: flash recovers from some

double seconds(std::chrono::steady_clock::duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace

Loader::Loader(const FileSet& files, std::unique_ptr<BlockReader> reader, uint32_t n_slots, uint32_t queue_depth, uint64_t request_bytes)
    : files_(files), depth_(queue_depth), request_bytes_(request_bytes), jobs_(n_slots), reader_(std::move(reader)) {}

void Loader::load(uint32_t slot, std::span<const Extent> extents, Range front, std::byte* base, Urgency urgency) {
  Job& job = jobs_[slot];
  FTH_CHECK(job.waiting == 0 && job.flying == 0, "a slot is loaded while it is being read");
  job = {urgency, 0, 0, 0, 0, false, std::nullopt, {}};
  for (const bool now : {true, false}) {
    for (const Extent& e : extents) {
      // The blocks of this extent that hold the front, and what is before and behind them; all of it where one read gets it.
      const uint64_t first = e.block_begin(), last = e.block_end(), length = last - first;
      const auto clip = [&](uint64_t at) { return first + std::clamp<uint64_t>(at, e.slot_at, e.slot_at + length) - e.slot_at; };
      uint64_t begin = clip(front.begin / kBlock * kBlock), end = clip((front.end + kBlock - 1) / kBlock * kBlock);
      if (begin < end && length <= request_bytes_) begin = first, end = last;
      if (now) add_pieces(slot, e, begin, end, base, true);
      if (!now) add_pieces(slot, e, first, std::min(begin, end), base, false), add_pieces(slot, e, std::max(begin, end), last, base, false);
    }
  }
  note_guess(job, true);
}

// In reads of about the same length, none longer than a request.
void Loader::add_pieces(uint32_t slot, const Extent& extent, uint64_t begin, uint64_t end, std::byte* base, bool front) {
  if (begin >= end) return;
  Job& job = jobs_[slot];
  const uint64_t n = (end - begin + request_bytes_ - 1) / request_bytes_;
  const uint64_t step = ((end - begin + n - 1) / n + kBlock - 1) / kBlock * kBlock;
  for (uint64_t at = begin; at < end; at += step) {
    uint32_t index = static_cast<uint32_t>(pieces_.size());
    if (free_pieces_.empty()) {
      pieces_.emplace_back();
    } else {
      index = free_pieces_.back();
      free_pieces_.pop_back();
    }
    const uint64_t to = std::min(at + step, end);
    pieces_[index] = {slot, extent.file, at, std::min(to, extent.end), to, base + extent.slot_at + (at - extent.block_begin()), front,
                      0,    0,           {}};
    job.bytes += to - at;
    job.front += front ? 1 : 0;
    queue(index, job.urgency, false);
  }
}

void Loader::note_guess(const Job& job, bool add) {
  if (job.urgency == Urgency::guess) guess_bytes_ = add ? guess_bytes_ + job.bytes : guess_bytes_ - job.bytes;
}

void Loader::queue(uint32_t piece, Urgency urgency, bool first) {
  auto& q = queue_for(urgency, pieces_[piece].front);
  if (first)
    q.push_front(piece);
  else
    q.push_back(piece);
  ++jobs_[pieces_[piece].slot].waiting;
  ++waiting_;
}

void Loader::raise(uint32_t slot, Urgency urgency) {
  Job& job = jobs_[slot];
  if (urgency >= job.urgency || (job.waiting == 0 && job.flying == 0)) return;
  for (const bool front : {true, false}) {
    auto& from = queue_for(job.urgency, front);
    auto& to = queue_for(urgency, front);
    if (job.waiting == 0) break;
    const auto middle = std::stable_partition(from.begin(), from.end(), [&](uint32_t p) { return pieces_[p].slot != slot; });
    to.insert(to.end(), middle, from.end());
    from.erase(middle, from.end());
  }
  note_guess(job, false);
  job.urgency = urgency;
}

void Loader::drop_waiting(uint32_t slot) {
  Job& job = jobs_[slot];
  if (job.waiting == 0) return;
  for (const bool front : {true, false}) {
    auto& q = queue_for(job.urgency, front);
    const auto gone = std::remove_if(q.begin(), q.end(), [&](uint32_t p) {
      if (pieces_[p].slot != slot) return false;
      free_pieces_.push_back(p);
      return true;
    });
    q.erase(gone, q.end());
  }
  waiting_ -= job.waiting;
  job.waiting = 0;
}

bool Loader::cancel(uint32_t slot) {
  Job& job = jobs_[slot];
  if (job.started || job.waiting == 0) return false;
  drop_waiting(slot);
  note_guess(job, false);
  return true;
}

void Loader::pump() {
  if (waiting_ == 0 || in_flight_ >= depth_) return;
  batch_.clear();
  const auto now = Clock::now();
  for (size_t u = 0; u < queues_.size(); ++u) {
    // A demand that arrives later finds at most half a queue of guesses before it.
    const uint32_t room = u / 2 == static_cast<size_t>(Urgency::guess) ? std::max(depth_ / 2, 1u) : depth_;
    auto& q = queues_[u];
    while (!q.empty() && in_flight_ < room) {
      const uint32_t index = q.front();
      q.pop_front();
      Piece& p = pieces_[index];
      Job& job = jobs_[p.slot];
      p.begun = now;
      batch_.push_back({p.file, p.at, static_cast<uint32_t>(p.end - p.at), p.dst, index});
      --job.waiting;
      ++job.flying;
      if (!job.started) job.begun = now;
      job.started = true;
      --waiting_;
      if (in_flight_++ == 0) busy_since_ = now;
    }
  }
  if (!batch_.empty()) reader_->submit(batch_);
}

void Loader::collect(bool wait, std::vector<Landed>* landed) {
  pump();
  if (in_flight_ == 0) return;
  done_.clear();
  reader_->collect(&done_, wait);
  if (done_.empty()) return;
  for (const BlockReader::Done& d : done_) finish(d, landed);
  if (in_flight_ == 0) stats_.io_s += seconds(Clock::now() - busy_since_);
  pump();
}

void Loader::finish(const BlockReader::Done& done, std::vector<Landed>* landed) {
  const uint32_t index = static_cast<uint32_t>(done.tag);
  FTH_CHECK(index < pieces_.size(), "a completion of a read that was never made");
  Piece& p = pieces_[index];
  Job& job = jobs_[p.slot];
  --in_flight_;
  --job.flying;
  const auto now = Clock::now();
  const uint64_t us =
      static_cast<uint64_t>(std::max<int64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now - p.begun).count(), 1));
  ++stats_.latency[std::min<size_t>(static_cast<size_t>(std::bit_width(us)) - 1, stats_.latency.size() - 1)];
  if (done.count > 0) stats_.bytes_read += static_cast<uint64_t>(done.count);
  std::optional<Error> error = judge(&p, done.count);
  const bool again = !error && p.at < p.need;
  if (again && !job.error) {
    ++stats_.retries;
    queue(index, job.urgency, true);
    return;
  }
  free_pieces_.push_back(index);
  if (p.front && !error) --job.front;
  if (error && !job.error) {
    job.error = std::move(error);
    drop_waiting(p.slot);  // the expert is lost: what was not started need not be
  }
  if (job.waiting > 0 || job.flying > 0) return;
  note_guess(job, false);
  landed->push_back({p.slot, std::exchange(job.error, std::nullopt), job.begun, now, job.bytes});
}

// Moves the piece on by what came. An error when there is no point in another try.
std::optional<Error> Loader::judge(Piece* p, int64_t count) {
  const auto lost = [&](Code code, const std::string& what) {
    const std::string changed = files_.changed(p->file);
    return Error{changed.empty() ? code : Code::data_loss, files_.path(p->file).string() +
                                                               (changed.empty() ? ": " + what : " " + changed + " while in use: " + what) +
                                                               " at byte " + std::to_string(p->at)};
  };
  if (count > static_cast<int64_t>(p->end - p->at)) return lost(Code::unavailable, "a read returned more than was asked for");
  if (count > 0) {
    if (p->at + static_cast<uint64_t>(count) >= p->need) {
      p->at = p->need;
      return std::nullopt;
    }
    const uint64_t whole = static_cast<uint64_t>(count) / kBlock * kBlock;  // direct reads go on at a block
    p->at += whole;
    p->dst += whole;
    if (whole > 0) p->repeats = 0;
    // An end of file within a block never grows past it; other short counts do, sooner or later.
    if (++p->repeats > kRepeats) return lost(Code::data_loss, "short reads, " + std::to_string(count) + " bytes again and again");
    return std::nullopt;
  }
  if (count == 0) return lost(Code::data_loss, "the file ends");
  // io_uring gives a read up (ECANCELED) when it can start no worker for it just now.
  if (count == -EINTR || count == -EAGAIN || count == -ECANCELED) {
    if (++p->repeats > kRepeats)
      return lost(Code::unavailable, std::string(std::strerror(static_cast<int>(-count))) + ", " + std::to_string(kRepeats) + " times");
    if (p->repeats > kAtOnce && count != -EINTR) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return std::nullopt;
  }
  if (++p->failures < kFailures) return std::nullopt;
  return lost(Code::unavailable, std::string(std::strerror(static_cast<int>(-count))) + " in " + std::to_string(kFailures) + " tries");
}

void Loader::add_to(ExpertStats* stats) const {
  stats->bytes_read = stats_.bytes_read;
  stats->retries += stats_.retries;
  stats->io_s = stats_.io_s + (in_flight_ > 0 ? seconds(Clock::now() - busy_since_) : 0);
  stats->latency = stats_.latency;
}

}  // namespace fth
