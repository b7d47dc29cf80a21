// Answers any version with a table of another.
#include "tests/device/test_backend.h"
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t, const fth_host* host) {
  static fth_backend table = *fth::sdk::query<fth::test::AddBackend<fth::test::DefaultConfig>>(FTH_ABI_MAJOR, host);
  table.abi_major = FTH_ABI_MAJOR + 1;
  return &table;
}
