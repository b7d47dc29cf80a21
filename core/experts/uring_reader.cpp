// BlockReader over one io_uring, used without a thread of ours: submissions enter the kernel at once, completions are looked at when the caller comes by.
#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/experts/block_reader.h"

namespace fth {
namespace {

constexpr uint64_t kRegion = kGiB;  // the kernel's limit for one registered buffer

class UringReader final : public BlockReader {
 public:
  UringReader(const FileSet& files, std::span<std::byte> memory) : files_(files), memory_(memory) {}
  ~UringReader() override {
    if (!open_) return;
    std::vector<Done> ignored;
    while (in_flight_ > 0) collect(&ignored, true);
    io_uring_queue_exit(&ring_);
  }

  Result<> open(uint32_t queue_depth) {
    // Completions wait until we come by, rather than interrupt the computation (Linux 5.19).
    int error = io_uring_queue_init(queue_depth, &ring_, IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
    if (error == -EINVAL) error = io_uring_queue_init(queue_depth, &ring_, 0);
    if (error < 0) return fail(Code::unavailable, std::string("io_uring: ") + std::strerror(-error));
    open_ = true;
    // A read that straddles two regions goes without: one in a thousand.
    std::vector<iovec> regions;
    for (uint64_t at = 0; at < memory_.size(); at += kRegion)
      regions.push_back({memory_.data() + at, static_cast<size_t>(std::min<uint64_t>(kRegion, memory_.size() - at))});
    // Fails where RLIMIT_MEMLOCK is small: reads then pin their pages one by one, which costs a little CPU and nothing else.
    registered_ = !regions.empty() && io_uring_register_buffers(&ring_, regions.data(), static_cast<unsigned>(regions.size())) == 0;
    return {};
  }

  std::string name() const override { return registered_ ? "io_uring with registered memory" : "io_uring"; }

  void submit(std::span<const Read> reads) override {
    for (const Read& read : reads) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) {
        flush();
        sqe = io_uring_get_sqe(&ring_);
      }
      if (sqe == nullptr) {  // the kernel takes nothing now
        refused_.push_back({read.tag, -EAGAIN});
        continue;
      }
      const int fd = files_.fd(read.file);
      const uint64_t at = static_cast<uint64_t>(read.dst - memory_.data());
      if (registered_ && read.dst >= memory_.data() && at + read.bytes <= memory_.size() && at / kRegion == (at + read.bytes - 1) / kRegion)
        io_uring_prep_read_fixed(sqe, fd, read.dst, read.bytes, read.offset, static_cast<int>(at / kRegion));
      else
        io_uring_prep_read(sqe, fd, read.dst, read.bytes, read.offset);
      io_uring_sqe_set_data64(sqe, read.tag);
      ++in_flight_;
    }
    flush();
  }

  void collect(std::vector<Done>* out, bool wait) override {
    out->insert(out->end(), refused_.begin(), refused_.end());
    if (!std::exchange(refused_, {}).empty()) wait = false;
    if (in_flight_ == 0) return;
    if (unsubmitted_) flush();
    const size_t before = out->size();
    while (reap(out), wait && out->size() == before) {
      io_uring_cqe* cqe = nullptr;
      const int error = unsubmitted_ ? io_uring_submit_and_wait(&ring_, 1) : io_uring_wait_cqe(&ring_, &cqe);
      unsubmitted_ = unsubmitted_ && error < 0;
      FTH_CHECK(error >= 0 || error == -EINTR || error == -EAGAIN || error == -EBUSY, "the kernel refuses to wait on a ring that it made");
    }
  }

 private:
  // The kernel may take a part (short of memory): the rest stays in the ring and goes with the next call.
  void flush() {
    const unsigned ready = io_uring_sq_ready(&ring_);
    const int n = io_uring_submit(&ring_);
    unsubmitted_ = n < 0 || static_cast<unsigned>(n) < ready;
  }

  void reap(std::vector<Done>* out) {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0 && cqe != nullptr) {
      out->push_back({io_uring_cqe_get_data64(cqe), cqe->res});
      io_uring_cqe_seen(&ring_, cqe);
      --in_flight_;
    }
  }

  const FileSet& files_;
  std::span<std::byte> memory_;
  io_uring ring_ = {};
  bool open_ = false, registered_ = false, unsubmitted_ = false;
  uint64_t in_flight_ = 0;
  std::vector<Done> refused_;
};

}  // namespace

Result<std::unique_ptr<BlockReader>> open_uring_reader(const FileSet& files, std::span<std::byte> memory, uint32_t queue_depth) {
  auto reader = std::make_unique<UringReader>(files, memory);
  FTH_RETURN_IF_ERROR(reader->open(std::max(queue_depth, 1u)));
  return reader;
}

Result<std::unique_ptr<BlockReader>> open_reader(const std::string& name, const FileSet& files, std::span<std::byte> memory,
                                                 uint32_t queue_depth) {
  if (name == "pread" || (name == "auto" && !files.direct())) return open_pread_reader(files, queue_depth);
  if (name == "uring") return open_uring_reader(files, memory, queue_depth);
  if (name != "auto") return fail(Code::invalid_argument, "reader \"" + name + "\": auto, uring and pread are known");
  auto uring = open_uring_reader(files, memory, queue_depth);
  return uring ? std::move(uring) : open_pread_reader(files, queue_depth);
}

}  // namespace fth
