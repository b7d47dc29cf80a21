// The cpu backend: the host's memory, the host's threads, the best kernel table that this machine runs.

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/cpu/cpu_info.h"
#include "backends/cpu/ops/work.h"
#include "backends/cpu/segment.h"
#include "core/base/bytes.h"
#include "plugins/sdk/host_memory.h"
#include "plugins/sdk/plan.h"

namespace fth::cpu {
namespace {

constexpr uint64_t kAlignment = 64;

// For a planner that has measured nothing: what a core of a modest machine gets. The options bytes_per_second and
// flops_per_second replace them.
constexpr double kBytesPerSecondPerCore = 8e9;
constexpr uint32_t kCoresThatFillMemory = 4;  // more cores than this share the same memory

// Until the host has measured it (option gather_below): in percent, what an AVX2 machine has.
constexpr int64_t kGatherBelow = 80;
double flops_per_core(std::string_view table) {
  constexpr std::pair<std::string_view, double> kEstimates[] = {{"avx2", 100e9},     {"avx512", 160e9},      {"avx512_vnni", 300e9},
                                                                {"avx_vnni", 180e9}, {"neon_dotprod", 30e9}, {"neon_i8mm", 38e9},
                                                                {"generic", 2e9}};
  for (const auto& [name, flops] : kEstimates)
    if (name == table) return flops;
  return 2e9;
}

struct CpuBackend {
  static constexpr const char* kName = "cpu";

  using Event = sdk::DoneEvent;
  using Buffer = sdk::HostBuffer;

  class Executable {
   public:
    Executable(sdk::Host host, const KernelTable& kernels, SegmentPlan plan, int64_t gather_below)
        : host_(host),
          kernels_(kernels),
          plan_(std::move(plan)),
          gather_below_(gather_below),
          values_(plan_.values.size()),
          slots_(plan_.n_slots) {}
    Result<> bind_weights(std::span<const fth_binding> weights);
    Result<Event*> submit(std::span<const fth_binding> bindings, const int64_t* scalars);
    void live_neurons(uint64_t* live, uint64_t* all) const {
      *live = neurons_.live.load(std::memory_order_relaxed);
      *all = neurons_.all.load(std::memory_order_relaxed);
    }

   private:
    Result<std::byte*> resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what, uint64_t index) const;

    sdk::Host host_;
    const KernelTable& kernels_;
    SegmentPlan plan_;
    int64_t gather_below_;
    std::vector<std::byte*> values_, slots_;  // Run's tables: weights since compile, the rest of the last submit
    NeuronCounts neurons_;
    Event event_;
  };

  class Device {
   public:
    Device(sdk::Host host, const KernelTable& kernels, std::string description, double bytes_per_second, double flops_per_second,
           int64_t gather_below)
        : host_(host),
          kernels_(kernels),
          description_(std::move(description)),
          bytes_per_second_(bytes_per_second),
          flops_per_second_(flops_per_second),
          gather_below_(gather_below) {}
    Result<fth_device_info> info() const;
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) const { return Buffer::allocate(kName, bytes); }
    Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes) const { return Buffer::import(kName, p, bytes); }
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) const;
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding> weights) const;

   private:
    sdk::Host host_;
    const KernelTable& kernels_;
    std::string description_;
    double bytes_per_second_, flops_per_second_;
    int64_t gather_below_;
  };

  static constexpr double kLaunchSeconds = 5e-6;

  static Result<uint32_t> device_count(sdk::Host) { return 1u; }
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options);
};

Result<std::byte*> CpuBackend::Executable::resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what,
                                                   uint64_t index) const {
  const auto problem = [&](const std::string& why) {
    return fail(Code::invalid_argument, text(plan_.name, ": ", what, " ", index, ": ", why));
  };
  const Buffer* const buffer = sdk::buffer_of<Buffer>(b);
  if (!buffer) return problem("no buffer is bound");
  if (const auto range = sdk::check_range(b.offset, b.bytes, buffer->bytes()); !range) return problem(range.error().message);
  if (b.bytes < bytes) return problem(text("a binding of ", b.bytes, " bytes, need ", bytes));
  std::byte* const p = buffer->data() + b.offset;
  if (reinterpret_cast<uintptr_t>(p) % alignment != 0) return problem(text("an address that is no multiple of ", alignment));
  return p;
}

