// Opening a device, its memory and staging, its clock.

#include "backends/cuda/context.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "backends/cuda/plan.h"
#include "core/base/bytes.h"

namespace fth::cuda {
namespace {

constexpr uint64_t kPieceBytes = 2 * kMiB;
// The emulation is not timed unless asked: these say only that it is slow.
constexpr double kSoftwareBytesPerSecond = 1e8, kSoftwareFlopsPerSecond = 2e8, kSoftwareLaunchSeconds = 30e-6,
                 kSoftwareDispatchSeconds = 10e-6;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Buffer::~Buffer() { context_.gpu().free(memory_); }

Result<> Buffer::write(uint64_t offset, const void* src, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
  return context_.named(context_.write(memory_ + offset, static_cast<const std::byte*>(src), bytes));
}

Result<> Buffer::read(uint64_t offset, void* dst, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
  return context_.named(context_.read(static_cast<std::byte*>(dst), memory_ + offset, bytes));
}

Result<std::unique_ptr<Context>> Context::open(sdk::Host host, uint32_t index, const Settings& settings) {
  FTH_ASSIGN_OR_RETURN(std::unique_ptr<Gpu> gpu, Gpu::open(index));
  std::unique_ptr<Context> self(new Context(std::move(gpu), settings, text("cuda:", index)));
  FTH_RETURN_IF_ERROR(self->named(self->make_staging()));
  FTH_RETURN_IF_ERROR(self->named(self->measure()));
  host.log(FTH_LOG_DEBUG,
           text(self->label_, ": ", self->gpu_->facts().name, "; ", self->bytes_per_second_ / 1e9, " GB/s, ", self->flops_per_second_ / 1e9,
                " GFLOP/s, launch ", self->launch_seconds_ * 1e6, " us, dispatch ", self->dispatch_seconds_ * 1e6, " us"));
  return self;
}

Context::~Context() {
  (void)gpu_->finish();
  if (staging_.memory) gpu_->free_locked(staging_.memory);
}

Result<> Context::make_staging() {
  FTH_ASSIGN_OR_RETURN(staging_.memory, gpu_->allocate_locked(kPieces * kPieceBytes));
  for (OwnMark& mark : staging_.used) {
    FTH_ASSIGN_OR_RETURN(mark, OwnMark::make(*gpu_));
  }
  return {};
}

Result<fth_device_info> Context::info() const {
  const Facts& facts = gpu_->facts();
  fth_device_info i{};
  i.kind = facts.software ? FTH_KIND_CPU : FTH_KIND_GPU;
  i.flags = facts.software ? FTH_DEVICE_SOFTWARE : 0;
  std::snprintf(i.name, sizeof i.name, "%s", label_.c_str());
  const std::string description = text(facts.name, "; ", facts.driver, "; ", facts.processors, " processors; products in f32");
  std::snprintf(i.description, sizeof i.description, "%s", description.c_str());
  i.memory_bytes = facts.memory_bytes;
  FTH_ASSIGN_OR_RETURN(i.free_bytes, named(gpu_->free_bytes()));
  i.alignment = kAlignment;
  i.bytes_per_second = bytes_per_second_;
  i.flops_per_second = flops_per_second_;
  i.launch_seconds = launch_seconds_;
  return i;
}

Result<std::unique_ptr<Buffer>> Context::allocate(uint64_t bytes) {
  if (bytes > memory_bytes())
    return fail(Code::resource_exhausted,
                text(label_, ": a buffer of ", format_bytes(bytes), ": the device has ", format_bytes(memory_bytes())));
  FTH_ASSIGN_OR_RETURN(std::byte* const memory, named(gpu_->allocate(std::max<uint64_t>(bytes, 1))));
  return std::make_unique<Buffer>(*this, memory, bytes);
}

Result<> Context::write(std::byte* dst, const std::byte* src, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t n = std::min(kPieceBytes, bytes - done);
    const size_t piece = staging_.next++ % kPieces;
    const Mark used = staging_.used[piece].get();
    std::byte* const at = staging_.memory + piece * kPieceBytes;
    FTH_RETURN_IF_ERROR(gpu_->wait(used));
    std::memcpy(at, src + done, n);
    FTH_RETURN_IF_ERROR(gpu_->copy(dst + done, at, n, Copy::to_device));
    FTH_RETURN_IF_ERROR(gpu_->record(used));
    done += n;
  }
  return {};
}

// While one piece is copied out of the staging, the next is on its way into it.
Result<> Context::read(std::byte* dst, const std::byte* src, uint64_t bytes) {
  const auto bytes_at = [bytes](uint64_t done) { return std::min(kPieceBytes, bytes - done); };
  uint64_t asked = 0;
  std::array<size_t, kPieces> piece_of{};
  for (uint64_t done = 0, i = 0; done < bytes; ++i) {
    for (; asked < bytes && asked < done + kPieces * kPieceBytes; asked += bytes_at(asked)) {
      const size_t piece = staging_.next++ % kPieces;
      piece_of[asked / kPieceBytes % kPieces] = piece;
      FTH_RETURN_IF_ERROR(gpu_->copy(staging_.memory + piece * kPieceBytes, src + asked, bytes_at(asked), Copy::to_host));
      FTH_RETURN_IF_ERROR(gpu_->record(staging_.used[piece].get()));
    }
    const size_t piece = piece_of[i % kPieces];
    FTH_RETURN_IF_ERROR(gpu_->wait(staging_.used[piece].get()));
    std::memcpy(dst + done, staging_.memory + piece * kPieceBytes, bytes_at(done));
    done += bytes_at(done);
  }
  return {};
}

// Four short timings, so that placement rests on this machine's numbers: a smallest kernel alone, one of many, a copy within the device, a product of 64
// tokens with f16 weights.
Result<> Context::measure() {
  constexpr uint32_t kDispatches = 64, kCopies = 8, kProducts = 4;
  constexpr uint32_t kTokens = 64, kK = 1024;
  const bool software = gpu_->facts().software;
  if (software && !settings_.measure) {
    launch_seconds_ = kSoftwareLaunchSeconds;
    dispatch_seconds_ = kSoftwareDispatchSeconds;
    bytes_per_second_ = settings_.bytes_per_second > 0 ? settings_.bytes_per_second : kSoftwareBytesPerSecond;
    flops_per_second_ = settings_.flops_per_second > 0 ? settings_.flops_per_second : kSoftwareFlopsPerSecond;
    return {};
  }
  const uint64_t copied = (software ? 1 : 128) * kMiB;  // two of these pass the largest cache on a device
  const uint32_t rows = software ? 64 : 4096;
  const auto best_of = [&](int times, uint32_t repeats, const auto& queue) -> Result<double> {
    double best = 1e9;
    for (int i = 0; i < times; ++i) {
      const auto start = std::chrono::steady_clock::now();
      for (uint32_t r = 0; r < repeats; ++r) FTH_RETURN_IF_ERROR(queue(r));
      FTH_RETURN_IF_ERROR(gpu_->finish());
      best = std::min(best, seconds_since(start));
    }
    return best;
  };
  FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> a, allocate(copied));
  FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> b, allocate(copied));
  FTH_RETURN_IF_ERROR(gpu_->clear(a->memory(), copied));
  FTH_RETURN_IF_ERROR(gpu_->clear(b->memory(), copied));

  Params add{};
  for (uint32_t i : {Pairwise::kA, Pairwise::kB, Pairwise::kY}) add.tensor[i] = a->memory();
  add.number[Pairwise::kWidth] = 64;
  add.n_tokens = 1;
  const auto dispatch = [&](uint32_t) { return gpu_->launch(KernelId::add, {}, add); };
  FTH_ASSIGN_OR_RETURN(launch_seconds_, best_of(5, 1, dispatch));
  FTH_ASSIGN_OR_RETURN(const double many, best_of(3, kDispatches, dispatch));
  dispatch_seconds_ = std::max(1e-7, (many - launch_seconds_) / kDispatches);

  const auto copy = [&](uint32_t i) {
    return gpu_->copy((i % 2 == 0 ? b : a)->memory(), (i % 2 == 0 ? a : b)->memory(), copied, Copy::within);
  };
  FTH_ASSIGN_OR_RETURN(const double copies, best_of(3, kCopies, copy));
  bytes_per_second_ = 2.0 * kCopies * static_cast<double>(copied) / std::max(1e-7, copies - launch_seconds_);  // read and written

  using Product = Matmul<DType::f16, 8>;
  Params product{};
  product.tensor[Product::kX] = a->memory();
  product.tensor[Product::kWeight] = product.tensor[Product::kBias] = b->memory();
  product.tensor[Product::kY] = a->memory() + copied / 2;
  product.number[Product::kK] = kK;
  product.number[Product::kM] = rows;
  product.number[Product::kRowBytes] = 2 * kK;
  product.n_tokens = kTokens;
  const Grid grid{rows / Product::kBlockRows, kTokens / Product::kColumns};
  const auto multiply = [&](uint32_t) { return gpu_->launch(KernelId::matmul_many_f16, grid, product); };
  FTH_ASSIGN_OR_RETURN(const double products, best_of(3, kProducts, multiply));
  flops_per_second_ = 2.0 * kProducts * kTokens * kK * rows / std::max(1e-7, products - launch_seconds_);

  if (settings_.bytes_per_second > 0) bytes_per_second_ = settings_.bytes_per_second;
  if (settings_.flops_per_second > 0) flops_per_second_ = settings_.flops_per_second;
  return {};
}

}  // namespace fth::cuda
