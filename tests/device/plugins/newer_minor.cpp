// A table that a later minor version appended to: works with this program.
#include "tests/device/test_backend.h"
namespace {
struct Config : fth::test::DefaultConfig {
  static constexpr const char* kName = "newer";
  static constexpr const char* kDevice = "newer:0";
};
struct LaterTable {
  fth_backend base;
  void (*appended)();
};
}  // namespace
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t major, const fth_host* host) {
  const fth_backend* base = fth::sdk::query<fth::test::AddBackend<Config>>(major, host);
  if (base == nullptr) return nullptr;
  static LaterTable table{*base, nullptr};
  table.base.struct_size = sizeof(LaterTable);
  table.base.abi_minor = FTH_ABI_MINOR + 1;
  return &table.base;
}
