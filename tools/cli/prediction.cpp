// Which uses, which replay; the arithmetic is core/plan/stream_model.cpp's.

#include "tools/cli/prediction.h"

#include <boost/json.hpp>

#include "core/experts/replay.h"
#include "core/experts/warm_set.h"
#include "tools/cli/output.h"

namespace fth::cli {

namespace {

constexpr int64_t kAssumedTokens = 384, kAssumedWarmup = 128;

ExpertTrace assumed_trace(const Config& c) {
  SyntheticTrace recipe;
  recipe.n_layer = c.n_layer, recipe.n_expert = c.n_expert, recipe.top_k = c.top_k, recipe.n_tokens = kAssumedTokens;
  return make_trace(recipe);
}

}  // namespace

Result<ExpertUses> expert_uses(const Engine& engine, const std::filesystem::path& trace, const std::filesystem::path& warm_set) {
  const Config& c = engine.model().config;
  ExpertUses out;
  if (!trace.empty()) {
    FTH_ASSIGN_OR_RETURN(out.trace, read_trace(trace));
    if (out.trace.n_layer != c.n_layer || out.trace.n_expert != c.n_expert || out.trace.top_k != c.top_k)
      return fail(Code::invalid_argument,
                  text("--trace %s: %lld layers, %lld experts, top_k %lld; the model has %lld, %lld and %lld", trace.c_str(),
                       static_cast<long long>(out.trace.n_layer), static_cast<long long>(out.trace.n_expert),
                       static_cast<long long>(out.trace.top_k), static_cast<long long>(c.n_layer), static_cast<long long>(c.n_expert),
                       static_cast<long long>(c.top_k)));
    out.kind = "trace";
    out.label = "experts used as in " + printable(trace.filename().string()) + " (" + printable(out.trace.source, 80) +
                text(", %lld tokens)", static_cast<long long>(out.trace.n_tokens));
    out.warmup = out.trace.n_tokens / 8;
    out.popularity = popularity(out.trace);
    return out;
  }
  std::string why_not;
  std::error_code error;
  if (!warm_set.empty() && std::filesystem::exists(warm_set, error)) {
    if (const auto set = read_warm_set(warm_set, engine.fingerprint(), c.n_layer, c.n_expert)) {
      std::vector<double> chances(static_cast<size_t>(c.n_layer * c.n_expert));
      for (const WarmSet::Use& use : set->uses) chances[use.key] = use.weight;
      out.trace = make_trace(chances, c.n_layer, c.n_expert, c.top_k, kAssumedTokens);
      if (!out.trace.rows.empty()) {
        out.kind = "warm set";
        out.label = "experts used as often as " + printable(warm_set.filename().string()) + " says, tokens taken as independent";
        out.warmup = kAssumedWarmup;
        out.popularity = popularity(out.trace);
        return out;
      }
      why_not = "; the warm set names no expert";
    } else {
      why_not = "; warm set not used: " + printable(set.error().message);
    }
  }
  out.kind = "assumed";
  out.trace = assumed_trace(c);
  const SyntheticTrace report;
  out.label =
      text("ASSUMED: %.0f %% of the experts get %.0f %% of the uses, and topics stay", 100 * report.hot_experts, 100 * report.hot_uses) +
      why_not;
  out.hint = "to know better: run --trace-routing FILE, then plan --trace FILE";
  out.warmup = kAssumedWarmup;
  out.popularity = assumed_popularity(c.n_expert, c.top_k);
  return out;
}

Result<Predicted> predict(const Engine& engine, const Plan& plan, const ExpertUses* uses, const StorageSpeed& storage) {
  const Config& c = engine.model().config;
  const bool streamed = plan.expert_slots > 0 && uses != nullptr;
  const uint64_t bytes = engine.slot_bytes();
  const StreamCosts costs = stream_costs(plan, c.n_layer, c.top_k, bytes);
  Predicted out;
  std::vector<std::vector<double>> misses;
  if (streamed) {
    FTH_ASSIGN_OR_RETURN(const Policy policy, policy_from_name(engine.options().stream.policy));
    FTH_ASSIGN_OR_RETURN(Replay found, replay(uses->trace, policy, plan.expert_slots, uses->warmup));
    misses = std::move(found.miss_shares);
  }
  out.decode = predict_decode(costs, misses, storage);
  const int64_t prompt = std::min(kJobPrompt, engine.options().n_ctx);
  const std::span<const double> popularity = streamed ? std::span<const double>(uses->popularity) : std::span<const double>();
  const double seconds = predict_prompt_seconds(
      {prompt, plan.ubatch, plan.step_seconds, c.n_layer, plan.expert_slots, bytes, plan.overlap_seconds}, popularity, storage);
  out.prompt_tok_s = seconds > 0 ? static_cast<double>(prompt) / seconds : 0;
  return out;
}

boost::json::object prediction_json(const Predicted& p) {
  return {{"tok_s", p.decode.tokens_per_second()},
          {"hit_rate", p.decode.hit_rate},
          {"storage_bytes_per_token", p.decode.bytes},
          {"compute_seconds", p.decode.compute_s},
          {"io_seconds", p.decode.io_s},
          {"stall_seconds", p.decode.stall_s},
          {"bound_by", name(p.decode.bound)},
          {"bound_tok_s", p.decode.bound_seconds() > 0 ? 1 / p.decode.bound_seconds() : 0},
          {"prompt_tok_s", p.prompt_tok_s}};
}

}  // namespace fth::cli
