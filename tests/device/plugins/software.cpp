// A rasteriser: runs on the CPU behind a driver.
#include "tests/device/test_backend.h"
namespace {
struct Config : fth::test::DefaultConfig {
  static constexpr const char* kName = "software";
  static constexpr const char* kDevice = "software:0";
  static constexpr uint32_t kFlags = FTH_DEVICE_SOFTWARE;
};
}  // namespace
FTH_EXPORT_BACKEND(fth::sdk::query<fth::test::AddBackend<Config>>)
