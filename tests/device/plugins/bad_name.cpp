// A name that no one could type.
#include "tests/device/test_backend.h"
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t major, const fth_host* host) {
  static fth_backend table = *fth::sdk::query<fth::test::AddBackend<fth::test::DefaultConfig>>(FTH_ABI_MAJOR, host);
  table.name = "Add \x1b[2J";
  return major == FTH_ABI_MAJOR ? &table : nullptr;
}
