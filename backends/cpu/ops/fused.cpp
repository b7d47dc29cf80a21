// Steps of one token that share a parallel loop: attention, the rounding of what it gives, and the products of that. The last head to finish rounds; rows of
// the products wait for it. What a step reads is whole by then, so memory that the planner gives to both is safe, and so are the bits.

#include <variant>

#include "backends/cpu/ops/work.h"

namespace fth::cpu {
namespace {

Result<> run_attention_and_products(const AttentionStep& attention, const QuantizeStep* rounding, const MatmulStep& products,
                                    const Run& run) {
  FTH_ASSIGN_OR_RETURN(const AttentionWork heads, AttentionWork::make(attention, run));
  const MatmulWork rows(products, run);
  const int64_t first = heads.n_items();
  Result<> rounded;
  int32_t count = static_cast<int32_t>(first) + 1;  // items of attention, and the rounding
  const std::atomic_ref<int32_t> left(count);
  parallel(run.host, first + rows.n_items(), [&](uint32_t item) {
    if (item >= first) {
      wait_for_zero(left);
      return rows(item - first);
    }
    heads(item);
    if (left.fetch_sub(1, std::memory_order_acq_rel) != 2) return;
    if (rounding != nullptr) rounded = run_step(*rounding, run);  // of one token: no loop inside
    left.store(0, std::memory_order_release);
    left.notify_all();
  });
  return rounded;
}

}  // namespace

Result<> run_steps(const std::vector<Step>& steps, size_t* at, const Run& run) {
  const size_t first = *at;
  const auto* const attention = std::get_if<AttentionStep>(&steps[first]);
  if (attention != nullptr && run.n_tokens == 1 && first + 1 < steps.size()) {
    const auto* const rounding = std::get_if<QuantizeStep>(&steps[first + 1]);
    const size_t next = first + (rounding != nullptr ? 2 : 1);
    const auto* const products = next < steps.size() ? std::get_if<MatmulStep>(&steps[next]) : nullptr;
    if (products != nullptr && products->x == attention->y && (rounding == nullptr || rounding->x == attention->y)) {
      *at = next + 1;
      return run_attention_and_products(*attention, rounding, *products, run);
    }
  }
  *at = first + 1;
  return std::visit([&](const auto& step) { return run_step(step, run); }, steps[first]);
}

}  // namespace fth::cpu
