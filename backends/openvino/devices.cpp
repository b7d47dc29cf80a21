// Finding and opening. OpenVINO lists all devices only by loading every plugin; asked for one kind it loads that kind's.

#include "backends/openvino/devices.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include <openvino/core/version.hpp>
#include <openvino/runtime/properties.hpp>

namespace fth::openvino {
namespace {

using sdk::text;

// What is there of a driver's device files; empty for none.
std::string first_file(const char* folder, std::string_view prefix) {
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    if (it->path().filename().string().starts_with(prefix)) return it->path().string();
  return {};
}

void add_kind(ov::Core& core, const std::string& kind, const std::string& file, const char* needs, std::vector<FoundDevice>& found) {
  if (file.empty()) return;  // without a device file no driver has anything to say
  std::string why;
  try {
    const auto ids = core.get_property(kind, ov::available_devices);
    for (const std::string& id : ids) found.push_back({ids.size() == 1 ? kind : kind + "." + id, {}});
    if (!ids.empty()) return;
    why = text("OpenVINO finds none behind it; it needs ", needs);
  } catch (const std::exception& e) {
    why = words_of(e);
  }
  found.push_back({kind, text(file, " is there, but ", why)});
}

std::string cpu_model() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  return "the host's";
}

uint64_t memory_field(std::string_view field) {
  std::ifstream in("/proc/meminfo");
  std::string word;
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    uint64_t kib = 0;
    if (line.starts_with(field) && fields >> word >> kib) return kib * kKiB;
  }
  return 0;
}

}  // namespace

std::string words_of(const std::exception& e) {
  std::istringstream lines(e.what());
  std::string all;
  for (std::string line; std::getline(lines, line);)
    if (!line.empty() && !line.starts_with("Exception from ") && !line.starts_with("Check '")) all += (all.empty() ? "" : " ") + line;
  return all.empty() ? std::string(e.what()) : all;
}

std::vector<FoundDevice> find_devices(ov::Core& core) {
  std::vector<FoundDevice> found;
  add_kind(core, "NPU", first_file("/dev/accel", "accel"), "the NPU's driver for Level Zero (libze_intel_npu) and its compiler", found);
  add_kind(core, "GPU", first_file("/dev/dri", "renderD"), "Intel's OpenCL driver (intel-opencl-icd)", found);
  found.push_back({"CPU", {}});
  return found;
}

Result<std::unique_ptr<Device>> Device::open(sdk::Host host, uint32_t index, const Settings& settings) {
  std::unique_ptr<Device> d(new Device(host, settings));
  d->label_ = text("openvino:", index);
  const std::vector<FoundDevice> found = find_devices(d->core_);
  const auto by_name = std::find_if(found.begin(), found.end(), [&](const FoundDevice& f) { return f.name == settings.device; });
  if (settings.device.empty() ? index >= found.size() : by_name == found.end()) {
    std::string all;
    for (const FoundDevice& f : found) all += text(all.empty() ? "" : ", ", f.name);
    return fail(settings.device.empty() ? Code::not_found : Code::invalid_argument,
                text(d->label_, ": no such device", settings.device.empty() ? "" : " as device=", settings.device, "; OpenVINO has ", all));
  }
  const FoundDevice& chosen = settings.device.empty() ? found[index] : *by_name;
  if (!chosen.reason.empty()) return fail(Code::unavailable, text(d->label_, ": ", chosen.name, ": ", chosen.reason));
  d->name_ = chosen.name;
  d->kind_name_ = chosen.name.substr(0, 3);
  const bool cpu = d->kind_name_ == "CPU", npu = d->kind_name_ == "NPU";
  d->precision_ = !settings.precision.empty() ? settings.precision : npu ? "f16" : "f32";
  d->target_ = {settings.form.value_or(WeightForm::compressed), d->precision_ == "f16"};
  // Guesses until a run has been timed; the CPU's were measured on two cores of a Zen 3 server.
  d->bytes_per_second_ = settings.bytes_per_second > 0 ? settings.bytes_per_second : cpu ? 6e9 : 4e10;
  d->flops_per_second_ = settings.flops_per_second > 0 ? settings.flops_per_second : cpu ? 6e10 : npu ? 4e12 : 1e12;
  d->launch_seconds_ = cpu ? 5e-5 : 3e-4;
  d->full_name_ = cpu ? cpu_model() : std::string();
  if (!cpu) FTH_RETURN_IF_ERROR(d->probe());
  return d;
}

