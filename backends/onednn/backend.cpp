// The onednn backend: experts and products of many rows on the host's CPU, in the host's memory and on the host's threads; oneDNN itself uses one.

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "backends/onednn/plan.h"
#include "core/base/bytes.h"
#include "plugins/sdk/host_memory.h"

namespace fth::onednn {
namespace {

using sdk::text;

constexpr uint64_t kAlignment = 64;
constexpr double kLaunchSeconds = 1e-5;
constexpr double kBytesPerSecond = 8e9;  // of a modest machine's memory

struct OnednnBackend {
  static constexpr const char* kName = "onednn";

  using Event = sdk::DoneEvent;
  using Buffer = sdk::HostBuffer;

  class Executable {
   public:
    Executable(sdk::Host host, const Units& units, SegmentPlan plan)
        : host_(host), units_(units), plan_(std::move(plan)), values_(plan_.values.size()), slots_(plan_.n_slots) {}
    Result<> bind_weights(std::span<const fth_binding> weights) {
      size_t next = 0;
      for (size_t t = 0; t < values_.size(); ++t)
        if (plan_.values[t].role == FTH_ROLE_WEIGHT) {
          FTH_ASSIGN_OR_RETURN(values_[t], resolve(weights[next++], t, "weight tensor", t));
        }
      return {};
    }
    Result<Event*> submit(std::span<const fth_binding> bindings, const int64_t* scalars);

   private:
    Result<std::byte*> resolve(const fth_binding& b, size_t value, std::string_view what, uint64_t index) const {
      FTH_ASSIGN_OR_RETURN(Buffer* const buffer,
                           plan_.rules.resolve<Buffer>(b, plan_.values[value].bytes, plan_.values[value].alignment, what, index));
      return buffer->data() + b.offset;
    }

    sdk::Host host_;
    const Units& units_;
    SegmentPlan plan_;
    std::vector<std::byte*> values_, slots_;  // Run's tables: weights since compile, the rest of the last submit
    Event event_;
  };

  class Device {
   public:
    Device(sdk::Host host, const TileTable& tiles, std::unique_ptr<Library> library)
        : host_(host), library_(std::move(library)), units_{tiles, library_->int8(), *library_->f32(), std::max(host.n_threads(), 1u)} {}
    Result<fth_device_info> info() const;
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) const { return Buffer::allocate(kName, bytes); }
    Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes) const { return Buffer::import(kName, p, bytes); }
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) const {
      FTH_ASSIGN_OR_RETURN(const SegmentPlan plan, plan_segment(segment, units_));
      fth_estimate e{};
      e.seconds = plan.seconds + kLaunchSeconds;
      e.workspace_bytes = plan.rules.workspace_bytes;
      e.resident_bytes = 0;  // weights are read where they are; kernels belong to the device and are made when it opens
      return e;
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding> weights) const {
      FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_segment(segment, units_));
      auto x = std::make_unique<Executable>(host_, units_, std::move(plan));
      FTH_RETURN_IF_ERROR(x->bind_weights(weights));
      return x;
    }

   private:
    sdk::Host host_;
    std::unique_ptr<Library> library_;
    Units units_;
  };

  static Result<uint32_t> device_count(sdk::Host) {
    if (tile_table() == nullptr) return fail(Code::unavailable, "onednn: this CPU has no AVX2, FMA and F16C");
    return 1u;
  }
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options);
};