Result<> CpuBackend::Executable::bind_weights(std::span<const fth_binding> weights) {
  size_t next = 0;
  for (uint32_t t = 0; t < plan_.n_tensors; ++t) {
    const Value& v = plan_.values[t];
    if (v.role != FTH_ROLE_WEIGHT) continue;
    FTH_ASSIGN_OR_RETURN(values_[t], resolve(weights[next++], v.bytes, v.alignment, "weight tensor", t));
  }
  return {};
}

Result<CpuBackend::Event*> CpuBackend::Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  const size_t need = plan_.n_bindings + (plan_.workspace_bytes > 0 ? 1 : 0);
  if (bindings.size() != need || (need > 0 && !bindings.data()) || !scalars)
    return fail(Code::invalid_argument, text(plan_.name, ": ", bindings.size(), " bindings, need ", need, " and the scalars"));
  const Run run{.host = host_,
                .kernels = kernels_,
                .values = values_.data(),
                .slots = slots_.data(),
                .n_tokens = scalars[FTH_SCALAR_TOKENS],
                .pos = scalars[FTH_SCALAR_POS],
                .n_slots = plan_.n_slots > 0 ? scalars[FTH_SCALAR_SLOTS] : 0,
                .neurons = neurons_,
                .gather_below = gather_below_};
  if (run.n_tokens < 1 || run.n_tokens > plan_.n_tokens)
    return fail(Code::invalid_argument, text(plan_.name, ": ", run.n_tokens, " tokens, the bucket is ", plan_.n_tokens));
  if (run.pos < 0 || run.pos > (int64_t{1} << 40)) return fail(Code::invalid_argument, text(plan_.name, ": position ", run.pos));
  if (run.n_slots < 0 || run.n_slots > plan_.max_slots)
    return fail(Code::invalid_argument, text(plan_.name, ": ", run.n_slots, " slots in use of ", plan_.max_slots));

  size_t next = 0;
  for (uint32_t t = 0; t < plan_.n_tensors; ++t) {
    const Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_INPUT || v.role == FTH_ROLE_OUTPUT || v.role == FTH_ROLE_STATE) {
      FTH_ASSIGN_OR_RETURN(values_[t], resolve(bindings[next], v.bytes, v.alignment, "binding", next));
      ++next;
    } else if (v.role == FTH_ROLE_SLOTS) {
      for (uint32_t i = 0; i < v.n_slots; ++i, ++next) {
        slots_[v.first_slot + i] = nullptr;
        if (!bindings[next].buffer) continue;
        FTH_ASSIGN_OR_RETURN(slots_[v.first_slot + i], resolve(bindings[next], v.bytes, v.alignment, "slot binding", next));
      }
    }
  }
  if (plan_.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(std::byte* const workspace, resolve(bindings[next], plan_.workspace_bytes, kAlignment, "workspace binding", next));
    for (size_t v = 0; v < values_.size(); ++v)
      if (plan_.values[v].role == FTH_ROLE_TEMP) values_[v] = workspace + plan_.values[v].offset;
  }
  if (run.n_tokens == 1)
    for (const Step& step : plan_.steps)
      if (const auto* attention = std::get_if<AttentionStep>(&step)) prefetch_cells(*attention, run);
  for (size_t at = 0; at < plan_.steps.size();)
    if (Result<> r = run_steps(plan_.steps, &at, run); !r) return tl::unexpected<Error>(std::move(r).error().context(plan_.name));
  return &event_;
}

Result<fth_device_info> CpuBackend::Device::info() const {
  fth_device_info i{};
  i.kind = FTH_KIND_CPU;
  i.flags = FTH_DEVICE_HOST_MEMORY;
  std::snprintf(i.name, sizeof i.name, "%s", kName);
  std::snprintf(i.description, sizeof i.description, "%s", description_.c_str());
  const MemoryBytes memory = memory_bytes();
  i.memory_bytes = memory.total;
  i.free_bytes = memory.available;
  i.alignment = kAlignment;
  i.bytes_per_second = bytes_per_second_;
  i.flops_per_second = flops_per_second_;
  i.launch_seconds = kLaunchSeconds;
  return i;
}

