// BlockReader over a few threads that block in pread: where io_uring is forbidden (containers, old kernels), and for files without O_DIRECT.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/experts/block_reader.h"

namespace fth {
namespace {

constexpr uint32_t kMaxThreads = 8;  // two to eight saturate the disks measured; more only add latency

class PreadReader final : public BlockReader {
 public:
  explicit PreadReader(const FileSet& files) : files_(files) {}
  ~PreadReader() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      waiting_.clear();
    }
    work_.notify_all();
    for (std::thread& t : threads_) t.join();
  }

  Result<> open(uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) {
      try {
        threads_.emplace_back([this] { serve(); });
      } catch (const std::system_error& e) {
        if (threads_.empty()) return fail(Code::resource_exhausted, std::string("pread reader: no thread can be started: ") + e.what());
        break;
      }
    }
    return {};
  }

  std::string name() const override {
    return "pread, " + std::to_string(threads_.size()) + (threads_.size() == 1 ? " thread" : " threads");
  }

  void submit(std::span<const Read> reads) override {
    {
      const std::lock_guard lock(mutex_);
      waiting_.insert(waiting_.end(), reads.begin(), reads.end());
    }
    // All, also for one read: glibc before 2.41 can lose the only signal where several threads wait (bug 25847), and a read that nobody makes is waited for
    // for ever. Seen with 2.36 under load: one read waiting, eight threads asleep.
    work_.notify_all();
  }

  void collect(std::vector<Done>* out, bool wait) override {
    std::unique_lock lock(mutex_);
    if (wait) arrived_.wait(lock, [this] { return !done_.empty(); });
    out->insert(out->end(), done_.begin(), done_.end());
    done_.clear();
  }

 private:
  void serve() {
    std::unique_lock lock(mutex_);
    while (true) {
      work_.wait(lock, [this] { return stop_ || !waiting_.empty(); });
      if (stop_) return;
      const Read read = waiting_.front();
      waiting_.pop_front();
      lock.unlock();
      const ssize_t n = ::pread(files_.fd(read.file), read.dst, read.bytes, static_cast<off_t>(read.offset));
      const int64_t count = n < 0 ? -int64_t{errno} : n;
      lock.lock();
      done_.push_back({read.tag, count});
      arrived_.notify_one();
    }
  }

  const FileSet& files_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;                        // guards what follows
  std::condition_variable work_, arrived_;  // waiting_ or stop_; done_
  std::deque<Read> waiting_;
  std::vector<Done> done_;
  bool stop_ = false;
};

}  // namespace

Result<std::unique_ptr<BlockReader>> open_pread_reader(const FileSet& files, uint32_t queue_depth) {
  auto reader = std::make_unique<PreadReader>(files);
  FTH_RETURN_IF_ERROR(reader->open(std::clamp(queue_depth, 1u, kMaxThreads)));
  return reader;
}

}  // namespace fth
