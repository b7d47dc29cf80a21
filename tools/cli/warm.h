#pragma once
// The warm set of a program run: which streamed experts it begins with, by model and by kind of work, and the file that remembers them.
// In the cache folder: warm/<model fingerprint>.warm, and warm/<model fingerprint>.<task>.warm for each --task.

#include <filesystem>
#include <string>

#include "core/engine/engine.h"
#include "tools/cli/flags.h"

namespace fth::cli {

// Wrong options, before anything is opened. invalid_argument.
Result<> check_warm(const WarmFlags& flags);

// The file that --warm-set names or, with auto, the model's general set if there is one; empty: none.
std::filesystem::path warm_set_to_read(const std::string& set, const Engine& engine);

class WarmSet {
 public:
  // Reads experts into free slots and pins. Nothing when experts are resident. A set that is missing, damaged or of another model is said and ignored;
  // only a wrong option and --pin-experts that leaves too few slots (resource_exhausted) are errors. The engine must outlive this object.
  static Result<WarmSet> restore(const WarmFlags& flags, const CommonFlags& common, Engine& engine);
  // Writes the set, whatever ended the run. A cache that cannot be written is said, not an error.
  ~WarmSet();
  WarmSet(WarmSet&& other) noexcept;
  WarmSet& operator=(WarmSet&&) = delete;

 private:
  WarmSet() = default;
  const Engine* engine_ = nullptr;  // null: there is nothing to write
  std::filesystem::path path_;
  bool quiet_ = false;
};

}  // namespace fth::cli
