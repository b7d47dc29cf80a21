// Wants a symbol that the program does not have: a driver's function, or the runtime of a sanitizer that the plugin was built with.
#include "tests/device/test_backend.h"
extern "C" void FTH_WANTED();
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t major, const fth_host* host) {
  FTH_WANTED();
  return fth::sdk::query<fth::test::AddBackend<fth::test::DefaultConfig>>(major, host);
}
