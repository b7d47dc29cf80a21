// The cpu backend behind two devices of their own memory, beside:0 and beside:1, each with a thread: submit returns at once, and copies queue behind what runs, as behind a
// driver's queue. Options: launch_us=N and row_us=N, for known speeds, are what a run takes at least and what it takes for each row beyond that; fail_run=N makes the N-th run fail
// when it is waited for. FTH_BESIDE in the environment has options of beside:1 for those who give it none, such as self-tests. beside_runs() hands out when runs were
// queued and ended, for tests that ask what was under way at once.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "plugins/abi/fth_backend.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace {

using Clock = std::chrono::steady_clock;

const fth_backend* g_cpu = nullptr;  // set once by the query, before any other call

fth_code say(fth_error* err, fth_code code, const char* what) {
  std::snprintf(err->message, sizeof err->message, "beside: %s", what);
  return code;
}

struct Span {
  int64_t begin_ns, end_ns;
};
std::mutex g_runs_mutex;
std::vector<Span> g_runs;

// A device: one run at a time, on its own thread, which a driver's queue would be.
class Queue {
 public:
  Queue() : thread_([this] { work(); }) {}
  ~Queue() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  struct Job {
    fth_executable* executable = nullptr;
    const fth_binding* bindings = nullptr;
    uint32_t n_bindings = 0;
    const int64_t* scalars = nullptr;
    Clock::time_point begin;  // queued
  };
  fth_code submit(const Job& job, fth_error* err) {
    const std::lock_guard lock(mutex_);
    if (state_ != State::idle) return say(err, FTH_FAILED_PRECONDITION, "submitted while another run had not been waited for");
    job_ = job;
    job_.begin = Clock::now();
    std::memcpy(scalars_, job.scalars, sizeof scalars_);
    state_ = State::runs;
    changed_.notify_all();
    return FTH_OK;
  }
  fth_code wait(fth_error* err) {
    std::unique_lock lock(mutex_);
    if (state_ == State::idle) return say(err, FTH_FAILED_PRECONDITION, "waited for without a run");
    changed_.wait(lock, [this] { return state_ == State::done; });
    state_ = State::idle;
    *err = error_;
    return code_;
  }
  void drain() {  // what a copy does first
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return state_ != State::runs; });
  }

  long launch_us = 0, row_us = 0, fail_run = 0;
  uint32_t index = 0;

 private:
  enum class State { idle, runs, done };
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return ends_ || state_ == State::runs; });
      if (ends_) return;
      lock.unlock();
      fth_event* event = nullptr;
      fth_error error{};
      fth_code code = g_cpu->submit(job_.executable, job_.bindings, job_.n_bindings, scalars_, &event, &error);
      if (code == FTH_OK) code = g_cpu->wait(event, &error);
      if (--fail_run == 0) code = say(&error, FTH_UNAVAILABLE, "the device was lost");
      std::this_thread::sleep_until(job_.begin + std::chrono::microseconds(launch_us + row_us * scalars_[FTH_SCALAR_TOKENS]));
      const auto end = Clock::now();
      {
        const std::lock_guard runs(g_runs_mutex);
        g_runs.push_back(
            {job_.begin.time_since_epoch() / std::chrono::nanoseconds(1), end.time_since_epoch() / std::chrono::nanoseconds(1)});
      }
      lock.lock();
      code_ = code;
      error_ = error;
      state_ = State::done;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  State state_ = State::idle;
  bool ends_ = false;
  Job job_;
  int64_t scalars_[FTH_SCALAR_COUNT] = {};
  fth_code code_ = FTH_OK;
  fth_error error_{};
  std::thread thread_;  // last: it uses the others
};

// What the cpu backend made, and whose it is. Calls for different devices may come at once.
std::mutex g_mutex;
std::map<const void*, std::shared_ptr<Queue>> g_queues;
std::shared_ptr<Queue> queue_of(const void* p) {
  const std::lock_guard lock(g_mutex);
  return g_queues.at(p);
}
template <class T>
fth_code made(fth_code code, T** out, const void* of) {
  if (code == FTH_OK) {
    auto queue = queue_of(of);
    const std::lock_guard lock(g_mutex);
    g_queues[*out] = std::move(queue);
  }
  return code;
}
void forget(const void* p) {
  std::shared_ptr<Queue> last;  // ends outside of the lock
  const std::lock_guard lock(g_mutex);
  last = std::move(g_queues.at(p));
  g_queues.erase(p);
}

fth_code device_count(uint32_t* out, fth_error*) {
  *out = 2;
  return FTH_OK;
}

