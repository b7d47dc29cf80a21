// Serves a later major version only.
#include "plugins/abi/fth_backend.h"
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t major, const fth_host*) {
  static const fth_backend kTable{};
  return major == FTH_ABI_MAJOR + 1 ? &kTable : nullptr;
}