Result<fth_estimate> CpuBackend::Device::estimate(const sdk::SegmentView& segment) const {
  FTH_ASSIGN_OR_RETURN(const SegmentPlan plan, plan_segment(segment, kernels_));
  fth_estimate e{};
  // A row alone has no tile of registers to share its codes with: half the speed of a batch (measured with AVX2).
  const double flops_per_second = plan.n_tokens > 1 ? flops_per_second_ : flops_per_second_ / 2;
  e.seconds = std::max(plan.bytes / bytes_per_second_, plan.flops / flops_per_second) + kLaunchSeconds;
  e.workspace_bytes = plan.workspace_bytes;
  e.resident_bytes = 0;  // weights are read where they are
  return e;
}

Result<std::unique_ptr<CpuBackend::Executable>> CpuBackend::Device::compile(const sdk::SegmentView& segment,
                                                                            std::span<const fth_binding> weights) const {
  FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_segment(segment, kernels_));
  auto x = std::make_unique<Executable>(host_, kernels_, std::move(plan), gather_below_);
  FTH_RETURN_IF_ERROR(x->bind_weights(weights));
  return x;
}

// 0: all up rows are always read; 101: live ones alone, always.
Result<int64_t> gather_below(sdk::Options& options) {
  const std::optional<std::string> value = options.take("gather_below");
  if (!value) return kGatherBelow;
  int64_t percent = -1;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), percent);
  if (error != std::errc{} || end != value->data() + value->size() || percent < 0 || percent > 101)
    return fail(Code::invalid_argument, text("cpu: option gather_below=", *value, ": need a whole number from 0 to 101 (percent)"));
  return percent;
}

// "avx2 (no avx512_vnni in cpuid)" for each table but `used`.
std::string other_tables(std::span<const KernelChoice> choices, const KernelTable* used) {
  std::string list;
  for (const KernelChoice& c : choices) {
    if (c.table == used) continue;
    list += text(list.empty() ? "" : ", ", c.table->name, c.refusal ? text(" (", c.refusal, ")") : std::string());
  }
  return list;
}

Result<std::unique_ptr<CpuBackend::Device>> CpuBackend::open(sdk::Host host, uint32_t index, sdk::Options& options) {
  if (index != 0) return fail(Code::invalid_argument, text("cpu: device ", index, ", there is one"));
  const KernelChoice* first = nullptr;
  const size_t n = kernel_choices(&first);
  const std::span<const KernelChoice> all(first, n);
  const std::optional<std::string> isa = options.take("isa");
  const KernelTable* table = nullptr;
  for (const KernelChoice& c : all)
    if (!table && !c.refusal && (!isa || *isa == c.table->name)) table = c.table;
  if (!table) return fail(Code::invalid_argument, text("cpu: option isa=", isa.value_or(""), ": not among ", other_tables(all, nullptr)));

  const uint32_t threads = std::max(host.n_threads(), 1u);
  FTH_ASSIGN_OR_RETURN(double bytes_per_second, sdk::rate(kName, options, "bytes_per_second"));
  FTH_ASSIGN_OR_RETURN(double flops_per_second, sdk::rate(kName, options, "flops_per_second"));
  if (bytes_per_second == 0) bytes_per_second = kBytesPerSecondPerCore * std::min(threads, kCoresThatFillMemory);
  if (flops_per_second == 0) flops_per_second = flops_per_core(table->name) * threads;
  FTH_ASSIGN_OR_RETURN(const int64_t gather, gather_below(options));
  const std::string description = text(cpu_model(), "; kernels ", table->name, "; not used: ", other_tables(all, table));
  host.log(FTH_LOG_DEBUG, text("cpu: ", description));
  host.log(FTH_LOG_DEBUG, text("cpu: live up rows are gathered below ", gather, " % of live neurons"));
  return std::make_unique<Device>(host, *table, description, bytes_per_second, flops_per_second, gather);
}

}  // namespace
}  // namespace fth::cpu

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host) {
  return fth::sdk::query<fth::cpu::CpuBackend>(abi_major, host);
}
