// Running one segment: its bindings, the copies that it needs, its time and bytes.
#include "core/engine/segment_runner.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/base/check.h"

namespace fth {

using Clock = std::chrono::steady_clock;

namespace {
constexpr double kWaited = 20e-6;  // a wait for what has ended takes less
double seconds_between(Clock::time_point begin, Clock::time_point end) { return std::chrono::duration<double>(end - begin).count(); }
}  // namespace

// Binds and submits.
Result<SegmentRunner::Run> SegmentRunner::begin_run(SegmentKind kind, int64_t layer, Variant variant) {
  const bool is_head = kind == SegmentKind::head;
  Run run;
  run.layer = layer;
  run.n = is_head ? n_rows_ : n_;
  FTH_ASSIGN_OR_RETURN(Compiled* const c, e_.get(kind, layer, bucket_for(run.n), variant == Variant::plain ? variant_ : variant));
  run.compiled = c;
  const size_t space = e_.space_of[c->device];
  m_.bindings.clear();
  for (size_t i = 0, bound = 0; i < c->segment.tensors.size(); ++i) {
    const uint16_t role = c->segment.tensors[i].role;
    if (role == FTH_ROLE_WEIGHT || role == FTH_ROLE_TEMP) continue;
    const Port port = c->segment.ports[bound++];
    if (role == FTH_ROLE_STATE) {
      LayerCache& cache = s_.caches[static_cast<size_t>(layer)];
      const bool stands_in = c->device == 0 && cache.cpu_k;
      const Buffer& k = stands_in ? cache.cpu_k : cache.k;
      const Buffer& v = stands_in ? cache.cpu_v : cache.v;
      m_.bindings.push_back(port == Port::k_cache ? k.whole() : v.whole());
    } else if (role == FTH_ROLE_SLOTS && kind == SegmentKind::attention) {
      bind_pages(port);
    } else if (role == FTH_ROLE_SLOTS) {
      FTH_RETURN_IF_ERROR(bind_experts(*c, port, layer));
    } else {
      if (role == FTH_ROLE_INPUT) FTH_RETURN_IF_ERROR(make_valid(port, space, c->device));
      const Area& a = area(port);
      const uint64_t skip = is_head && port == Port::x ? static_cast<uint64_t>(first_row_) * a.row_bytes : 0;
      m_.bindings.push_back(m_.act_buffers[c->device].at(a.offset + skip, a.bytes - skip));
    }
  }
  if (c->workspace_bytes > 0) m_.bindings.push_back(e_.workspaces[c->device].at(0, c->workspace_bytes));

  run.n_slots = kind == SegmentKind::experts ? static_cast<int64_t>(m_.bound.size()) : 0;
  if (kind == SegmentKind::attention && s_.caches[static_cast<size_t>(layer)].paged >= 0) run.n_slots = pages_in_use();
  const std::array<int64_t, FTH_SCALAR_COUNT> scalars = {run.n, pos_ + (is_head ? first_row_ : 0), run.n_slots};
  if (e_.recorder != nullptr) {
    e_.recorder->set_segment(name(kind).data(), layer, c->segment.n_tokens);
    run.cpu_ns = e_.recorder->cpu_now();
  }
  run.begin = Clock::now();
  auto event = e_.blame(c->device, c->executable.submit(m_.bindings, scalars));
  if (!event) return failed(*c, std::move(event).error());
  run.event = *event;
  return run;
}

tl::unexpected<Error> SegmentRunner::failed(const Compiled& c, Error e) const {
  return tl::unexpected<Error>(std::move(e).context(e_.device(c.device).name() + ": " + c.segment.name));
}

// Waits and books.
Result<> SegmentRunner::end_run(Run run) {
  const Compiled& c = *run.compiled;
  const Time waiting = Clock::now();
  const int64_t cpu_ns = run.left_running && e_.recorder != nullptr ? e_.recorder->cpu_now() : -1;
  if (auto done = e_.blame(c.device, c.executable.wait(run.event)); !done) return failed(c, std::move(done).error());
  run.end = Clock::now();
  if (run.left_running) {
    run.waited_s = seconds_between(waiting, run.end);
    run.seconds += run.waited_s;
    if (e_.recorder != nullptr) {
      if (run.cpu_ns >= 0) run.cpu_ns += e_.recorder->cpu_since(cpu_ns);
      note(EventKind::wait, "wait for the device", Recorder::ns(waiting), run.layer, c.device);
    }
  } else {
    run.seconds = seconds_between(run.begin, run.end);
    if (e_.recorder != nullptr) run.cpu_ns = e_.recorder->cpu_since(run.cpu_ns);
  }
  book(run);

  const size_t space = e_.space_of[c.device];
  for (size_t i = 0, bound = 0; i < c.segment.tensors.size(); ++i) {
    const uint16_t role = c.segment.tensors[i].role;
    if (role == FTH_ROLE_WEIGHT || role == FTH_ROLE_TEMP) continue;
    const Port port = c.segment.ports[bound++];
    if (role == FTH_ROLE_OUTPUT) area(port).valid = 1u << space;
  }
  return {};
}

Result<> SegmentRunner::submit(SegmentKind kind, int64_t layer, Variant variant) {
  FTH_ASSIGN_OR_RETURN(const Run run, begin_run(kind, layer, variant));
  return end_run(run);
}

Result<> SegmentRunner::start(SegmentKind kind, int64_t layer) {
  FTH_CHECK(started_.event == nullptr, "a step has one segment running at a time");
  FTH_ASSIGN_OR_RETURN(Run run, begin_run(kind, layer, Variant::plain));
  if (!e_.works_beside_cpu(run.compiled->device)) return end_run(run);
  run.left_running = true;
  run.seconds = seconds_between(run.begin, Clock::now());
  if (e_.recorder != nullptr) run.cpu_ns = e_.recorder->cpu_since(run.cpu_ns);
  started_ = run;
  return {};
}

Result<> SegmentRunner::finish() {
  if (started_.event == nullptr) return {};
  const Run run = std::exchange(started_, {});
  FTH_RETURN_IF_ERROR(end_run(run));
  FTH_RETURN_IF_ERROR(fetch_to_host(Port::y));
  return fetch_to_host(Port::h);
}

void SegmentRunner::abandon() {
  if (started_.event != nullptr) (void)started_.compiled->executable.wait(started_.event);
  started_ = {};
}

Result<> SegmentRunner::ready_cache(int64_t layer) {
  const int64_t paged = s_.caches[static_cast<size_t>(layer)].paged;
  if (!s_.pages) return {};
  s_.pages->poll();
  if (paged < 0) return {};
  FTH_RETURN_IF_ERROR(s_.pages->ready(paged, pos_, n_));
  // After the last such layer the first one's turn comes with the next token.
  const int64_t next = (paged + 1) % s_.pages->shape().n_layers;
  if (next != 0) {
    s_.pages->prefetch(next, pos_, n_);
  } else if (pos_ + n_ < e_.options.n_ctx) {
    s_.pages->prefetch(next, pos_ + n_, 1);
  }
  return {};
}

int64_t SegmentRunner::pages_in_use() const { return (pos_ + n_ - 1) / s_.pages->shape().page_cells + 1; }

void SegmentRunner::bind_pages(Port port) {
  const KvPagesShape& shape = s_.pages->shape();
  const uint64_t bytes = static_cast<uint64_t>(shape.page_cells) * shape.cell_bytes;
  for (int64_t page = 0; page < pages_in_use(); ++page)
    m_.bindings.push_back(s_.page_memory.at(s_.pages->place(page) + (port == Port::v_cache ? shape.half_page_bytes() : 0), bytes));
  m_.bindings.insert(m_.bindings.end(), static_cast<size_t>(shape.n_pages - pages_in_use()), fth_binding{});
}

Result<> SegmentRunner::bind_experts(const Compiled& c, Port port, int64_t layer) {
  const Layer& l = e_.model->layers[static_cast<size_t>(layer)];
  const Weight& w = port == Port::expert_gate ? l.gate : port == Port::expert_up ? l.up : l.down;
  FTH_ASSIGN_OR_RETURN(const Buffer* const buffer, e_.blame(c.device, e_.store ? e_.slots_on(c.device) : e_.weight(c.device, w)));
  for (const BoundExpert& b : m_.bound)
    m_.bindings.push_back(buffer->at(port == Port::expert_gate ? b.gate : port == Port::expert_up ? b.up : b.down, w.expert_bytes()));
  m_.bindings.insert(m_.bindings.end(), static_cast<size_t>(c.segment.n_slots) - m_.bound.size(), fth_binding{});
  return {};
}

void SegmentRunner::book(const Run& run) {
  const Compiled& c = *run.compiled;
  uint64_t bytes = c.weight_bytes;
  if (c.segment.kind == SegmentKind::embed) bytes = static_cast<uint64_t>(run.n) * row_bytes(e_.model->token_embd.dtype, config_.n_embd);
  if (c.segment.kind == SegmentKind::experts) bytes *= static_cast<uint64_t>(run.n_slots);
  if (c.segment.kind == SegmentKind::attention) {
    const int64_t window = e_.model->layers[static_cast<size_t>(run.layer)].window;
    const int64_t seen = window == 0 ? pos_ + run.n : std::min(pos_ + run.n, window + run.n - 1);
    bytes += static_cast<uint64_t>(2 * seen) * row_bytes(e_.shapes.kv_dtype, config_.n_head_kv * config_.head_dim);
  }
  SegmentTime& t = s_.times[{c.device, c.segment.kind}];
  ++t.count;
  t.seconds += run.seconds;
  t.bytes += bytes;
  bytes_ += bytes;
  if (e_.recorder != nullptr) record(run, bytes);
}

void SegmentRunner::record(const Run& run, uint64_t bytes) {
  const Compiled& c = *run.compiled;
  Recorder& r = *e_.recorder;
  Event event;
  event.kind = EventKind::segment;
  event.name = name(c.segment.kind).data();
  event.begin_ns = Recorder::ns(run.begin);
  event.end_ns = Recorder::ns(run.end);
  event.cpu_ns = run.cpu_ns;
  event.bytes = bytes;
  event.layer = static_cast<int32_t>(run.layer);
  event.rows = static_cast<int32_t>(run.n);
  event.bucket = static_cast<int16_t>(c.segment.n_tokens);
  event.device = static_cast<uint8_t>(c.device);
  // The table's end says how many rows of a token and expert this run had.
  const int64_t rows = c.segment.kind == SegmentKind::experts ? m_.host<int32_t>(Port::slot_begin)[m_.bound.size()] : run.n;
  event.flops = c.flops_per_row * static_cast<uint64_t>(rows);
  if (c.flops_per_cell > 0) {
    const int64_t window = e_.model->layers[static_cast<size_t>(run.layer)].window;
    for (int64_t i = 0; i < run.n; ++i)
      event.flops += c.flops_per_cell * static_cast<uint64_t>(std::min(pos_ + i + 1, window == 0 ? INT64_MAX : window));
  }
  if (!run.left_running) r.engine().add(event);
  if (c.device == 0) return;  // the host's CPU works on the engine's thread and the pool's, which have lanes
  event.kind = run.left_running ? EventKind::beside : EventKind::queue;
  if (run.left_running) {
    event.id = run.waited_s > kWaited ? 1 : 0;
  } else if (const double own = c.executable.device_seconds(); own >= 0) {
    // By its own clock the device worked the last part of the run: before that, the submission was on its way.
    event.begin_ns = std::max(event.begin_ns, event.end_ns - static_cast<int64_t>(own * 1e9));
    event.id = 0;
  }
  r.device(c.device).add(event);
}

void SegmentRunner::note(EventKind kind, const char* what, int64_t begin_ns, int64_t layer, size_t device, uint64_t bytes) {
  if (e_.recorder == nullptr) return;
  Event event;
  event.kind = kind;
  event.name = what;
  event.begin_ns = begin_ns;
  event.end_ns = Recorder::now();
  event.bytes = bytes;
  event.layer = static_cast<int32_t>(layer);
  event.rows = static_cast<int32_t>(n_);
  event.device = static_cast<uint8_t>(device);
  e_.recorder->engine().add(event);
}

uint64_t SegmentRunner::used_bytes(const Area& a) const {
  return std::min(a.bytes, a.row_bytes == 0 ? a.bytes : static_cast<uint64_t>(n_) * a.row_bytes);
}

Result<> SegmentRunner::fetch_to_host(Port p) {
  Area& a = area(p);
  if (a.valid & 1u) return {};
  FTH_CHECK(a.valid != 0, "an activation is read before it was written");
  const auto space = static_cast<size_t>(__builtin_ctz(a.valid));
  const uint64_t bytes = p == Port::logits || p == Port::norm ? a.bytes : used_bytes(a);
  const int64_t begin = clock();
  const size_t owner = e_.space_owner[space];
  FTH_RETURN_IF_ERROR(e_.blame(owner, m_.act_buffers[owner].read(a.offset, m_.activations.data() + a.offset, bytes)));
  s_.stats.copied_bytes += bytes;
  note(EventKind::copy, "copy to host", begin, -1, owner, bytes);
  a.valid |= 1u;
  return {};
}

Result<> SegmentRunner::make_valid(Port p, size_t space, size_t device) {
  Area& a = area(p);
  if (a.valid & (1u << space)) return {};
  FTH_RETURN_IF_ERROR(fetch_to_host(p));
  if (space == 0) return {};
  const uint64_t bytes = used_bytes(a);
  const int64_t begin = clock();
  FTH_RETURN_IF_ERROR(e_.blame(device, m_.act_buffers[device].write(a.offset, m_.activations.data() + a.offset, bytes)));
  s_.stats.copied_bytes += bytes;
  note(EventKind::copy, "copy to device", begin, -1, device, bytes);
  a.valid |= 1u << space;
  return {};
}

Result<> SegmentRunner::look(const char* what, Port p, int64_t cols, int64_t layer) {
  if (!s_.inspect) return {};
  FTH_RETURN_IF_ERROR(fetch_to_host(p));
  s_.inspect(layer < 0 ? std::string(what) : what + ("-" + std::to_string(layer)), pos_, n_, cols, m_.host<float>(p));
  return {};
}

// ffn_out is not a value of the pass (combine adds the experts to y directly): it is summed again here, as combine does.
Result<> SegmentRunner::look_at_experts_sum(int64_t layer) {
  if (!s_.inspect) return {};
  FTH_RETURN_IF_ERROR(fetch_to_host(Port::expert_out));
  const auto width = static_cast<size_t>(config_.n_embd), k = static_cast<size_t>(config_.top_k);
  std::vector<float> sum(static_cast<size_t>(n_) * width, 0.0f);
  const float* out = m_.host<float>(Port::expert_out);
  for (size_t r = 0; r < static_cast<size_t>(n_) * k; ++r)
    for (size_t i = 0; i < width; ++i) sum[r / k * width + i] += m_.routing.gates[r] * out[r * width + i];
  s_.inspect("ffn_out-" + std::to_string(layer), pos_, n_, config_.n_embd, sum.data());
  return {};
}

}  // namespace fth
