#pragma once
// The devices that OpenVINO drives, found without loading its CPU plugin (95 MiB); and one of them opened, which loads a plugin only when a graph is
// compiled.

#include <memory>
#include <string>
#include <vector>

#include <openvino/runtime/compiled_model.hpp>
#include <openvino/runtime/core.hpp>

#include "backends/openvino/graph.h"

namespace fth::openvino {

struct FoundDevice {
  std::string name;    // OpenVINO's: "NPU", "GPU.0", "CPU"
  std::string reason;  // why it cannot be used; empty when it can
};
// NPUs, then GPUs, then the CPU.
std::vector<FoundDevice> find_devices(ov::Core& core);

// Options of open(), docs/openvino.md.
struct Settings {
  std::string device;              // instead of the one of the index; empty: none
  std::string precision, cache;    // empty: the device's default; no cache
  std::optional<WeightForm> form;  // none: what the device takes
  double bytes_per_second = 0, flops_per_second = 0;
};

// One open device. One thread at a time, as the boundary promises.
class Device {
 public:
  // not_found beyond the devices; unavailable, with OpenVINO's words, where no graph can be compiled on an accelerator.
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, const Settings& settings);
  fth_device_info info() const;
  const std::string& label() const { return label_; }
  const Target& target() const { return target_; }
  double seconds(const GraphPlan& plan) const;
  // unavailable with OpenVINO's words.
  Result<ov::CompiledModel> compile(const std::shared_ptr<const ov::Model>& model);

 private:
  Device(sdk::Host host, Settings settings) : host_(host), settings_(std::move(settings)) {}
  Result<> probe();
  Result<> read_properties();

  sdk::Host host_;
  Settings settings_;
  ov::Core core_;
  std::string label_, name_, kind_name_, full_name_;
  Target target_;
  std::string precision_;
  ov::AnyMap properties_;  // of compile; filled at the first
  bool has_properties_ = false;
  double bytes_per_second_ = 0, flops_per_second_ = 0, launch_seconds_ = 0;
};

// An exception's words on one line, without the places in OpenVINO's sources.
std::string words_of(const std::exception& e);

}  // namespace fth::openvino
