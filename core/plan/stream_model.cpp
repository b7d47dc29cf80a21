// Sums over layers and numbers of misses.
#include "core/plan/stream_model.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fth {
namespace {

double read_seconds(double bytes, const StorageSpeed& storage) {
  if (bytes <= 0) return 0;
  if (storage.bytes_per_second <= 0) return std::numeric_limits<double>::infinity();
  return storage.wait_seconds + bytes / storage.bytes_per_second;
}

}  // namespace

StreamCosts stream_costs(const Plan& plan, int64_t n_layer, int64_t top_k, uint64_t expert_bytes) {
  StreamCosts out;
  out.layers.resize(static_cast<size_t>(n_layer));
  out.top_k = top_k;
  out.expert_bytes = expert_bytes;
  out.other_s = plan.seconds_per_token;
  for (const Placement& p : plan.placements) {
    if (p.layer < 0 || p.layer >= n_layer || (p.kind != SegmentKind::attention && p.kind != SegmentKind::experts)) continue;
    StreamCosts::Layer& layer = out.layers[static_cast<size_t>(p.layer)];
    (p.kind == SegmentKind::attention ? layer.attention_s : layer.experts_s) += p.seconds;
    out.other_s -= p.seconds;
  }
  out.other_s = std::max(out.other_s, 0.0);
  return out;
}

StreamPrediction predict_decode(const StreamCosts& costs, std::span<const std::vector<double>> miss_shares, const StorageSpeed& storage) {
  StreamPrediction out;
  out.compute_s = costs.other_s;
  double asked = 0, missed = 0;
  for (size_t l = 0; l < costs.layers.size(); ++l) {
    const StreamCosts::Layer& layer = costs.layers[l];
    const double all = layer.attention_s + layer.experts_s, each = layer.experts_s / static_cast<double>(std::max<int64_t>(costs.top_k, 1));
    out.compute_s += all;
    if (l >= miss_shares.size() || miss_shares[l].empty()) continue;
    asked += static_cast<double>(costs.top_k);
    for (size_t m = 1; m < miss_shares[l].size(); ++m) {
      const double share = miss_shares[l][m], misses = static_cast<double>(m);
      if (share <= 0) continue;
      const double bytes = misses * static_cast<double>(costs.expert_bytes), reading = read_seconds(bytes, storage);
      missed += share * misses;
      out.bytes += share * bytes;
      out.io_s += share * reading;
      out.stall_s += share * (std::max(all, reading + each) - all);
    }
  }
  out.hit_rate = asked > 0 ? 1 - missed / asked : 1;
  out.bound = out.io_s > out.compute_s ? Bound::storage : Bound::compute;
  return out;
}

std::vector<std::vector<double>> independent_misses(int64_t n_layer, int64_t top_k, double hit_rate) {
  std::vector<double> shares(static_cast<size_t>(top_k) + 1);
  const double miss = 1 - std::clamp(hit_rate, 0.0, 1.0);
  double choose = 1;
  for (int64_t m = 0; m <= top_k; ++m) {
    shares[static_cast<size_t>(m)] = choose * std::pow(miss, static_cast<double>(m)) * std::pow(1 - miss, static_cast<double>(top_k - m));
    choose = choose * static_cast<double>(top_k - m) / static_cast<double>(m + 1);
  }
  return std::vector<std::vector<double>>(static_cast<size_t>(n_layer), shares);
}

double distinct_experts(std::span<const double> popularity, int64_t n_tokens) {
  double sum = 0;
  for (const double p : popularity) sum += 1 - std::pow(1 - std::clamp(p, 0.0, 1.0), static_cast<double>(n_tokens));
  return sum;
}

double predict_prompt_seconds(const PromptCosts& c, std::span<const double> popularity, const StorageSpeed& storage) {
  const double steps = std::ceil(static_cast<double>(c.tokens) / static_cast<double>(std::max<int64_t>(c.ubatch, 1)));
  const double both = c.overlap_s > 0 ? 2 * std::floor(steps / 2) : 0;  // steps that have one beside them
  const double step_s = steps > 0 ? (both * c.overlap_s + (steps - both) * c.step_s) / steps : 0;
  if (c.slots == 0) return steps * step_s;
  const auto layers = static_cast<double>(c.n_layer);
  const double used = layers * distinct_experts(popularity, std::min(c.ubatch, c.tokens));
  const double again = std::max(0.0, used - static_cast<double>(c.slots));
  const auto step = [&](double experts) {
    const double bytes = experts * static_cast<double>(c.expert_bytes);
    return std::max(step_s, bytes > 0 ? read_seconds(bytes, storage) + (layers - 1) * storage.wait_seconds : 0);
  };
  return step(used) + (steps - 1) * step(again);
}

size_t choose_ubatch(std::span<const UbatchChoice> choices) {
  size_t best = choices.size();
  const auto seconds = [&](size_t i) { return choices[i].prompt_s + choices[i].decode_s; };
  for (size_t i = 0; i < choices.size(); ++i)
    if (choices[i].fits && (best == choices.size() || seconds(i) < kWorthSmaller * seconds(best))) best = i;
  return best;
}

}  // namespace fth
