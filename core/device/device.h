#pragma once
// The host's view of one device behind the plugin boundary: C++ handles over the C table, errors as Result.
// A Device and what it made are used by one thread at a time. Handles must not outlive the Registry that loaded the plugin.

#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/result.h"
#include "core/device/plugin_calls.h"
#include "plugins/abi/fth_backend.h"

namespace fth {

inline Result<> check(fth_code code, const fth_error& e) {
  if (code == FTH_OK) return {};
  return fail(static_cast<Code>(code), std::string(e.message, strnlen(e.message, sizeof e.message)));
}

// One call of the table `api`: f(fth_error*) returns its code. The boundary forbids exceptions; a plugin that throws one all the same gets an error like any other.
template <class F>
Result<> call_plugin(const fth_backend& api, F&& f) {
  const PluginCall call(api);
  fth_error e{};
  try {
    return check(f(&e), e);
  } catch (const std::exception& x) {
    return fail(Code::internal, std::string("threw an exception through the boundary: ") + x.what());
  } catch (...) {
    return fail(Code::internal, "threw an exception through the boundary");
  }
}

// An object that the plugin frees.
template <class T, void (*fth_backend::*Free)(T*)>
class Handle {
 public:
  Handle() = default;
  Handle(const fth_backend* api, T* p) : api_(api), p_(p) {}
  Handle(Handle&& o) noexcept : api_(o.api_), p_(std::exchange(o.p_, nullptr)) {}
  Handle& operator=(Handle&& o) noexcept {
    std::swap(api_, o.api_);
    std::swap(p_, o.p_);
    return *this;
  }
  ~Handle() {
    if (!p_) return;
    const PluginCall call(*api_);
    (api_->*Free)(p_);
  }
  T* get() const { return p_; }
  explicit operator bool() const { return p_ != nullptr; }
  const fth_backend& api() const { return *api_; }

 private:
  const fth_backend* api_ = nullptr;
  T* p_ = nullptr;
};

using DeviceHandle = Handle<fth_device, &fth_backend::close>;
using ExecutableHandle = Handle<fth_executable, &fth_backend::release>;

class Buffer {
 public:
  Buffer() = default;
  Buffer(const fth_backend* api, fth_buffer* p, uint64_t bytes) : h_(api, p), bytes_(bytes) {}
  uint64_t bytes() const { return bytes_; }
  explicit operator bool() const { return static_cast<bool>(h_); }
  fth_binding whole() const { return {h_.get(), 0, bytes_}; }
  fth_binding at(uint64_t offset, uint64_t bytes) const { return {h_.get(), offset, bytes}; }
  Result<> write(uint64_t offset, const void* src, uint64_t bytes) const {
    return call_plugin(h_.api(), [&](fth_error* e) { return h_.api().write(h_.get(), offset, src, bytes, e); });
  }
  Result<> read(uint64_t offset, void* dst, uint64_t bytes) const {
    return call_plugin(h_.api(), [&](fth_error* e) { return h_.api().read(h_.get(), offset, dst, bytes, e); });
  }

 private:
  Handle<fth_buffer, &fth_backend::free> h_;
  uint64_t bytes_ = 0;
};

class Executable {
 public:
  Executable() = default;
  Executable(const fth_backend* api, fth_executable* p) : h_(api, p) {}
  explicit operator bool() const { return static_cast<bool>(h_); }

