#pragma once
// Routing traces: which experts each token used in each layer. Text, described in docs/memory.md. Read from files (not trusted) or made up (and labelled so).

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/result.h"

namespace fth::bench {

struct Trace {
  std::string model;   // name, for the report
  std::string source;  // "recorded ...", "synthetic ..."
  int64_t n_layer = 0, n_expert = 0, top_k = 0;
  std::vector<bool> sparse;  // by layer: does it appear at all?
  struct Row {
    int32_t token = 0, layer = 0;
    std::vector<int32_t> experts;
  };
  std::vector<Row> rows;  // tokens in order; within one, layers in order
  int64_t n_tokens = 0;
};

// not_found, data_loss with the line.
Result<Trace> read_trace(const std::filesystem::path& path);
Result<> write_trace(const std::filesystem::path& path, const Trace& trace);

struct Synthetic {
  bool skewed = true;  // false: every expert alike, tokens independent
  int64_t n_layer = 32, n_expert = 32, top_k = 4, n_tokens = 512;
  double hot_experts = 0.25;  // share of the experts of each layer that ...
  double hot_uses = 0.5;      // ... has this share of the uses, over all topics
  double stay = 0.98;         // chance that the next token has the same topic
  int64_t n_topics = 8;
  uint64_t seed = 1;
};
Trace make_trace(const Synthetic& recipe);

// Share of uses that the most used `share` of the experts of each layer have, averaged over layers; and of experts that the token before used too.
double hot_share(const Trace& trace, double share);
double repeat_share(const Trace& trace);

}  // namespace fth::bench
