// The list of linked-in backends: the one place where core's declaration meets a backend's symbol.
#include <array>

#include "core/device/registry.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace fth {

std::span<const fth_backend_query_fn> builtin_backends() {
  static constexpr std::array<fth_backend_query_fn, 1> kBuiltin{&fth_cpu_query};
  return kBuiltin;
}

}  // namespace fth
