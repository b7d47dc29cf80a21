// The onednn backend's exported symbol.

#include "plugins/sdk/backend.h"

extern "C" const fth_backend* fth_onednn_query(uint32_t abi_major, const fth_host* host);

FTH_EXPORT_BACKEND(fth_onednn_query)
