#pragma once
// What is left of a plugin that ended this process: a line in the cache folder, written by the signal handler, that the next start reads and refuses the plugin for.
//
// A crash inside a plugin's call, or in a thread that is none of ours while a plugin is being called, is that plugin's: SIGSEGV, SIGBUS, SIGILL, SIGFPE and SIGABRT.
// The process still ends by its signal, after one line to standard error. SIGKILL leaves nothing.

#include <filesystem>
#include <string>
#include <vector>

#include "plugins/abi/fth_backend.h"

namespace fth::cli {

struct CrashNote {
  std::string file, identity, signal;  // of the plugin; "SIGSEGV (Segmentation fault)"
};

// From now on a crash in `api` is noted in `notes` for the plugin `file`. The handlers are installed by the first call, and stay. From one thread; at most 64 plugins,
// what comes later is not watched.
void watch_for_crashes(const fth_backend& api, const std::string& file, const std::string& identity, const std::filesystem::path& notes);

// The notes that were left, which are gone then. Damaged lines are left out.
std::vector<CrashNote> take_crash_notes(const std::filesystem::path& notes);

}  // namespace fth::cli
