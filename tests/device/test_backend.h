#pragma once
// A small backend for the registry's tests: host memory, and ADD over f32 on the host's pool. `Config` names it and breaks it on purpose.

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "plugins/sdk/backend.h"

namespace fth::test {

struct DefaultConfig {
  static constexpr const char* kName = "add";
  static constexpr const char* kDevice = "add:0";
  static constexpr uint32_t kFlags = FTH_DEVICE_HOST_MEMORY;
  static Result<uint32_t> count() { return 1u; }
  static Result<> open(uint32_t) { return {}; }
};

template <class Config>
struct AddBackend {
  static constexpr const char* kName = Config::kName;

  class Event {
   public:
    Result<> wait() { return {}; }
  };

  class Buffer {
   public:
    explicit Buffer(uint64_t bytes) : owned_(bytes), p_(owned_.data()), bytes_(bytes) {}
    Buffer(void* p, uint64_t bytes) : p_(static_cast<std::byte*>(p)), bytes_(bytes) {}
    Result<> write(uint64_t offset, const void* src, uint64_t bytes) {
      FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
      std::memcpy(p_ + offset, src, bytes);
      return {};
    }
    Result<> read(uint64_t offset, void* dst, uint64_t bytes) {
      FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
      std::memcpy(dst, p_ + offset, bytes);
      return {};
    }
    float* at(uint64_t offset) { return reinterpret_cast<float*>(p_ + offset); }

   private:
    std::vector<std::byte> owned_;
    std::byte* p_;
    uint64_t bytes_;
  };

  class Executable {
   public:
    Executable(sdk::Host host, const sdk::SegmentView& s) : host_(host), n_bindings_(s.n_bindings()), width_(s.tensor(0).dims[1]) {}
    Result<Event*> submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
      if (bindings.size() != n_bindings_)
        return fail(Code::invalid_argument, std::to_string(bindings.size()) + " bindings, need " + std::to_string(n_bindings_));
      float* p[3];
      for (size_t i = 0; i < 3; ++i) p[i] = sdk::buffer_of<Buffer>(bindings[i])->at(bindings[i].offset);
      host_.parallel_for(static_cast<uint32_t>(scalars[FTH_SCALAR_TOKENS]), [&](uint32_t row) {
        for (int64_t i = row * width_; i < (row + 1) * width_; ++i) p[2][i] = p[0][i] + p[1][i];
      });
      return &event_;
    }

   private:
    sdk::Host host_;
    uint32_t n_bindings_;
    int64_t width_;
    Event event_;
  };

  class Device {
   public:
    explicit Device(sdk::Host host) : host_(host) {}
    Result<fth_device_info> info() {
      fth_device_info info{};
      info.kind = FTH_KIND_CPU;
      info.flags = Config::kFlags;
      std::snprintf(info.name, sizeof info.name, "%s", Config::kDevice);
      std::snprintf(info.description, sizeof info.description, "adds on %u threads", host_.n_threads());
      return info;
    }
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) { return std::make_unique<Buffer>(bytes); }
    Result<std::unique_ptr<Buffer>> import_host(void* p, uint64_t bytes) { return std::make_unique<Buffer>(p, bytes); }
    Result<fth_estimate> estimate(const sdk::SegmentView& s) {
      if (s.ops().size() != 1 || s.ops()[0].kind != FTH_OP_ADD || s.n_bindings() != 3)
        return fail(Code::unimplemented, std::string(s.name()) + ": one add of two inputs, nothing else");
      fth_estimate e{};
      e.seconds = 1e-6;
      return e;
    }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& s, std::span<const fth_binding>) {
      FTH_RETURN_IF_ERROR(estimate(s));
      return std::make_unique<Executable>(host_, s);
    }

   private:
    sdk::Host host_;
  };

  static Result<uint32_t> device_count(sdk::Host host) {
    host.log(FTH_LOG_INFO, std::string(kName) + ": counting");
    return Config::count();
  }
  static Result<std::unique_ptr<Device>> open(sdk::Host host, uint32_t index, sdk::Options& options) {
    FTH_RETURN_IF_ERROR(Config::open(index));
    if (const auto isa = options.take("isa"); isa && *isa != "generic")
      return fail(Code::invalid_argument, "isa=" + *isa + ": only generic");
    return std::make_unique<Device>(host);
  }
};

}  // namespace fth::test
