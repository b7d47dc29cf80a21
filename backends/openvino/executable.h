#pragma once
// Buffers in the host's memory, and a compiled segment: a submit fills the graph's inputs and starts it, wait() takes its outputs.

#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include <openvino/runtime/infer_request.hpp>

#include "backends/openvino/devices.h"
#include "plugins/sdk/host_memory.h"

namespace fth::openvino {

class Executable;
using Event = sdk::RunEvent<Executable>;

// The device's own memory is the host's too: whether it is copied for a run is the matter of OpenVINO's plugin.
using Buffer = sdk::HostBuffer;

class Executable {
 public:
  static Result<std::unique_ptr<Executable>> make(Device& device, GraphPlan plan, std::span<const fth_binding> weights);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;
  // failed_precondition while the last run has not been waited for; unavailable with OpenVINO's words.
  Result<Event*> submit(std::span<const fth_binding> bindings, const int64_t* scalars);
  Result<> wait();

 private:
  Executable(Device& device, GraphPlan plan) : device_(device), plan_(std::move(plan)), event_(*this) {}
  Result<> bind(std::span<const fth_binding> bindings);
  void fill(const Port& p, std::byte* to) const;
  void take(const Port& p, const std::byte* from) const;

  Device& device_;
  GraphPlan plan_;
  std::vector<uint64_t> frequencies_;  // of all rope tables
  ov::CompiledModel model_;
  ov::InferRequest request_;
  std::vector<std::byte*> places_;                 // of each tensor of the segment that is bound
  std::vector<std::byte*> bound_, bound_outputs_;  // what each input and output of the request was last set to
  std::byte* workspace_ = nullptr;
  int64_t tokens_ = 0, pos_ = 0;
  bool running_ = false, releases_ = false;
  Event event_;
};

}  // namespace fth::openvino
