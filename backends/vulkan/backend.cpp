// The vulkan backend: what the boundary asks, over Context, plan_segment and Executable.

#include <algorithm>

#include "backends/vulkan/coop_trial.h"
#include "backends/vulkan/executable.h"

namespace fth::vulkan {
namespace {

Result<CoopMode> coop_mode(sdk::Options& options) {
  const std::string value = options.take("coopmat").value_or("auto");
  if (value == "auto") return CoopMode::automatic;
  if (value == "on" || value == "off") return value == "on" ? CoopMode::on : CoopMode::off;
  return fail(Code::invalid_argument, text("vulkan: option coopmat=", value, ": need auto, on or off"));
}

struct VulkanBackend {
  static constexpr const char* kName = "vulkan";
  using Event = vulkan::Event;
  using Buffer = vulkan::Buffer;
  using Executable = vulkan::Executable;

  class Device {
   public:
    explicit Device(std::unique_ptr<Context> context) : context_(std::move(context)) {}
    Result<fth_device_info> info() const { return context_->info(); }

    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) {
      FTH_ASSIGN_OR_RETURN(const Memory memory, context_->allocate(bytes, Context::Use::storage));
      return std::make_unique<Buffer>(*context_, memory, bytes);
    }
    Result<std::unique_ptr<Buffer>> import_host(void*, uint64_t bytes) {
      return fail(Code::unimplemented, text(context_->label(), ": ", bytes, " bytes of the host's memory: this backend keeps copies"));
    }
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) {
      FTH_ASSIGN_OR_RETURN(const SegmentPlan plan, plan_of(segment));
      fth_estimate e{};
      double computing = plan.flops / context_->flops_per_second();
      if (plan.coop_flops > 0) computing += plan.coop_flops / context_->coop_flops_per_second();
      e.seconds = std::max(plan.bytes / context_->bytes_per_second(), computing) +
                  context_->dispatch_seconds() * static_cast<double>(plan.dispatches.size()) + context_->launch_seconds();
      e.workspace_bytes = plan.rules.workspace_bytes;
      e.resident_bytes = plan.params_bytes() + plan.own_bytes();
      return e;
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding> weights) {
      FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_of(segment));
      if (const Result<> made = coop_pipelines(*context_, plan); !made) {
        promised_ = context_->limits().coop;
        context_->drop_coop(FTH_LOG_WARNING, made.error().message);
        FTH_ASSIGN_OR_RETURN(plan, plan_of(segment));
      }
      return Executable::make(*context_, std::move(plan), weights);
    }

   private:
    // Cooperative matrices that were dropped after estimates with them: hosts bind the workspace that those spoke of.
    Result<SegmentPlan> plan_of(const sdk::SegmentView& segment) const {
      FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_segment(segment, context_->limits()));
      if (!promised_) return plan;
      Limits before = context_->limits();
      before.coop = promised_;
      FTH_ASSIGN_OR_RETURN(const SegmentPlan larger, plan_segment(segment, before));
      plan.rules.workspace_bytes = std::max(plan.rules.workspace_bytes, larger.rules.workspace_bytes);
      return plan;
    }

    std::unique_ptr<Context> context_;
    Coop promised_;
  };

  static Result<uint32_t> device_count(sdk::Host host) {
    FTH_ASSIGN_OR_RETURN(const Instance* const instance, Instance::get(host, false));
    FTH_ASSIGN_OR_RETURN(const std::vector<VkPhysicalDevice> devices, instance->physical_devices());
    return static_cast<uint32_t>(devices.size());
  }

  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options);
};

Result<std::unique_ptr<VulkanBackend::Device>> VulkanBackend::open(sdk::Host host, uint32_t index, sdk::Options& options) {
  Settings settings;
  FTH_ASSIGN_OR_RETURN(settings.subgroups, sdk::on_or_off(kName, options, "subgroups", true));
  FTH_ASSIGN_OR_RETURN(settings.coop, coop_mode(options));
  FTH_ASSIGN_OR_RETURN(settings.validation, sdk::on_or_off(kName, options, "validation", false));
  FTH_ASSIGN_OR_RETURN(settings.mapped, sdk::on_or_off(kName, options, "mapped", true));
  FTH_ASSIGN_OR_RETURN(settings.measure, sdk::on_or_off(kName, options, "measure", false));
  settings.pipeline_cache = options.take("pipeline_cache").value_or("");
  FTH_ASSIGN_OR_RETURN(settings.bytes_per_second, sdk::rate(kName, options, "bytes_per_second"));
  FTH_ASSIGN_OR_RETURN(settings.flops_per_second, sdk::rate(kName, options, "flops_per_second"));
  FTH_ASSIGN_OR_RETURN(std::unique_ptr<Context> context, Context::open(host, index, settings));
  FTH_RETURN_IF_ERROR(try_coop(*context));
  return std::make_unique<Device>(std::move(context));
}

}  // namespace
}  // namespace fth::vulkan

FTH_EXPORT_BACKEND(fth::sdk::query<fth::vulkan::VulkanBackend>)
