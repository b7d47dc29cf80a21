// An entry that breaks the rule on exceptions.
#include <stdexcept>

#include "plugins/abi/fth_backend.h"
extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t, const fth_host*) { throw std::runtime_error("no driver today"); }
