// The token loop: one step of the model over up to a ubatch of tokens, or two of a prompt that share the machine. Segments run where the plan put them
// (segment_runner.h).
#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <utility>

#include "core/engine/segment_runner.h"

namespace fth {
namespace {

class Step : public SegmentRunner {
 public:
  using SegmentRunner::SegmentRunner;

  Result<> run(Want want, const OnRows& on_rows) {
    FTH_RETURN_IF_ERROR(embed());
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
      FTH_RETURN_IF_ERROR(before_attention(layer));
      FTH_RETURN_IF_ERROR(submit(SegmentKind::attention, layer));
      FTH_RETURN_IF_ERROR(after_attention(layer));
    }
    return finish_step(want, on_rows);
  }

  // Two steps of a prompt, `a` of the tokens before `b`'s: what the host does of one runs while a device computes the other's attention. Cells that b attends
  // to are written by then, each step's values depend on nothing else of the other, and so the bits are those of a after b.
  static Result<> run_both(Step& a, Step& b, Want want) {
    FTH_RETURN_IF_ERROR(a.embed());
    FTH_RETURN_IF_ERROR(a.before_attention(0));
    FTH_RETURN_IF_ERROR(a.start(SegmentKind::attention, 0));
    FTH_RETURN_IF_ERROR(b.embed());
    for (int64_t layer = 0; layer < a.config_.n_layer; ++layer) {
      const bool more = layer + 1 < a.config_.n_layer;
      FTH_RETURN_IF_ERROR(b.before_attention(layer));
      FTH_RETURN_IF_ERROR(a.finish());
      FTH_RETURN_IF_ERROR(b.start(SegmentKind::attention, layer));
      FTH_RETURN_IF_ERROR(a.after_attention(layer));
      if (more) FTH_RETURN_IF_ERROR(a.before_attention(layer + 1));
      FTH_RETURN_IF_ERROR(b.finish());
      if (more) FTH_RETURN_IF_ERROR(a.start(SegmentKind::attention, layer + 1));
      FTH_RETURN_IF_ERROR(b.after_attention(layer));
    }
    return b.finish_step(want, {});
  }

 private:
  Result<> embed() {
    if (e_.embedding) {  // only these rows are read, in order
      FTH_RETURN_IF_ERROR(e_.read_embedding_rows(ids_));
      std::iota(m_.host<int32_t>(Port::ids), m_.host<int32_t>(Port::ids) + n_, 0);
    } else {
      std::memcpy(m_.host<int32_t>(Port::ids), ids_.data(), ids_.size_bytes());
    }
    written_by_host(Port::ids);
    FTH_RETURN_IF_ERROR(submit(SegmentKind::embed, -1));
    return look("embd", Port::x, config_.n_embd, -1);
  }

  Result<> before_attention(int64_t layer) {
    // Router first: the layer's experts are known before its attention starts (arXiv 2507.20984, section 3.2).
    if (config_.is_sparse()) FTH_RETURN_IF_ERROR(route(layer));
    if (e_.store && e_.options.stream.prefetch) FTH_RETURN_IF_ERROR(request_experts(layer));  // their reads run while attention computes
    return ready_cache(layer);
  }

  Result<> after_attention(int64_t layer) {
    FTH_RETURN_IF_ERROR(look("attn_norm", Port::norm, config_.n_embd, layer));
    if (config_.is_sparse()) {
      FTH_RETURN_IF_ERROR(look("ffn_inp", Port::y, config_.n_embd, layer));
      FTH_RETURN_IF_ERROR(look("ffn_norm", Port::h, config_.n_embd, layer));
      if (e_.store && !e_.options.stream.prefetch) FTH_RETURN_IF_ERROR(request_experts(layer));
      FTH_RETURN_IF_ERROR(e_.store ? run_streamed_experts(layer) : run_resident_experts(layer));
      FTH_RETURN_IF_ERROR(submit(SegmentKind::combine, layer));  // ranks in order: arrival never reaches a sum
      FTH_RETURN_IF_ERROR(look_at_experts_sum(layer));
    } else {
      std::swap(area(Port::x), area(Port::y));  // a dense layer's segment leaves the stream in y
    }
    return look("l_out", Port::x, config_.n_embd, layer);
  }

  Result<> finish_step(Want want, const OnRows& on_rows) {
    switch (want) {
      case Want::nothing: return {};
      case Want::last_logits:
        if (e_.screens(s_.wanted_logits) && !s_.inspect) return wanted_head(s_.wanted_logits);
        return head(n_ - 1, 1);
      case Want::all_logits:
        for (int64_t row = 0; row < n_; row += kHeadRows) {
          const int64_t rows = std::min(kHeadRows, n_ - row);
          FTH_RETURN_IF_ERROR(head(row, rows));
          FTH_RETURN_IF_ERROR(on_rows(pos_ + row, rows, m_.host<float>(Port::logits)));
        }
        return {};
    }
    return {};
  }

