// xxHash as a header: nothing to link, and the compiler's own vector width.
#include "core/experts/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace fth {

uint64_t xxh3_64(std::initializer_list<std::span<const std::byte>> pieces) {
  XXH3_state_t state;
  XXH3_64bits_reset(&state);
  for (const auto& piece : pieces) XXH3_64bits_update(&state, piece.data(), piece.size());
  return XXH3_64bits_digest(&state);
}

}  // namespace fth
