#pragma once
// Writes which experts each token used in each layer, in the text format that bench/expert_io replays (docs/memory.md).

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/engine.h"

namespace fth::cli {

class RoutingTrace {
 public:
  // Listens to the session, which must not outlive this object.
  explicit RoutingTrace(Session& session);
  RoutingTrace(const RoutingTrace&) = delete;
  RoutingTrace& operator=(const RoutingTrace&) = delete;
  // A whole file or none. failed_precondition when it cannot be written.
  Result<> write(const std::filesystem::path& path, const Engine& engine) const;

 private:
  std::map<std::pair<int64_t, int64_t>, std::vector<int32_t>> rows_;  // by token and layer: a prompt's steps come layer by layer
};

}  // namespace fth::cli
