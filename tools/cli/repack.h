#pragma once
// Packed copies of plain models in the cache folder (docs/packed-models.md): written once, used as long as the plain file is the same.

#include <filesystem>
#include <string>
#include <vector>

#include "core/model/config.h"
#include "tools/cli/flags.h"

namespace fth::cli {

// The packed copy of a model, written now with a progress bar when there is none of this very file; the model itself when it is packed already or has no experts.
// A copy of an older version of the file is removed first. Errors: those of pack_model; failed_precondition without a cache folder.
Result<std::filesystem::path> packed_copy(const std::filesystem::path& model, const EngineFlags& flags, const CommonFlags& common);

struct PackedCopy {
  std::filesystem::path source, copy;
  uint64_t bytes = 0;
  bool current = false;  // of the source as it is now
};
std::vector<PackedCopy> packed_copies();  // those there are
// Removes a copy and its entry; failed_precondition when it cannot be removed.
Result<> remove_packed_copy(const PackedCopy& copy);

// What `--repack auto` does about a plain model whose experts are streamed.
struct AutoCopy {
  std::filesystem::path use;    // the copy to run, when there is a current one
  bool write = false;           // there is none, and the disk has room for one
  std::filesystem::path older;  // a copy in an earlier format: it makes room for the one that is written, and is run where none is
  uint64_t bytes = 0, free = 0;
  std::string note;  // what will be written, or why nothing is
};
// A copy is written where at least as much stays free as it takes. Packed and dense models: nothing.
AutoCopy auto_copy(const Model& model, const std::filesystem::path& path);

}  // namespace fth::cli
