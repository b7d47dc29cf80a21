#pragma once
// Routing traces: which experts each token used in each layer. Text, described in docs/memory.md. Read from files (not trusted) or made up (and labelled so).
// What a policy and a number of slots make of one: core/experts/replay.h.

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/base/result.h"

namespace fth {

struct ExpertTrace {
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

// not_found; data_loss with the line, also when it is longer than 256 MiB.
Result<ExpertTrace> read_trace(const std::filesystem::path& path);
// `comment`: one line that says how it came about; may be empty. unavailable with the system's reason.
Result<> write_trace(const std::filesystem::path& path, const ExpertTrace& trace, const std::string& comment = {});

// How a trace is made up. The defaults of a skewed one are what the SmallThinker report (arXiv 2507.20984) says of its models' experts: 20 to 30 % of them are used
// by 40 to 60 % of the tokens, the others by fewer than 14 %. That topics stay for a while is an assumption of ours.
struct SyntheticTrace {
  bool skewed = true;  // false: every expert alike, tokens independent
  int64_t n_layer = 32, n_expert = 32, top_k = 4, n_tokens = 512;
  double hot_experts = 0.22;  // share of the experts of each layer that ...
  double hot_uses = 0.8;      // ... has this share of the uses
  double topic_spread = 0.6;  // deviation of what a topic adds to an expert's log-odds
  double stay = 0.98;         // chance that the next token has the same topic
  int64_t n_topics = 8;
  uint64_t seed = 1;
};
ExpertTrace make_trace(const SyntheticTrace& recipe);
// Tokens drawn independently, experts by the chance of use that each key (layer * n_expert + expert) has, as a warm set tells it. Layers without any are left out.
ExpertTrace make_trace(const std::vector<double>& chances, int64_t n_layer, int64_t n_expert, int64_t top_k, int64_t n_tokens);

// How often a token uses each expert of a layer, most used first, averaged over the layers: n_expert values that sum to top_k.
std::vector<double> popularity(const ExpertTrace& trace);
// Share of uses that the most used `share` of the experts of each layer have, averaged over layers; and of experts that the token before used too.
double hot_share(const ExpertTrace& trace, double share);
double repeat_share(const ExpertTrace& trace);

}  // namespace fth