  Result<> route(int64_t layer) {
    FTH_RETURN_IF_ERROR(submit(SegmentKind::router, layer));
    FTH_RETURN_IF_ERROR(fetch_to_host(Port::router_logits));
    FTH_RETURN_IF_ERROR(look("ffn_moe_logits", Port::router_logits, config_.n_expert, layer));
    const int64_t begin = clock();
    const std::span<const float> logits(m_.host<float>(Port::router_logits), static_cast<size_t>(n_ * config_.n_expert));
    const auto where = [&](Error e) {
      return std::move(e).context("layer " + std::to_string(layer) + ", positions from " + std::to_string(pos_));
    };
    Routing& r = m_.routing;
    if (auto done = choose_experts(config_, logits, n_, &r); !done) return tl::unexpected<Error>(where(std::move(done).error()));
    if (s_.force_routing) s_.force_routing(layer, pos_, n_, r.ids.data());
    if (auto done = weigh_and_group(config_, logits, n_, &r); !done) return tl::unexpected<Error>(where(std::move(done).error()));
    if (s_.inspect) {
      const std::vector<float> ids(r.ids.begin(), r.ids.end());
      s_.inspect("ffn_moe_topk-" + std::to_string(layer), pos_, n_, config_.top_k, ids.data());
      s_.inspect("ffn_moe_weights_norm-" + std::to_string(layer), pos_, n_, config_.top_k, r.gates.data());
    }
    if (s_.on_routing) s_.on_routing(layer, pos_, n_, config_.top_k, r.ids.data());
    put(Port::gates, r.gates);
    note(EventKind::route, "choose experts", begin, layer);
    return {};
  }

  Result<> run_resident_experts(int64_t layer) {
    const Layer& l = e_.model->layers[static_cast<size_t>(layer)];
    const Routing& r = m_.routing;
    m_.bound.clear();
    for (size_t slot = 0; slot < r.experts.size(); ++slot) {
      const auto e = static_cast<uint64_t>(r.experts[slot]);
      m_.bound.push_back({slot, e * l.gate.stride, e * l.up.stride, e * l.down.stride});
    }
    put(Port::slot_begin, r.slot_begin);
    put(Port::rows, r.rows);
    return submit(SegmentKind::experts, layer);
  }

  // More experts than slots (a batch under a small budget): in groups, one computing while the next is read, each read once.
  Result<> request_experts(int64_t layer) {
    const int64_t begin = clock();
    const auto n_slots = static_cast<size_t>(e_.store->n_slots() - e_.store->n_pinned());
    m_.order = m_.routing.experts;
    std::stable_partition(m_.order.begin(), m_.order.end(), [&](int32_t e) { return e_.store->is_resident(layer, e); });
    group_ = m_.order.size() <= n_slots ? m_.order.size() : std::max<size_t>(n_slots / 2, 1);
    requested_ = 0;
    FTH_RETURN_IF_ERROR(request_group(layer));
    note(EventKind::request, "request experts", begin, layer);
    if (layer + 1 == config_.n_layer) return {};
    if (n_ == 1 && e_.guess_trial.on(e_.options.stream.guess) && !s_.inspect) return guess(layer + 1);
    // Tokens enough for every expert to be somebody's: the next layer's are read in order while this one computes.
    if (n_ * config_.top_k >= 4 * config_.n_expert && e_.options.stream.guess != Guess::off) {
      m_.guessed.ids.resize(static_cast<size_t>(config_.n_expert));
      std::iota(m_.guessed.ids.begin(), m_.guessed.ids.end(), 0);
      e_.store->guess(layer + 1, m_.guessed.ids, true);
    }
    return {};
  }

  Result<> request_group(int64_t layer) {
    const auto group = std::span<const int32_t>(m_.order).subspan(requested_, std::min(group_, m_.order.size() - requested_));
    if (group.empty()) return {};
    FTH_ASSIGN_OR_RETURN(next_lease_, e_.store->request(layer, group));
    requested_ += group.size();
    return {};
  }

  // What the next layer's router says of this layer's input: often right, and early.
  Result<> guess(int64_t layer) {
    FTH_RETURN_IF_ERROR(submit(SegmentKind::router, layer));
    FTH_RETURN_IF_ERROR(fetch_to_host(Port::router_logits));
    const std::span<const float> logits(m_.host<float>(Port::router_logits), static_cast<size_t>(n_ * config_.n_expert));
    FTH_RETURN_IF_ERROR(choose_experts(config_, logits, n_, &m_.guessed));
    e_.store->guess(layer, m_.guessed.ids);
    return {};
  }