fth_code open(uint32_t index, const char* options, fth_device** out, fth_error* err) {
  auto queue = std::make_shared<Queue>();
  queue->index = index;
  const char* const others = std::getenv("FTH_BESIDE");
  std::string rest = options != nullptr ? options : index == 1 && others != nullptr ? others : "";
  while (!rest.empty()) {
    const std::string item = rest.substr(0, rest.find(','));
    rest.erase(0, item.size() + 1);
    long* const to = item.rfind("launch_us=", 0) == 0  ? &queue->launch_us
                     : item.rfind("row_us=", 0) == 0   ? &queue->row_us
                     : item.rfind("fail_run=", 0) == 0 ? &queue->fail_run
                                                       : nullptr;
    if (to == nullptr) return say(err, FTH_INVALID_ARGUMENT, "the options are launch_us=N, row_us=N and fail_run=N");
    *to = std::atol(item.c_str() + item.find('=') + 1);
  }
  const fth_code code = g_cpu->open(0, nullptr, out, err);
  if (code != FTH_OK) return code;
  const std::lock_guard lock(g_mutex);
  g_queues[*out] = std::move(queue);
  return code;
}
void close(fth_device* device) {
  forget(device);
  g_cpu->close(device);
}

fth_code info(fth_device* device, fth_device_info* out, fth_error* err) {
  const fth_code code = g_cpu->info(device, out, err);
  if (code != FTH_OK) return code;
  out->flags &= ~static_cast<uint32_t>(FTH_DEVICE_HOST_MEMORY);
  out->kind = FTH_KIND_GPU;
  out->free_bytes = out->memory_bytes = uint64_t{4} << 30;
  std::snprintf(out->name, sizeof out->name, "beside:%u", queue_of(device)->index);
  std::snprintf(out->description, sizeof out->description, "the cpu backend on a thread of its own, %ld us and %ld us for each row",
                queue_of(device)->launch_us, queue_of(device)->row_us);
  return FTH_OK;
}

fth_code alloc(fth_device* device, uint64_t bytes, fth_buffer** out, fth_error* err) {
  return made(g_cpu->alloc(device, bytes, out, err), out, device);
}
fth_code import_host(fth_device*, void*, uint64_t, fth_buffer**, fth_error* err) {
  return say(err, FTH_UNIMPLEMENTED, "host memory cannot be read in place");
}
void free_buffer(fth_buffer* b) {
  forget(b);
  g_cpu->free(b);
}
fth_code write(fth_buffer* b, uint64_t offset, const void* src, uint64_t bytes, fth_error* err) {
  queue_of(b)->drain();
  return g_cpu->write(b, offset, src, bytes, err);
}
fth_code read(fth_buffer* b, uint64_t offset, void* dst, uint64_t bytes, fth_error* err) {
  queue_of(b)->drain();
  return g_cpu->read(b, offset, dst, bytes, err);
}
fth_code compile(fth_device* device, const fth_segment* s, const fth_binding* weights, uint32_t n, fth_executable** out, fth_error* err) {
  return made(g_cpu->compile(device, s, weights, n, out, err), out, device);
}
void release(fth_executable* x) {
  forget(x);
  g_cpu->release(x);
}
fth_code submit(fth_executable* x, const fth_binding* bindings, uint32_t n, const int64_t* scalars, fth_event** out, fth_error* err) {
  const auto queue = queue_of(x);
  const fth_code code = queue->submit({x, bindings, n, scalars, {}}, err);
  if (code == FTH_OK) *out = reinterpret_cast<fth_event*>(queue.get());
  return code;
}
fth_code wait(fth_event* event, fth_error* err) {
  fth_error error{};
  const fth_code code = reinterpret_cast<Queue*>(event)->wait(&error);
  if (code != FTH_OK) *err = error;
  return code;
}

// On the calling thread: the device's own.
void one_by_one(void*, uint32_t n, void (*body)(void* arg, uint32_t i), void* arg) {
  for (uint32_t i = 0; i < n; ++i) body(arg, i);
}

}  // namespace

// Copies the runs since the last call, at most `most`; how many there were.
extern "C" FTH_EXPORT size_t beside_runs(int64_t (*out)[2], size_t most) {
  const std::lock_guard lock(g_runs_mutex);
  const size_t n = g_runs.size();
  for (size_t i = 0; i < n && i < most; ++i) out[i][0] = g_runs[i].begin_ns, out[i][1] = g_runs[i].end_ns;
  g_runs.clear();
  return n;
}

extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t abi_major, const fth_host* host) {
  static fth_host own = *host;
  own.n_threads = 1;
  own.parallel_for = one_by_one;
  g_cpu = fth_cpu_query(abi_major, &own);
  if (g_cpu == nullptr) return nullptr;
  static fth_backend table = *g_cpu;
  table.name = "beside";
  table.device_count = device_count;
  table.open = open;
  table.close = close;
  table.info = info;
  table.alloc = alloc;
  table.import_host = import_host;
  table.free = free_buffer;
  table.write = write;
  table.read = read;
  table.compile = compile;
  table.release = release;
  table.submit = submit;
  table.wait = wait;
  return &table;
}
