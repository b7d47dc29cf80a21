#pragma once
// From router logits to work: which experts each token uses, with which weight, and the tokens of each expert together (arXiv 2507.20984, section 3).
// Pure functions; ties go to the lower expert index, everywhere.

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/result.h"
#include "core/model/config.h"

namespace fth {

struct Routing {
  std::vector<int32_t> ids;         // [n_tokens, top_k], largest logit first
  std::vector<float> gates;         // [n_tokens, top_k], sum 1 per token
  std::vector<int32_t> experts;     // that are used, ascending: slot s holds experts[s]
  std::vector<int32_t> slot_begin;  // [experts.size() + 1] into rows
  std::vector<int32_t> rows;        // token * top_k + rank, by slot, ascending within one
};

// The top_k largest of each row of logits [n_tokens, n_expert]. data_loss for a NaN.
Result<> choose_experts(const Config& config, std::span<const float> logits, int64_t n_tokens, Routing* out);
// gates of out->ids, which may have been replaced since; then the grouping. invalid_argument for an id that is not an expert.
Result<> weigh_and_group(const Config& config, std::span<const float> logits, int64_t n_tokens, Routing* out);

}  // namespace fth