  // Experts that are in memory; with `gates_done` only those whose gates have been computed, or those whose have not.
  Result<> run_places(int64_t layer, std::span<const ExpertPlace> places, Variant variant, std::optional<bool> gates_done = {}) {
    const Routing& r = m_.routing;
    m_.bound.clear(), m_.begin.clear(), m_.rows.clear();
    for (const ExpertPlace& place : places) {
      const bool done = std::find(m_.gates_done.begin(), m_.gates_done.end(), place.expert) != m_.gates_done.end();
      if (gates_done && *gates_done != done) continue;
      const auto slot = static_cast<size_t>(std::lower_bound(r.experts.begin(), r.experts.end(), place.expert) - r.experts.begin());
      m_.bound.push_back({slot, place.gate, place.up, place.down});
      m_.begin.push_back(static_cast<int32_t>(m_.rows.size()));
      m_.rows.insert(m_.rows.end(), r.rows.begin() + r.slot_begin[slot], r.rows.begin() + r.slot_begin[slot + 1]);
    }
    if (m_.bound.empty()) return {};
    m_.begin.push_back(static_cast<int32_t>(m_.rows.size()));
    put(Port::slot_begin, m_.begin);
    put(Port::rows, m_.rows);
    return submit(SegmentKind::experts, layer, variant);
  }

  Result<> run_streamed_experts(int64_t layer) {
    for (bool more = true; more;) {
      ExpertStore::Lease lease = std::move(next_lease_);
      more = requested_ < m_.order.size();
      const bool two_fit = 2 * group_ <= static_cast<size_t>(e_.store->n_slots() - e_.store->n_pinned());
      if (more && two_fit) FTH_RETURN_IF_ERROR(request_group(layer));
      m_.gates_done.clear();
      for (;;) {
        // A token waits for its experts: a gate that is there computes while its up and down are on their way.
        FTH_ASSIGN_OR_RETURN(const std::span<const ExpertPlace> places, lease.next(n_ == 1 && e_.options.stream.early_gates));
        if (places.empty()) break;
        if (!places.front().whole) {
          FTH_RETURN_IF_ERROR(run_places(layer, places, Variant::gates));
          for (const ExpertPlace& place : places) m_.gates_done.push_back(place.expert);
        } else if (m_.gates_done.empty()) {
          FTH_RETURN_IF_ERROR(run_places(layer, places, Variant::plain));
        } else {
          FTH_RETURN_IF_ERROR(run_places(layer, places, Variant::plain, false));
          FTH_RETURN_IF_ERROR(run_places(layer, places, Variant::after_gates, true));
        }
      }
      lease = {};
      if (more && !two_fit) FTH_RETURN_IF_ERROR(request_group(layer));
    }
    return {};
  }

  Result<> head(int64_t first_row, int64_t rows) {
    first_row_ = first_row;
    n_rows_ = rows;
    FTH_RETURN_IF_ERROR(submit(SegmentKind::head, -1));
    FTH_RETURN_IF_ERROR(fetch_to_host(Port::logits));
    if (s_.inspect) {
      FTH_RETURN_IF_ERROR(fetch_to_host(Port::norm));
      s_.inspect("result_norm", pos_ + first_row, rows, config_.n_embd, m_.host<float>(Port::norm));
    }
    return {};
  }

  // Streamed experts: the lease that was requested last, how many of order[] are requested, and how many at once.
  ExpertStore::Lease next_lease_;
  size_t requested_ = 0, group_ = 0;
};

}  // namespace

Result<uint64_t> step(Session::Impl& session, std::span<const int32_t> ids, int64_t pos, Want want, const OnRows& on_rows) {
  session.engine->move_over();
  const auto ubatch = static_cast<size_t>(session.engine->options.ubatch);
  const auto run = [&]() -> Result<uint64_t> {
    if (ids.size() <= ubatch) {
      Step one(session, session.memory, ids, pos);
      FTH_RETURN_IF_ERROR(one.run(want, on_rows));
      return one.bytes();
    }
    Step first(session, session.overlaps() ? session.earlier : session.memory, ids.first(ubatch), pos);
    Step second(session, session.memory, ids.subspan(ubatch), pos + static_cast<int64_t>(ubatch));
    if (session.overlaps()) {
      FTH_RETURN_IF_ERROR(Step::run_both(first, second, want));
    } else {  // a device was lost meanwhile
      FTH_RETURN_IF_ERROR(first.run(Want::nothing, {}));
      FTH_RETURN_IF_ERROR(second.run(want, on_rows));
    }
    return first.bytes() + second.bytes();
  };
  Recorder* const recorder = session.engine->recorder;
  if (recorder == nullptr) return run();
  recorder->sample_counters();
  Event event;
  const int64_t cpu_ns = recorder->cpu_now();
  event.begin_ns = Recorder::now();
  auto done = run();
  event.end_ns = Recorder::now();
  event.cpu_ns = recorder->cpu_since(cpu_ns);
  event.name = ids.size() == 1 ? "token" : "prompt";
  event.bytes = done.value_or(0);
  event.id = static_cast<int32_t>(pos);
  event.rows = static_cast<int32_t>(ids.size());
  recorder->engine().add(event);
  recorder->sample_counters();
  return done;
}

}  // namespace fth
