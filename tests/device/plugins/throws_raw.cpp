// A table without the guard: an exception crosses the boundary.
#include <stdexcept>

#include "tests/device/test_backend.h"
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t major, const fth_host* host) {
  static fth_backend table = *fth::sdk::query<fth::test::AddBackend<fth::test::DefaultConfig>>(FTH_ABI_MAJOR, host);
  table.name = "raw";
  table.device_count = [](uint32_t*, fth_error*) -> fth_code { throw std::runtime_error("unguarded"); };
  return major == FTH_ABI_MAJOR ? &table : nullptr;
}
