// The opencl backend: what the boundary asks, over Context, plan_segment and Executable.

#include <algorithm>

#include "backends/opencl/executable.h"

namespace fth::opencl {
namespace {

struct OpenclBackend {
  static constexpr const char* kName = "opencl";
  using Event = opencl::Event;
  using Buffer = opencl::Buffer;
  using Executable = opencl::Executable;

  class Device {
   public:
    explicit Device(std::unique_ptr<Context> context) : context_(std::move(context)) {}
    Result<fth_device_info> info() const { return context_->info(); }
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) { return context_->allocate(bytes); }
    Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes) { return context_->import(p, bytes); }
    Result<fth_estimate> estimate(const sdk::SegmentView& segment) {
      FTH_ASSIGN_OR_RETURN(const SegmentPlan plan, plan_segment(segment, context_->limits()));
      return sdk::estimate_of(*context_, plan, plan.launches.size(), plan.resident_bytes());
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& segment, std::span<const fth_binding> weights) {
      FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_segment(segment, context_->limits()));
      return Executable::make(*context_, std::move(plan), weights);
    }

   private:
    std::unique_ptr<Context> context_;
  };

  static Result<uint32_t> device_count(sdk::Host) {
    FTH_ASSIGN_OR_RETURN(const std::vector<FoundDevice> devices, find_devices());
    return static_cast<uint32_t>(devices.size());
  }
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options);
};

// One of the words, by its place; none where the key is not given.
Result<std::optional<size_t>> one_of(sdk::Options& options, const char* key, std::span<const std::string_view> words) {
  const std::optional<std::string> value = options.take(key);
  if (!value) return std::optional<size_t>();
  const auto found = std::find(words.begin(), words.end(), *value);
  if (found != words.end()) return std::optional<size_t>(static_cast<size_t>(found - words.begin()));
  std::string all;
  for (const std::string_view w : words) all += text(all.empty() ? "" : ", ", w);
  return fail(Code::invalid_argument, text("opencl: option ", key, "=", *value, ": need one of ", all));
}

Result<std::unique_ptr<OpenclBackend::Device>> OpenclBackend::open(sdk::Host host, uint32_t index, sdk::Options& options) {
  constexpr std::string_view kMath[] = {"f32", "f16", "int8"}, kShapes[] = {"gpu", "cpu"};  // kMath: in the order of Math
  Settings settings;
  FTH_ASSIGN_OR_RETURN(const std::optional<size_t> math, one_of(options, "math", kMath));
  if (math) settings.math = static_cast<Math>(*math);
  FTH_ASSIGN_OR_RETURN(const std::optional<size_t> shape, one_of(options, "shape", kShapes));
  if (shape) settings.alone = *shape == 1;
  FTH_ASSIGN_OR_RETURN(settings.host_memory, sdk::on_or_off(kName, options, "host_memory", true));
  FTH_ASSIGN_OR_RETURN(settings.measure, sdk::on_or_off(kName, options, "measure", false));
  settings.program_cache = options.take("program_cache").value_or("");
  FTH_ASSIGN_OR_RETURN(settings.bytes_per_second, sdk::rate(kName, options, "bytes_per_second"));
  FTH_ASSIGN_OR_RETURN(settings.flops_per_second, sdk::rate(kName, options, "flops_per_second"));
  FTH_ASSIGN_OR_RETURN(std::unique_ptr<Context> context, Context::open(host, index, settings));
  return std::make_unique<Device>(std::move(context));
}

}  // namespace
}  // namespace fth::opencl

FTH_EXPORT_BACKEND(fth::sdk::query<fth::opencl::OpenclBackend>)
