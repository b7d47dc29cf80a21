// Two steps of a prompt at once: while a device beside the CPU computes the attention of one, the CPU runs the experts of the other (Step::run_both). It takes a
// second set of activations, which the plan has room for or says that it has not.
#include <algorithm>
#include <cmath>
#include <string>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"
#include "core/plan/stream_model.h"

namespace fth {

bool Engine::Impl::works_beside_cpu(size_t d) {
  const fth_device_info& info = device(d).info();
  return d != 0 &&
         (info.kind != FTH_KIND_CPU || (info.flags & FTH_DEVICE_SOFTWARE) != 0);  // software: behind a driver with threads of its own
}

bool Engine::Impl::may_overlap() {
  // Pages of a KV cache are brought for one step at a time.
  if (!options.overlap || options.cpu_only || !model->config.is_sparse() || kv_pages.n_layers > 0 || options.n_ctx <= options.ubatch)
    return false;
  for (size_t d = 1; d < registry->devices().size(); ++d)
    if (works_beside_cpu(d)) return true;
  return false;
}

bool Engine::Impl::overlap_pays() const {
  return std::any_of(plan.placements.begin(), plan.placements.end(),
                     [&](const Placement& p) { return p.kind == SegmentKind::attention && plan.devices[p.device].beside_cpu; });
}

// One step's attention hides behind what the host does of the other's same layer: the slower of the two is what a layer takes.
void Engine::Impl::set_hidden_seconds(std::vector<PlanSegment>* segments) const {
  for (PlanSegment& s : *segments) {
    if (s.kind != SegmentKind::attention) continue;
    for (const PlanSegment& other : *segments)
      if (other.layer == s.layer && other.host_only) s.hides_seconds += other.cost[0].step_seconds;
  }
}

void Engine::Impl::weigh_prompts(PlanOptions* p) const {
  const double steps = std::ceil(static_cast<double>(std::min(kJobPrompt, options.n_ctx)) / static_cast<double>(options.ubatch));
  p->steps_per_token = steps / static_cast<double>(kJobDecode);
  p->share_of_pairs = 2 * std::floor(steps / 2) / steps;
}

bool Engine::Impl::smaller_steps_may_pay() const {
  return options.overlap && model->config.is_sparse() && kv_pages.n_layers == 0 && !streamed() && overlap_pays();
}

void Engine::Impl::say_overlap() {
  if (plan.overlap || !overlap_pays() || !options.overlap || !model->config.is_sparse() || options.n_ctx <= options.ubatch) return;
  std::string why;
  if (kv_pages.n_layers > 0) {
    why = "the KV cache is in pages, which are brought for one step at a time";
  } else if (streamed() && plan.expert_slots < two_layers_of_experts()) {
    why = std::to_string(plan.expert_slots) + " expert slots do not hold two layers' experts (" + std::to_string(two_layers_of_experts()) +
          ")";
  } else {
    why = "a second set of activations (" + format_bytes(activation_bytes(*this).earlier) + ") does not fit";
  }
  plan.notes.push_back("prompts: attention and experts take turns, " + why +
                       "; a larger --ram or a smaller --ubatch lets them run at once");
}

bool Session::Impl::overlaps() const {
  const Engine::Impl& e = *engine;
  if (!e.plan.overlap || earlier.activations.bytes() == 0 || inspect || pages || generation != e.generation) return false;
  if (e.store && e.store->n_slots() - e.store->n_pinned() < e.two_layers_of_experts()) return false;
  return e.overlap_pays();
}

}  // namespace fth
