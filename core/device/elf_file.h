#pragma once
// Looks into a shared library before it is loaded. Loading is past the point of refusal: a truncated file ends in SIGBUS, and a sanitizer's
// runtime that comes too late ends the process.

#include <filesystem>
#include <string>

#include "core/base/result.h"

namespace fth {

// "asan", "tsan", "msan", or empty: what this program is built with.
std::string own_sanitizer();

// A complete shared library for this machine, whose sanitizer, if it needs one, is this program's. data_loss or failed_precondition with the
// reason. Reads a few kilobytes; the file is not trusted.
Result<> check_elf(const std::filesystem::path& file);

}  // namespace fth
