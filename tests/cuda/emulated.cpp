// backends/cuda/gpu.h without a GPU: two devices whose memory is the host's and whose kernels are loops; the second runs threads in descending order.
// It is as careless as a GPU is allowed to be: what is queued happens when somebody waits for it and no earlier, memory ends at a page that cannot be
// touched, and what nobody has written is NaN. Tests make calls fail (fault) and count what was made and not freed (live objects).

#include "tests/cuda/emulated.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

#include "backends/cuda/gpu.h"
#include "core/base/bytes.h"
#include "plugins/abi/fth_backend.h"
#include "plugins/sdk/text.h"
#include "tests/cuda/emulated_block.h"

namespace fth::cuda {
namespace {

using sdk::text;

using Clock = std::chrono::steady_clock;

constexpr uint32_t kGpus = 2;
constexpr uint64_t kMemory = 4 * kGiB;

struct Fault {
  std::string call;
  int after = 0;
  Code code = Code::internal;
} g_fault;
std::atomic<int> g_live{0};

Result<> check_fault(const char* call) {
  if (g_fault.call != call || g_fault.after-- > 0) return {};
  return fail(g_fault.code, text(call, ": emulated failure"));
}

// Pages of which the last is out of bounds; the memory ends at it, as far as its alignment lets it.
struct Pages {
  std::byte* base;
  uint64_t mapped, bytes;
};

struct Queue {
  bool descending = false;
  uint64_t used = 0;
  std::map<std::byte*, Pages> memory;
  std::deque<std::function<void()>> work;
  uint64_t queued = 0, done = 0;  // numbers of work

  void run_to(uint64_t number) {
    for (; done < number; ++done) {
      work.front()();
      work.pop_front();
    }
  }
  Result<std::byte*> map(uint64_t bytes) {
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE)), size = align_up(bytes, kAlign), mapped = align_up(size, page) + page;
    void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return fail(Code::resource_exhausted, text("mmap of ", format_bytes(mapped)));
    auto* const base = static_cast<std::byte*>(p);
    mprotect(base + mapped - page, page, PROT_NONE);
    std::byte* const at = base + mapped - page - size;
    memory[at] = {base, mapped, size};
    if (size <= kMiB) std::memset(at, 0xff, size);
    used += size;
    ++g_live;
    return at;
  }
  void unmap(std::byte* at) {
    const auto found = memory.find(at);
    if (found == memory.end()) std::abort();  // freed twice, or never made
    munmap(found->second.base, found->second.mapped);
    used -= found->second.bytes;
    memory.erase(found);
    --g_live;
  }
  static constexpr uint64_t kAlign = 16;  // a driver gives 256; the closer memory ends at its end, the more is seen
};

// A mark: how much of the queue was there when it was recorded, and when the queue came to it. The queue holds on to the time: a mark may be freed before.
struct Place {
  uint64_t queued = 0;
  std::shared_ptr<Clock::time_point> reached;  // null: not timed
};

Queue& queue_of(void* p) { return *static_cast<Queue*>(p); }

template <class Kernel>
void run_grid(Grid grid, const Params& params, bool descending) {
  const auto shared = std::make_unique<typename Kernel::Shared>();
  const uint64_t n = uint64_t{grid.x} * grid.y;
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t at = descending ? n - 1 - i : i;
    EmulatedBlock<Kernel> block(*shared, static_cast<uint32_t>(at % grid.x), static_cast<uint32_t>(at / grid.x), descending);
    Kernel::run(block, params);
  }
}

#define FTH_CUDA_RUN(name, ...) &run_grid<__VA_ARGS__>,
constexpr void (*kRuns[])(Grid, const Params&, bool) = {FTH_CUDA_KERNELS(FTH_CUDA_RUN)};
#undef FTH_CUDA_RUN

}  // namespace

Result<uint32_t> count_gpus() {
  FTH_RETURN_IF_ERROR(check_fault("count"));
  return kGpus;
}

Result<std::unique_ptr<Gpu>> Gpu::open(uint32_t index) {
  FTH_RETURN_IF_ERROR(check_fault("open"));
  if (index >= kGpus) return fail(Code::not_found, text("cuda: device ", index, " of ", kGpus));
  std::unique_ptr<Gpu> self(new Gpu(index));
  auto queue = std::make_unique<Queue>();
  queue->descending = index == 1;
  self->facts_ = {.name = "emulated GPU",
                  .driver = index == 1 ? "threads in descending order" : "threads in ascending order",
                  .memory_bytes = kMemory,
                  .processors = 1,
                  .software = true};
  self->queue_ = queue.release();
  ++g_live;
  return self;
}

