// No driver on this machine.
#include "tests/device/test_backend.h"
namespace {
struct Config : fth::test::DefaultConfig {
  static constexpr const char* kName = "nodriver";
  static fth::Result<uint32_t> count() { return fth::fail(fth::Code::unavailable, "libnodriver.so.1 is not installed"); }
};
}  // namespace
FTH_EXPORT_BACKEND(fth::sdk::query<fth::test::AddBackend<Config>>)
