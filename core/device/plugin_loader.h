#pragma once
// One plugin file to one checked backend table, or the reason why not. Called with the registry's lock held: loading is not for two threads.

#include <filesystem>

#include "core/base/result.h"
#include "plugins/abi/fth_backend.h"

namespace fth {

// What the loader needs of a table before any of its functions is called: versions, struct_size, name, and every function of this program's
// version. The message names what is wrong or missing.
Result<> check_table(const fth_backend* api);

// Asks `query`, a backend's entry, for its table. Where it has none for this program's version, the message says which it has.
Result<const fth_backend*> query_backend(fth_backend_query_fn query, const fth_host* host);

// Opens the library and asks it. It stays loaded for the life of the process, whatever comes of it: code of it may be on some thread's stack,
// in an atexit list, or behind a driver's callback.
Result<const fth_backend*> load_plugin(const std::filesystem::path& file, const fth_host* host);

}  // namespace fth