Gpu::~Gpu() {
  const std::unique_ptr<Queue> queue(&queue_of(queue_));
  queue->run_to(queue->queued);
  --g_live;
}

Result<> Gpu::use() const { return {}; }

Result<uint64_t> Gpu::free_bytes() const {
  FTH_RETURN_IF_ERROR(check_fault("free_bytes"));
  return kMemory - queue_of(queue_).used;
}
Result<std::byte*> Gpu::allocate(uint64_t bytes) {
  FTH_RETURN_IF_ERROR(check_fault("allocate"));
  if (bytes > kMemory - queue_of(queue_).used) return fail(Code::resource_exhausted, text("allocate of ", format_bytes(bytes)));
  return queue_of(queue_).map(bytes);
}
void Gpu::free(std::byte* p) {
  queue_of(queue_).run_to(queue_of(queue_).queued);  // as cudaFree does
  queue_of(queue_).unmap(p);
}
Result<std::byte*> Gpu::allocate_locked(uint64_t bytes) {
  FTH_RETURN_IF_ERROR(check_fault("allocate_locked"));
  return queue_of(queue_).map(bytes);
}
void Gpu::free_locked(std::byte* p) { free(p); }

Result<> Gpu::copy(void* dst, const void* src, uint64_t bytes, Copy) {
  FTH_RETURN_IF_ERROR(check_fault("copy"));
  queue_of(queue_).work.emplace_back([=] { std::memcpy(dst, src, bytes); });
  ++queue_of(queue_).queued;
  return {};
}
Result<> Gpu::clear(void* dst, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(check_fault("clear"));
  queue_of(queue_).work.emplace_back([=] { std::memset(dst, 0, bytes); });
  ++queue_of(queue_).queued;
  return {};
}
Result<> Gpu::launch(KernelId kernel, Grid grid, const Params& params) {
  FTH_RETURN_IF_ERROR(check_fault("launch"));
  if (grid.x < 1 || grid.x > kMostGridX || grid.y < 1 || grid.y > kMostGridY)
    return fail(Code::internal, text("launch of ", grid.x, " x ", grid.y, " blocks"));
  const bool descending = queue_of(queue_).descending;
  queue_of(queue_).work.emplace_back([=] { kRuns[static_cast<size_t>(kernel)](grid, params, descending); });
  ++queue_of(queue_).queued;
  return {};
}

Result<Mark> Gpu::make_mark(MarkKind kind) {
  FTH_RETURN_IF_ERROR(check_fault("make_mark"));
  ++g_live;
  return Mark{new Place{0, kind == MarkKind::timed ? std::make_shared<Clock::time_point>() : nullptr}};
}
void Gpu::release(Mark mark) {
  delete static_cast<Place*>(mark);
  --g_live;
}
Result<> Gpu::record(Mark mark) {
  FTH_RETURN_IF_ERROR(check_fault("record"));
  Place& place = *static_cast<Place*>(mark);
  Queue& queue = queue_of(queue_);
  if (place.reached) {
    queue.work.emplace_back([reached = place.reached] { *reached = Clock::now(); });
    ++queue.queued;
  }
  place.queued = queue.queued;
  return {};
}
Result<> Gpu::wait(Mark mark) {
  queue_of(queue_).run_to(static_cast<Place*>(mark)->queued);
  return check_fault("wait");
}
Result<double> Gpu::seconds_between(Mark begin, Mark end) {
  FTH_RETURN_IF_ERROR(check_fault("seconds_between"));
  const Place &from = *static_cast<Place*>(begin), &to = *static_cast<Place*>(end);
  if (!from.reached || !to.reached || to.queued > queue_of(queue_).done)
    return fail(Code::internal, "marks that were not timed, or not waited for");
  return std::chrono::duration<double>(*to.reached - *from.reached).count();
}
Result<> Gpu::finish() {
  queue_of(queue_).run_to(queue_of(queue_).queued);
  return check_fault("finish");
}

}  // namespace fth::cuda

extern "C" {
FTH_EXPORT void fth_cuda_emulated_fault(const char* call, int after, int code) {
  fth::cuda::g_fault = {call, after, static_cast<fth::Code>(code)};
}
FTH_EXPORT int fth_cuda_emulated_live(void) { return fth::cuda::g_live.load(); }
}
