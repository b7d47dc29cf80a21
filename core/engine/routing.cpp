// The router's decision, on the host in f32 logits and double gates: quantising any of it would scramble the choice.
#include "core/engine/routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace fth {

Result<> choose_experts(const Config& config, std::span<const float> logits, int64_t n_tokens, Routing* out) {
  const auto n_expert = static_cast<size_t>(config.n_expert), k = static_cast<size_t>(config.top_k);
  const auto n = static_cast<size_t>(n_tokens);
  out->ids.resize(n * k);
  std::vector<int32_t> order(n_expert);
  for (size_t t = 0; t < n; ++t) {
    const float* z = logits.data() + t * n_expert;
    for (size_t e = 0; e < n_expert; ++e)
      if (std::isnan(z[e]))
        return fail(Code::data_loss,
                    "router logit of expert " + std::to_string(e) + " is not a number: the weights or a device are broken");
    std::iota(order.begin(), order.end(), 0);
    // On the logits, not on the sigmoids: saturated sigmoids tie in f32.
    std::partial_sort(order.begin(), order.begin() + static_cast<ptrdiff_t>(k), order.end(), [z](int32_t a, int32_t b) {
      const float za = z[a], zb = z[b];
      return za > zb || (za == zb && a < b);
    });
    std::copy_n(order.begin(), k, out->ids.begin() + static_cast<ptrdiff_t>(t * k));
  }
  return {};
}

Result<> weigh_and_group(const Config& config, std::span<const float> logits, int64_t n_tokens, Routing* out) {
  const auto n_expert = static_cast<size_t>(config.n_expert), k = static_cast<size_t>(config.top_k);
  const auto n = static_cast<size_t>(n_tokens);
  out->gates.resize(n * k);
  std::vector<double> score(k);
  std::vector<int32_t> count(n_expert, 0);
  for (size_t t = 0; t < n; ++t) {
    const float* z = logits.data() + t * n_expert;
    const int32_t* ids = out->ids.data() + t * k;
    double largest = -HUGE_VAL;
    for (size_t j = 0; j < k; ++j) {
      if (ids[j] < 0 || static_cast<size_t>(ids[j]) >= n_expert)
        return fail(Code::invalid_argument, "routing names expert " + std::to_string(ids[j]) + " of " + std::to_string(n_expert));
      largest = std::max(largest, static_cast<double>(z[ids[j]]));
      ++count[static_cast<size_t>(ids[j])];
    }
    double sum = 0;
    for (size_t j = 0; j < k; ++j) {
      const double zj = z[ids[j]];
      // Softmax over all, then divided by the sum of the chosen, is softmax over the chosen.
      score[j] = config.gating == Gating::sigmoid ? 1.0 / (1.0 + std::exp(-zj)) : std::exp(zj - largest);
      sum += score[j];
    }
    sum = std::max(sum, 0x1p-14);  // as the reference implementation clamps it
    for (size_t j = 0; j < k; ++j) out->gates[t * k + j] = static_cast<float>(score[j] / sum);
  }

  out->experts.clear();
  out->slot_begin.clear();
  std::vector<int32_t> next(n_expert, 0);
  int32_t begin = 0;
  for (size_t e = 0; e < n_expert; ++e) {
    next[e] = begin;
    if (count[e] == 0) continue;
    out->experts.push_back(static_cast<int32_t>(e));
    out->slot_begin.push_back(begin);
    begin += count[e];
  }
  out->slot_begin.push_back(begin);
  out->rows.resize(n * k);
  for (size_t r = 0; r < n * k; ++r) out->rows[static_cast<size_t>(next[static_cast<size_t>(out->ids[r])]++)] = static_cast<int32_t>(r);
  return {};
}

}  // namespace fth