Result<OnednnBackend::Event*> OnednnBackend::Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  FTH_RETURN_IF_ERROR(plan_.rules.check_submit(bindings, scalars));
  const int64_t n_slots = plan_.n_slots > 0 ? scalars[FTH_SCALAR_SLOTS] : 0;
  if (n_slots < 0 || n_slots > plan_.max_slots)
    return fail(Code::invalid_argument, text(plan_.rules.name, ": ", n_slots, " slots in use of ", plan_.max_slots));
  size_t next = 0;
  for (size_t t = 0; t < values_.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_INPUT || v.role == FTH_ROLE_OUTPUT || v.role == FTH_ROLE_STATE) {
      FTH_ASSIGN_OR_RETURN(values_[t], resolve(bindings[next], t, "binding", next));
      ++next;
    }
    for (int64_t i = 0; i < plan_.slot_count[t]; ++i, ++next) {
      std::byte*& slot = slots_[plan_.first_slot[t] + static_cast<uint64_t>(i)];
      slot = nullptr;
      if (bindings[next].buffer) {
        FTH_ASSIGN_OR_RETURN(slot, resolve(bindings[next], t, "slot binding", next));
      }
    }
  }
  std::byte* workspace = nullptr;
  if (plan_.rules.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(Buffer* const buffer,
                         plan_.rules.resolve<Buffer>(bindings[next], plan_.rules.workspace_bytes, kAlignment, "workspace binding", next));
    workspace = buffer->data() + bindings[next].offset;
    for (size_t t = 0; t < values_.size(); ++t)
      if (plan_.values[t].role == FTH_ROLE_TEMP) values_[t] = workspace + plan_.values[t].offset;
  }
  const Run run{.host = host_,
                .units = units_,
                .values = values_.data(),
                .slots = slots_.data(),
                .scratch = workspace + plan_.scratch,
                .n_tokens = scalars[FTH_SCALAR_TOKENS],
                .n_slots = n_slots};
  for (const Step& step : plan_.steps)
    if (Result<> r = std::visit([&](const auto& s) { return run_step(s, run); }, step); !r)
      return tl::unexpected<Error>(std::move(r).error().context(plan_.rules.name));
  return &event_;
}

Result<fth_device_info> OnednnBackend::Device::info() const {
  fth_device_info i{};
  i.kind = FTH_KIND_CPU;
  i.flags = FTH_DEVICE_HOST_MEMORY;
  std::snprintf(i.name, sizeof i.name, "onednn:0");
  std::snprintf(i.description, sizeof i.description, "oneDNN %s, tiles %s; %s", Library::version().c_str(), units_.tiles.name,
                library_->describe().c_str());
  const long pages = sysconf(_SC_PHYS_PAGES), free_pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  i.memory_bytes = static_cast<uint64_t>(std::max(pages, 0L)) * static_cast<uint64_t>(std::max(page, 0L));
  i.free_bytes = static_cast<uint64_t>(std::max(free_pages, 0L)) * static_cast<uint64_t>(std::max(page, 0L));
  i.alignment = kAlignment;
  const Products& best = units_.int8 != nullptr ? *units_.int8 : units_.f32;
  i.bytes_per_second = kBytesPerSecond;
  i.flops_per_second = best.seconds_per_column > 0 ? 2.0 * kTile * 2560 / best.seconds_per_column * units_.n_threads : 0;
  i.launch_seconds = kLaunchSeconds;
  return i;
}

Result<std::unique_ptr<OnednnBackend::Device>> OnednnBackend::open(sdk::Host host, uint32_t index, sdk::Options& options) {
  if (index != 0) return fail(Code::invalid_argument, text("onednn: device ", index, ", there is one"));
  const TileTable* const tiles = tile_table();
  if (tiles == nullptr) return fail(Code::unavailable, "onednn: this CPU has no AVX2, FMA and F16C");
  const std::string only = options.take("implementation").value_or(""), impl_info = options.take("impl_info").value_or("");
  std::string known;
  for (const std::string_view name : kImplementations) known += text(known.empty() ? "" : ", ", name);
  if (!only.empty() && std::find(kImplementations.begin(), kImplementations.end(), only) == kImplementations.end())
    return fail(Code::invalid_argument, text("onednn: option implementation=", only, ": there are ", known));
  auto library = std::make_unique<Library>(*tiles, only, impl_info);
  host.log(FTH_LOG_DEBUG, text("onednn: oneDNN ", Library::version(), "; ", library->describe()));
  if (library->f32() == nullptr) return fail(Code::unavailable, text("onednn: no product of oneDNN can be used: ", library->describe()));
  return std::make_unique<Device>(host, *tiles, std::move(library));
}

}  // namespace
}  // namespace fth::onednn

extern "C" const fth_backend* fth_onednn_query(uint32_t abi_major, const fth_host* host) {
  return fth::sdk::query<fth::onednn::OnednnBackend>(abi_major, host);
}
