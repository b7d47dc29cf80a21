// The cpu backend as a plugin file: the same objects, under the name that the loader looks for.

#include "plugins/sdk/backend.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

FTH_EXPORT_BACKEND(fth_cpu_query)
