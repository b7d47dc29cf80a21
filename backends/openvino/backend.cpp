// The openvino backend: what the boundary asks, over Device, plan_segment and Executable.

#include <algorithm>
#include <array>

#include "backends/openvino/executable.h"

namespace fth::openvino {
namespace {

using sdk::text;

struct OpenvinoBackend {
  static constexpr const char* kName = "openvino";
  using Event = openvino::Event;
  using Buffer = openvino::Buffer;
  using Executable = openvino::Executable;

  class Device {
   public:
    explicit Device(std::unique_ptr<openvino::Device> device) : device_(std::move(device)) {}
    Result<fth_device_info> info() const { return device_->info(); }
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) { return Buffer::allocate(kName, bytes, 4096); }
    Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes) { return Buffer::import(kName, p, bytes, 4); }
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) {
      FTH_ASSIGN_OR_RETURN(const GraphPlan plan, plan_segment(segment, device_->target().form));
      fth_estimate e{};
      e.seconds = device_->seconds(plan);
      e.workspace_bytes = plan.rules.workspace_bytes;
      e.resident_bytes = plan.resident_bytes;
      return e;
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding> weights) {
      FTH_ASSIGN_OR_RETURN(GraphPlan plan, plan_segment(segment, device_->target().form));
      return Executable::make(*device_, std::move(plan), weights);
    }

   private:
    std::unique_ptr<openvino::Device> device_;
  };

  static Result<uint32_t> device_count(sdk::Host) {
    ov::Core core;
    return static_cast<uint32_t>(find_devices(core).size());
  }
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options);
};

Result<std::string> one_of(sdk::Options& options, const char* key, std::span<const std::string_view> words) {
  const std::optional<std::string> value = options.take(key);
  if (!value) return std::string();
  if (std::find(words.begin(), words.end(), *value) != words.end()) return *value;
  std::string all;
  for (const std::string_view w : words) all += text(all.empty() ? "" : ", ", w);
  return fail(Code::invalid_argument, text("openvino: option ", key, "=", *value, ": need one of ", all));
}

Result<std::unique_ptr<OpenvinoBackend::Device>> OpenvinoBackend::open(sdk::Host host, uint32_t index, sdk::Options& options) {
  constexpr std::array<std::string_view, 3> kPrecisions = {"f32", "f16", "bf16"};
  constexpr std::array<std::string_view, 3> kForms = {"compressed", "f16", "f32"};  // in the order of WeightForm
  Settings settings;
  settings.device = options.take("device").value_or("");
  FTH_ASSIGN_OR_RETURN(settings.precision, one_of(options, "precision", kPrecisions));
  FTH_ASSIGN_OR_RETURN(const std::string form, one_of(options, "weights", kForms));
  if (!form.empty()) settings.form = static_cast<WeightForm>(std::find(kForms.begin(), kForms.end(), form) - kForms.begin());
  settings.cache = options.take("cache").value_or("");
  FTH_ASSIGN_OR_RETURN(settings.bytes_per_second, sdk::rate(kName, options, "bytes_per_second"));
  FTH_ASSIGN_OR_RETURN(settings.flops_per_second, sdk::rate(kName, options, "flops_per_second"));
  FTH_ASSIGN_OR_RETURN(std::unique_ptr<openvino::Device> device, openvino::Device::open(host, index, settings));
  return std::make_unique<Device>(std::move(device));
}

}  // namespace
}  // namespace fth::openvino

FTH_EXPORT_BACKEND(fth::sdk::query<fth::openvino::OpenvinoBackend>)
