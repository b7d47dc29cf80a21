#pragma once
// What a streamed run is expected to do under a plan: the experts' uses from a trace, a warm set or an assumption, replayed through the store's policy.

#include <boost/json/object.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "core/experts/trace.h"
#include "core/plan/stream_model.h"
#include "tools/cli/open.h"

namespace fth::cli {

// How the model's experts are used, and how sure that is.
struct ExpertUses {
  std::string kind;   // "trace", "warm set", "assumed"
  std::string label;  // one clause, for people
  std::string hint;   // how to know better; may be empty
  ExpertTrace trace;
  int64_t warmup = 0;              // tokens of it that fill the slots
  std::vector<double> popularity;  // of a layer's experts, as distinct_experts() takes it
};

// From `trace` (--trace-routing of a run), else from the warm set, else the assumption. invalid_argument when the trace is of another shape of model; the trace's own errors.
// A warm set that cannot be used is said in the label of what is used instead.
Result<ExpertUses> expert_uses(const Engine& engine, const std::filesystem::path& trace, const std::filesystem::path& warm_set);

struct Predicted {
  StreamPrediction decode;
  double prompt_tok_s = 0;  // of kJobPrompt tokens, from a cold store
};
// `uses` may be null for a plan without streamed experts.
Result<Predicted> predict(const Engine& engine, const Plan& plan, const ExpertUses* uses, const StorageSpeed& storage);

boost::json::object prediction_json(const Predicted& p);

}  // namespace fth::cli
