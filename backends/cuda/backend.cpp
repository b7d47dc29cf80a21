// The cuda backend: what the boundary asks, over Context, plan_segment and Executable.

#include "backends/cuda/executable.h"

namespace fth::cuda {
namespace {

struct CudaBackend {
  static constexpr const char* kName = "cuda";
  using Event = cuda::Event;
  using Buffer = cuda::Buffer;
  using Executable = cuda::Executable;

  class Device {
   public:
    explicit Device(std::unique_ptr<Context> context) : context_(std::move(context)) {}
    Result<fth_device_info> info() const { return context_->info(); }
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) { return context_->allocate(bytes); }
    Result<std::unique_ptr<Buffer>> import_host(void*, uint64_t bytes) {
      return fail(Code::unimplemented, text(context_->label(), ": ", bytes, " bytes of the host's memory: this device keeps copies"));
    }
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) {
      FTH_ASSIGN_OR_RETURN(const SegmentPlan plan, plan_segment(segment, context_->memory_bytes()));
      return sdk::estimate_of(*context_, plan, plan.launches.size(), plan.resident_bytes());
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding> weights) {
      FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_segment(segment, context_->memory_bytes()));
      return Executable::make(*context_, std::move(plan), weights);
    }

   private:
    std::unique_ptr<Context> context_;
  };

  static Result<uint32_t> device_count(sdk::Host) { return count_gpus(); }
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options) {
    Settings settings;
    FTH_ASSIGN_OR_RETURN(settings.measure, sdk::on_or_off(kName, options, "measure", false));
    FTH_ASSIGN_OR_RETURN(settings.bytes_per_second, sdk::rate(kName, options, "bytes_per_second"));
    FTH_ASSIGN_OR_RETURN(settings.flops_per_second, sdk::rate(kName, options, "flops_per_second"));
    FTH_ASSIGN_OR_RETURN(std::unique_ptr<Context> context, Context::open(host, index, settings));
    return std::make_unique<Device>(std::move(context));
  }
};

}  // namespace
}  // namespace fth::cuda

FTH_EXPORT_BACKEND(fth::sdk::query<fth::cuda::CudaBackend>)
