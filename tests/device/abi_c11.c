/* The boundary's header as strict C11, and its layout, which a minor version may only append to. */
#include "plugins/abi/fth_backend.h"

#include <assert.h>

#if UINTPTR_MAX > 0xffffffffu
static_assert(sizeof(fth_host) == 32, "1.0");
static_assert(sizeof(fth_tensor) == 48, "1.0");
static_assert(sizeof(fth_op) == 96, "1.0");
static_assert(sizeof(fth_segment) == 40, "1.0");
static_assert(sizeof(fth_estimate) == 32, "1.0");
static_assert(sizeof(fth_binding) == 24, "1.0");
static_assert(sizeof(fth_device_info) == 320, "1.0");
static_assert(offsetof(fth_backend, wait) == 128, "1.0");
static_assert(offsetof(fth_backend, live_neurons) == 136, "1.1");
static_assert(offsetof(fth_backend, device_seconds) == 144, "1.2");
static_assert(sizeof(fth_backend) == 152, "1.2");
#endif

int fth_abi_is_c(void) { return FTH_OP_KIND_END; }
