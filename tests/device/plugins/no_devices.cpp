// A driver with no device behind it.
#include "tests/device/test_backend.h"
namespace {
struct Config : fth::test::DefaultConfig {
  static constexpr const char* kName = "empty";
  static fth::Result<uint32_t> count() { return 0u; }
};
}  // namespace
FTH_EXPORT_BACKEND(fth::sdk::query<fth::test::AddBackend<Config>>)
