#pragma once
// Places for tests: a folder that goes away, and the reference files, where there are any.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>

namespace fth::test {

class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "fth-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// $FTH_SHARED_DIR/reference; a path that does not exist where the variable is not set.
inline std::filesystem::path reference_folder() {
  const char* shared = std::getenv("FTH_SHARED_DIR");
  return std::filesystem::path(shared == nullptr ? "FTH_SHARED_DIR-is-not-set" : shared) / "reference";
}

}  // namespace fth::test
