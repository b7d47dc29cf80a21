// A library that is no plugin.
#include "plugins/abi/fth_backend.h"
extern "C" FTH_EXPORT int fth_something_else() { return 1; }
