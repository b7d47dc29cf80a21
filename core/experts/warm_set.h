#pragma once
// The saved warm set: a small text file, described in docs/memory.md. Not trusted: bounded size, a checksum over all of it.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "core/base/result.h"

namespace fth {

struct WarmSet {
  struct Use {
    size_t key = 0;     // layer * n_expert + expert
    double weight = 0;  // chance of use per token
  };
  uint64_t fingerprint = 0;
  int64_t n_layer = 0, n_expert = 0;
  std::vector<Use> uses;  // most used first
};

// Sorted, written beside `path` and renamed over it. unavailable with errno's text.
Result<> write_warm_set(const std::filesystem::path& path, WarmSet set);
// not_found, data_loss (damaged), failed_precondition (another model).
Result<WarmSet> read_warm_set(const std::filesystem::path& path, uint64_t fingerprint, int64_t n_layer, int64_t n_expert);

}  // namespace fth