  // Starts a run and waits for it. scalars: FTH_SCALAR_COUNT of them.
  Result<> run(std::span<const fth_binding> bindings, std::span<const int64_t> scalars) const {
    FTH_ASSIGN_OR_RETURN(fth_event* const event, submit(bindings, scalars));
    return wait(event);
  }
  Result<fth_event*> submit(std::span<const fth_binding> bindings, std::span<const int64_t> scalars) const {
    fth_event* event = nullptr;
    FTH_RETURN_IF_ERROR(call_plugin(h_.api(), [&](fth_error* e) {
      return h_.api().submit(h_.get(), bindings.data(), static_cast<uint32_t>(bindings.size()), scalars.data(), &event, e);
    }));
    return event;
  }
  Result<> wait(fth_event* event) const {
    return call_plugin(h_.api(), [&](fth_error* e) { return h_.api().wait(event, e); });
  }
  // fth_backend::live_neurons; both 0 where nothing is counted.
  void live_neurons(uint64_t* live, uint64_t* all) const {
    *live = *all = 0;
    const fth_backend& api = h_.api();
    if (api.struct_size >= offsetof(fth_backend, live_neurons) + sizeof api.live_neurons && api.live_neurons)
      api.live_neurons(h_.get(), live, all);
  }
  // fth_backend::device_seconds; negative where it is not known.
  double device_seconds() const {
    const fth_backend& api = h_.api();
    const bool has = api.struct_size >= offsetof(fth_backend, device_seconds) + sizeof api.device_seconds && api.device_seconds;
    return has ? api.device_seconds(h_.get()) : -1;
  }

 private:
  ExecutableHandle h_;
};

class Device {
 public:
  static Result<Device> open(const fth_backend& api, uint32_t index, const char* options) {
    fth_device* d = nullptr;
    FTH_RETURN_IF_ERROR(call_plugin(api, [&](fth_error* e) { return api.open(index, options, &d, e); }));
    Device device{DeviceHandle(&api, d)};
    device.info_.struct_size = sizeof device.info_;
    FTH_RETURN_IF_ERROR(call_plugin(api, [&](fth_error* e) { return api.info(d, &device.info_, e); }));
    return device;
  }

  const fth_device_info& info() const { return info_; }
  std::string name() const { return std::string(info_.name, strnlen(info_.name, sizeof info_.name)); }
  // For the registry, which keeps names unique. Cut at 63 bytes.
  void rename(const std::string& name) {
    std::memset(info_.name, 0, sizeof info_.name);
    name.copy(info_.name, sizeof info_.name - 1);
  }
  // info as it is now: free_bytes changes.
  Result<fth_device_info> info_now() const {
    fth_device_info now{};
    now.struct_size = sizeof now;
    FTH_RETURN_IF_ERROR(call_plugin(api(), [&](fth_error* e) { return api().info(h_.get(), &now, e); }));
    return now;
  }
  bool reads_host_memory() const { return (info_.flags & FTH_DEVICE_HOST_MEMORY) != 0; }
  const fth_backend& api() const { return h_.api(); }

  Result<Buffer> alloc(uint64_t bytes) const {
    fth_buffer* b = nullptr;
    FTH_RETURN_IF_ERROR(call_plugin(api(), [&](fth_error* e) { return api().alloc(h_.get(), bytes, &b, e); }));
    return Buffer(&api(), b, bytes);
  }
  // `p` must outlive the buffer.
  Result<Buffer> import_host(void* p, uint64_t bytes) const {
    fth_buffer* b = nullptr;
    FTH_RETURN_IF_ERROR(call_plugin(api(), [&](fth_error* e) { return api().import_host(h_.get(), p, bytes, &b, e); }));
    return Buffer(&api(), b, bytes);
  }
  Result<fth_estimate> estimate(const fth_segment& s) const {
    fth_estimate out{};
    out.struct_size = sizeof out;
    FTH_RETURN_IF_ERROR(call_plugin(api(), [&](fth_error* e) { return api().estimate(h_.get(), &s, &out, e); }));
    return out;
  }
  Result<Executable> compile(const fth_segment& s, std::span<const fth_binding> weights) const {
    fth_executable* x = nullptr;
    FTH_RETURN_IF_ERROR(call_plugin(
        api(), [&](fth_error* e) { return api().compile(h_.get(), &s, weights.data(), static_cast<uint32_t>(weights.size()), &x, e); }));
    return Executable(&api(), x);
  }

 private:
  explicit Device(DeviceHandle h) : h_(std::move(h)) {}
  DeviceHandle h_;
  fth_device_info info_{};
};

}  // namespace fth