// What the device says of itself, and a first graph: a driver without its compiler fails here, where the run goes on without the device.
Result<> Device::probe() {
  try {
    full_name_ = core_.get_property(name_, ov::device::full_name);
  } catch (const std::exception& e) {
    return fail(Code::unavailable, text(label_, ": ", name_, ": ", words_of(e)));
  }
  const fth_tensor x{.dtype = FTH_DTYPE_F32, .role = FTH_ROLE_INPUT, .rank = 2, .dims = {1, 64}, .layout = 0};
  fth_tensor w{.dtype = FTH_DTYPE_Q4_0, .role = FTH_ROLE_WEIGHT, .rank = 2, .dims = {64, 64}, .layout = 0}, y = x;
  y.role = FTH_ROLE_OUTPUT;
  const fth_tensor tensors[] = {x, w, y};
  fth_op op{};
  op.kind = FTH_OP_MATMUL;
  op.n_in = 2, op.n_out = 1;
  op.in[0] = 0, op.in[1] = 1, op.out[0] = 2;
  fth_segment s{};
  s.struct_size = sizeof s;
  s.n_tensors = 3, s.n_ops = 1, s.n_scalars = FTH_SCALAR_COUNT;
  s.name = "a first graph", s.tensors = tensors, s.ops = &op;
  FTH_ASSIGN_OR_RETURN(const sdk::SegmentView view, sdk::SegmentView::make(&s));
  const std::vector<std::byte> zeros(64 * 64 / 32 * 18);
  const auto try_form = [&](WeightForm form) -> Result<> {
    FTH_ASSIGN_OR_RETURN(const GraphPlan plan, plan_segment(view, form));
    target_.form = form;
    FTH_ASSIGN_OR_RETURN(const ov::CompiledModel compiled, compile(build_model(plan, {nullptr, zeros.data(), nullptr}, target_)));
    return {};
  };
  Result<> compiled = try_form(target_.form);
  if (!compiled && !settings_.form) {
    host_.log(FTH_LOG_WARNING, text(compiled.error().message, "; its weights are unpacked to f16"));
    compiled = try_form(WeightForm::f16);
  }
  return compiled;
}

fth_device_info Device::info() const {
  fth_device_info i{};
  i.struct_size = sizeof i;
  const bool cpu = kind_name_ == "CPU";
  i.kind = cpu ? FTH_KIND_CPU : kind_name_ == "NPU" ? FTH_KIND_NPU : FTH_KIND_GPU;
  i.flags = FTH_DEVICE_HOST_MEMORY;
  if (cpu) i.flags |= FTH_DEVICE_SOFTWARE;
  std::snprintf(i.name, sizeof i.name, "%s", label_.c_str());
  const std::string about =
      text(name_, ": ", full_name_, ", OpenVINO ", ov::get_openvino_version().buildNumber, cpu ? ", runs on the CPU" : "");
  std::snprintf(i.description, sizeof i.description, "%s", about.c_str());
  i.memory_bytes = memory_field("MemTotal:");
  i.free_bytes = memory_field("MemAvailable:");
  i.alignment = 64;
  i.bytes_per_second = bytes_per_second_;
  i.flops_per_second = flops_per_second_;
  i.launch_seconds = launch_seconds_;
  return i;
}

double Device::seconds(const GraphPlan& plan) const {
  return std::max(plan.bytes / bytes_per_second_, plan.flops / flops_per_second_) + launch_seconds_;
}

// Results must not depend on what a plugin finds fast: the CPU's default is bf16 where the processor has it, and activations of 8 bits.
Result<> Device::read_properties() {
  if (has_properties_) return {};
  const bool cpu = kind_name_ == "CPU";
  ov::AnyMap wanted = {ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY), ov::hint::num_requests(1),
                       ov::hint::inference_precision(ov::element::Type(precision_)), ov::hint::dynamic_quantization_group_size(0)};
  if (cpu || kind_name_ == "GPU") wanted.insert(ov::num_streams(1));
  if (cpu) {
    wanted.insert(ov::inference_num_threads(static_cast<int32_t>(host_.n_threads())));
    wanted.insert(ov::hint::enable_cpu_pinning(false));
  }
  try {
    if (!settings_.cache.empty()) core_.set_property(ov::cache_dir(settings_.cache));
    const auto known = core_.get_property(name_, ov::supported_properties);
    for (const auto& [key, value] : wanted)
      if (std::find(known.begin(), known.end(), key) != known.end()) properties_.emplace(key, value);
  } catch (const std::exception& e) {
    return fail(Code::unavailable, text(label_, ": ", name_, ": ", words_of(e)));
  }
  has_properties_ = true;
  return {};
}

Result<ov::CompiledModel> Device::compile(const std::shared_ptr<const ov::Model>& model) {
  FTH_RETURN_IF_ERROR(read_properties());
  try {
    return core_.compile_model(model, name_, properties_);
  } catch (const std::bad_alloc&) {
    return fail(Code::resource_exhausted, text(label_, ": ", name_, " cannot compile ", model->get_friendly_name(), ": out of memory"));
  } catch (const std::exception& e) {
    return fail(Code::unavailable, text(label_, ": ", name_, " cannot compile ", model->get_friendly_name(), ": ", words_of(e)));
  }
}

}  // namespace fth::openvino
