// Two devices, the second of which cannot be opened.
#include "tests/device/test_backend.h"
namespace {
struct Config : fth::test::DefaultConfig {
  static constexpr const char* kName = "halfopen";
  static constexpr const char* kDevice = "halfopen:0";
  static fth::Result<uint32_t> count() { return 2u; }
  static fth::Result<> open(uint32_t index) {
    if (index == 1) return fth::fail(fth::Code::unavailable, "in use by another process");
    return {};
  }
};
}  // namespace
FTH_EXPORT_BACKEND(fth::sdk::query<fth::test::AddBackend<Config>>)
