#pragma once
// Files in the user's cache folder: what was measured once. A damaged one is an empty one; one that cannot be written is only measured again.

#include <boost/json/array.hpp>
#include <filesystem>
#include <string_view>

namespace fth::cli {

// $XDG_CACHE_HOME (or ~/.cache) /forethought/NAME; empty when neither is an absolute path.
std::filesystem::path cache_file(std::string_view name);
// The array under `key`; empty when the file is not there, not JSON or has none.
boost::json::array read_entries(const std::filesystem::path& path, std::string_view key);
// {key: entries}, whole or not at all. False when it cannot be written.
bool write_entries(const std::filesystem::path& path, std::string_view key, const boost::json::array& entries);

// A figure measured while other programs run is too low: it is measured again at each start, and the best kept, until one comes from a quiet machine.
bool machine_is_busy();

}  // namespace fth::cli
