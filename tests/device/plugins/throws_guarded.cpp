// Every method throws; the guard of the sdk turns each into an error.
#include <new>
#include <stdexcept>

#include "plugins/sdk/backend.h"
namespace {
using namespace fth;
struct Throwing {
  static constexpr const char* kName = "throwing";
  struct Event {
    Result<> wait() { throw std::runtime_error("boom in wait"); }
  };
  struct Buffer {
    Result<> write(uint64_t, const void*, uint64_t) { throw std::runtime_error("boom in write"); }
    Result<> read(uint64_t, void*, uint64_t) { throw 7; }
  };
  struct Executable {
    Event event;
    int calls = 0;
    Result<Event*> submit(std::span<const fth_binding>, const int64_t*) {
      if (++calls > 1) throw std::runtime_error("boom in submit");
      return &event;
    }
  };
  struct Device {
    Result<fth_device_info> info() {
      fth_device_info info{};
      std::snprintf(info.name, sizeof info.name, "throwing:0");
      return info;
    }
    Result<std::unique_ptr<Buffer>> alloc(uint64_t bytes) {
      if (bytes > 8) throw std::bad_alloc();
      return std::make_unique<Buffer>();
    }
    Result<std::unique_ptr<Buffer>> import_host(void*, uint64_t) { throw std::runtime_error("boom in import_host"); }
    Result<fth_estimate> estimate(const sdk::SegmentView&) { throw std::runtime_error("boom in estimate"); }
    Result<std::unique_ptr<Executable>> compile(const sdk::SegmentView& s, std::span<const fth_binding>) {
      if (s.ops().empty()) throw std::runtime_error("boom in compile");
      return std::make_unique<Executable>();
    }
  };
  static Result<uint32_t> device_count(sdk::Host) { return 2u; }
  static Result<std::unique_ptr<Device>> open(sdk::Host, uint32_t index, sdk::Options&) {
    if (index == 1) throw std::runtime_error("boom in open");
    return std::make_unique<Device>();
  }
};
}  // namespace
FTH_EXPORT_BACKEND(fth::sdk::query<Throwing>)
