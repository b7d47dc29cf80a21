// Page p of a layer lives in place p % resident of its layer while it is among the newest; the page that it drives out is full by then and goes to the file.
#include "core/engine/kv_pages.h"

#include <fcntl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/check.h"

namespace fth {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kDepth = 32, kTries = 3;
constexpr uint64_t kPieceBytes = kMiB;
constexpr char kAbsent = 0, kReading = 1, kSpoilt = 2, kThere = 3;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

bool is_in_memory(int fd) {
  struct statfs fs = {};
  constexpr unsigned long kTmpfs = 0x01021994, kRamfs = 0x858458f6;
  return ::fstatfs(fd, &fs) == 0 && (static_cast<unsigned long>(fs.f_type) == kTmpfs || static_cast<unsigned long>(fs.f_type) == kRamfs);
}

// A file that nobody else can open and that goes with its last descriptor.
int nameless_file(const std::filesystem::path& directory) {
  const int fd = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
  std::string name = (directory / "forethought-kv-XXXXXX").string();
  const int named = ::mkostemp(name.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(name.c_str());
  return named;
}

}  // namespace

uint64_t KvPagesShape::half_page_bytes() const { return align_up(static_cast<uint64_t>(page_cells) * cell_bytes, kBlock); }

Result<std::unique_ptr<KvPages>> KvPages::open(const KvPagesShape& shape, const std::filesystem::path& directory,
                                               const std::string& reader) {
  return open(shape, directory, [&reader](const FileSet& files, std::span<std::byte> memory, uint32_t depth) {
    return open_reader(reader, files, memory, depth);
  });
}

Result<std::unique_ptr<KvPages>> KvPages::open(const KvPagesShape& shape, const std::filesystem::path& directory,
                                               const ExpertStore::MakeReader& make_reader) {
  if (shape.n_layers < 1 || shape.page_cells < 1 || shape.n_pages < 1 || shape.resident < 1 || shape.resident > shape.n_pages ||
      shape.cell_bytes == 0)
    return fail(Code::invalid_argument, "KV pages: " + std::to_string(shape.n_layers) + " layers, " + std::to_string(shape.resident) +
                                            " of " + std::to_string(shape.n_pages) + " pages resident");
  std::unique_ptr<KvPages> kv(new KvPages(shape));
  kv->directory_ = directory;
  const int file = nameless_file(directory);
  const auto cannot = [&](Code code, const std::string& why) {
    const int saved = errno;
    if (file >= 0) ::close(file);
    return fail(code, "a file for the older part of the KV cache cannot be kept in " + directory.string() + ": " +
                          (why.empty() ? std::strerror(saved) : why) + "; --kv-dir names another directory");
  };
  if (file < 0) return cannot(Code::unavailable, "");
  if (is_in_memory(file)) return cannot(Code::failed_precondition, "it is in memory itself");
  const uint64_t bytes = static_cast<uint64_t>(shape.n_layers * shape.n_pages) * shape.page_bytes();
  if (::ftruncate(file, static_cast<off_t>(bytes)) != 0) return cannot(Code::unavailable, "");
  const std::filesystem::path again = "/proc/self/fd/" + std::to_string(file);
  auto files = FileSet::open({&again, 1}, true);
  if (!files) return cannot(files.error().code, files.error().message);
  kv->files_ = std::move(*files);
  kv->write_fd_ = kv->files_.direct() ? ::open(again.c_str(), O_WRONLY | O_CLOEXEC | O_DIRECT) : ::dup(file);
  if (kv->write_fd_ < 0) return cannot(Code::unavailable, "");
  ::close(file);
  FTH_ASSIGN_OR_RETURN(kv->memory_, SlotMemory::allocate(shape.resident_bytes() + shape.staging_bytes(), true));
  FTH_ASSIGN_OR_RETURN(kv->reader_, make_reader(kv->files_, kv->memory_.bytes(), kDepth));
  kv->owners_.assign(static_cast<size_t>(shape.n_layers * shape.resident), -1);
  for (Half& half : kv->halves_) half.state.assign(static_cast<size_t>(shape.staged()), kAbsent);
  kv->pages_left_.assign(static_cast<size_t>(2 * shape.n_pages), 0);
  return kv;
}

KvPages::~KvPages() {
  reader_.reset();
  if (write_fd_ >= 0) ::close(write_fd_);
}

std::string KvPages::description() const { return reader_->name() + (files_.direct() ? ", O_DIRECT" : ", buffered"); }

uint64_t KvPages::resident_at(int64_t layer, int64_t page) const {
  return static_cast<uint64_t>(layer * shape_.resident + page % shape_.resident) * shape_.page_bytes();
}
uint64_t KvPages::staged_at(uint32_t half, int64_t page) const {
  return shape_.resident_bytes() + static_cast<uint64_t>(half * shape_.staged() + page) * shape_.page_bytes();
}
uint64_t KvPages::file_at(int64_t layer, int64_t page) const {
  return static_cast<uint64_t>(layer * shape_.n_pages + page) * shape_.page_bytes();
}
int64_t& KvPages::owner(int64_t layer, int64_t page) {
  return owners_[static_cast<size_t>(layer * shape_.resident + page % shape_.resident)];
}

uint64_t KvPages::place(int64_t page) const {
  return page >= first_resident_ ? resident_at(current_layer_, page) : staged_at(current_half_, page);
}

// The half that holds `layer`, or the one used the longer ago, emptied for it.
uint32_t KvPages::half_for(int64_t layer) {
  for (uint32_t h = 0; h < 2; ++h)
    if (halves_[h].layer == layer) return last_half_ = h;
  const uint32_t h = 1 - last_half_;
  Half& half = halves_[h];
  drain(half);  // of a step that came to nothing
  half.layer = layer;
  std::fill(half.state.begin(), half.state.end(), kAbsent);
  return last_half_ = h;
}

void KvPages::begin_read(uint32_t h, int64_t page) {
  Half& half = halves_[h];
  half.state[static_cast<size_t>(page)] = kReading;
  ++half.reading;
  int64_t& left = pages_left_[static_cast<size_t>(h * shape_.n_pages + page)];
  left = 0;
  for (uint64_t at = 0; at < shape_.page_bytes(); at += kPieceBytes, ++left) {
    uint32_t index = static_cast<uint32_t>(pieces_.size());
    if (free_pieces_.empty()) {
      pieces_.emplace_back();
    } else {
      index = free_pieces_.back();
      free_pieces_.pop_back();
    }
    pieces_[index] = {file_at(half.layer, page) + at,
                      static_cast<uint32_t>(std::min(kPieceBytes, shape_.page_bytes() - at)),
                      memory_.bytes().data() + staged_at(h, page) + at,
                      h,
                      page,
                      0};
    waiting_.push_back(index);
  }
}

Result<> KvPages::move(bool wait) {
  std::vector<BlockReader::Read> reads;
  const auto submit = [&] {
    reads.clear();
    for (; !waiting_.empty() && in_flight_ < kDepth; ++in_flight_, waiting_.pop_front()) {
      const Piece& p = pieces_[waiting_.front()];
      reads.push_back({0, p.offset, p.bytes, p.to, waiting_.front()});
    }
    if (!reads.empty()) reader_->submit(reads);
  };
  submit();
  if (in_flight_ == 0) return {};
  std::vector<BlockReader::Done> done;
  reader_->collect(&done, wait);
  Result<> outcome;
  for (const BlockReader::Done& d : done) {
    --in_flight_;
    Piece& p = pieces_[d.tag];
    const bool whole = d.count == static_cast<int64_t>(p.bytes);
    if (!whole && ++p.tries < kTries) {
      waiting_.push_back(static_cast<uint32_t>(d.tag));
      continue;
    }
    if (whole) {
      stats_.bytes_read += p.bytes;
    } else {
      outcome = fail(d.count < 0 ? Code::unavailable : Code::data_loss,
                     where() + ": " + (d.count < 0 ? std::strerror(static_cast<int>(-d.count)) : "short reads") + " at byte " +
                         std::to_string(p.offset));
    }
    free_pieces_.push_back(static_cast<uint32_t>(d.tag));
    Half& half = halves_[p.half];
    char& state = half.state[static_cast<size_t>(p.page)];
    if (!whole) state = kSpoilt;
    if (--pages_left_[static_cast<size_t>(p.half * shape_.n_pages + p.page)] > 0) continue;
    --half.reading;
    state = state == kSpoilt ? kAbsent : kThere;
  }
  submit();
  return outcome;
}

void KvPages::drain(Half& half) {
  while (half.reading > 0) (void)move(true);  // what failed is absent
}

void KvPages::poll() {
  if (in_flight_ > 0 || !waiting_.empty()) (void)move(false);  // what failed is absent, and read again by ready()
}

void KvPages::prefetch(int64_t layer, int64_t pos, int64_t n) {
  const int64_t spilled = std::max<int64_t>(0, (pos + n - 1) / shape_.page_cells + 1 - shape_.resident);
  if (spilled == 0) return;
  const uint32_t h = half_for(layer);
  for (int64_t page = 0; page < std::min(spilled, shape_.staged()); ++page)
    if (halves_[h].state[static_cast<size_t>(page)] == kAbsent && owner(layer, page) != page) begin_read(h, page);
  poll();
}

Result<> KvPages::write(int64_t layer, int64_t page, const std::byte* from) {
  uint64_t offset = file_at(layer, page), left = shape_.page_bytes();
  while (left > 0) {
    const ssize_t n = ::pwrite(write_fd_, from, left, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return fail(errno == ENOSPC || errno == EDQUOT || errno == EFBIG ? Code::resource_exhausted : Code::unavailable,
                  where() + ": " + std::strerror(errno) + " while writing " + format_bytes(left) + "; --kv-dir names another directory");
    from += n, offset += static_cast<uint64_t>(n), left -= static_cast<uint64_t>(n);
  }
  stats_.bytes_written += shape_.page_bytes();
  return {};
}

Result<> KvPages::read_now(int64_t layer, int64_t page, std::byte* to) {
  uint64_t offset = file_at(layer, page), left = shape_.page_bytes();
  while (left > 0) {
    const ssize_t n = ::pread(files_.fd(0), to, left, static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(n == 0 ? Code::data_loss : Code::unavailable, where() + ": " + (n == 0 ? "it ends" : std::strerror(errno)));
    to += n, offset += static_cast<uint64_t>(n), left -= static_cast<uint64_t>(n);
  }
  stats_.bytes_read += shape_.page_bytes();
  return {};
}

Result<> KvPages::ready(int64_t layer, int64_t pos, int64_t n) {
  const auto begin = Clock::now();
  const int64_t first = pos / shape_.page_cells, last = (pos + n - 1) / shape_.page_cells;
  FTH_CHECK(layer >= 0 && layer < shape_.n_layers && last < shape_.n_pages && last - first < shape_.resident, "a step fits the pages");
  const int64_t spilled = std::max<int64_t>(0, last + 1 - shape_.resident);
  const uint32_t h = half_for(layer);
  Half& half = halves_[h];
  std::byte* const base = memory_.bytes().data();
  for (int64_t page = first; page <= last; ++page) {
    const int64_t before = owner(layer, page);
    if (before == page) continue;
    if (before >= 0 && before < page) {  // full, and needed by this very step
      FTH_RETURN_IF_ERROR(write(layer, before, base + resident_at(layer, before)));
      std::memcpy(base + staged_at(h, before), base + resident_at(layer, before), shape_.page_bytes());
      half.state[static_cast<size_t>(before)] = kThere;
    }
    owner(layer, page) = -1;
    if (page * shape_.page_cells < pos) FTH_RETURN_IF_ERROR(read_now(layer, page, base + resident_at(layer, page)));
    owner(layer, page) = page;
  }
  const auto begin_absent = [&] {
    for (int64_t page = 0; page < spilled; ++page)
      if (half.state[static_cast<size_t>(page)] == kAbsent) begin_read(h, page);
  };
  begin_absent();
  // Pages between the spilled and the written ones are resident, or a longer conversation drove them out before it was cut.
  for (int64_t page = spilled; page < first; ++page) {
    if (owner(layer, page) == page) continue;
    owner(layer, page) = -1;
    FTH_RETURN_IF_ERROR(read_now(layer, page, base + resident_at(layer, page)));
    owner(layer, page) = page;
  }
  // A page that an earlier call spoilt is absent when the last of its reads is back, and read again.
  Result<> moved;
  for (; moved && half.reading > 0; begin_absent())
    while (moved && half.reading > 0) moved = move(true);
  stats_.stall_s += seconds_since(begin);
  FTH_RETURN_IF_ERROR(moved);
  current_layer_ = layer;
  current_half_ = h;
  first_resident_ = spilled;
  return {};
}

void KvPages::truncate(int64_t n_past) {
  // What is staged may be of pages that are about to change; what is resident and beyond the end may not be taken for older pages that are full.
  for (Half& half : halves_) {
    drain(half);
    half.layer = -1;
    std::fill(half.state.begin(), half.state.end(), kAbsent);
  }
  for (int64_t& page : owners_)
    if (page >= 0 && page * shape_.page_cells >= n_past) page = -1;
}

}  // namespace fth
