// Small JSON files, read with limits and written whole.

#include "tools/cli/cache_file.h"

#include <unistd.h>

#include <boost/json.hpp>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#include "tools/cli/machine.h"
#include "tools/cli/output.h"

namespace fth::cli {

namespace json = boost::json;

std::filesystem::path cache_file(std::string_view name) {
  const auto folder = cache_folder();
  return folder.empty() ? folder : folder / name;
}

json::array read_entries(const std::filesystem::path& path, std::string_view key) {
  constexpr uintmax_t kMost = 1 << 20;
  std::error_code missing;
  if (path.empty() || std::filesystem::file_size(path, missing) > kMost || missing) return {};
  std::ifstream in(path);
  std::stringstream content;
  content << in.rdbuf();
  json::error_code error;
  const json::value root = json::parse(content.str(), error);
  const json::object* object = error ? nullptr : root.if_object();
  const json::value* entries = object == nullptr ? nullptr : object->if_contains(key);
  return entries != nullptr && entries->is_array() ? entries->get_array() : json::array();
}

bool write_entries(const std::filesystem::path& path, std::string_view key, const json::array& entries) {
  if (path.empty()) return false;
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  // Beside it and renamed: two programs that start at once leave one whole file.
  auto temporary = path;
  temporary += text(".%ld", static_cast<long>(::getpid()));
  {
    std::ofstream out(temporary);
    out << json_text(json::object{{key, entries}});
    if (!out) return false;
  }
  std::filesystem::rename(temporary, path, error);
  return !error;
}

bool machine_is_busy() {
  double load = 0;
  return ::getloadavg(&load, 1) == 1 && load > 0.5 * std::thread::hardware_concurrency();
}

}  // namespace fth::cli
