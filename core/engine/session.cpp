// A conversation: KV cache, activations, and the rules of context and reuse. The work itself is step.cpp's.
#include "core/engine/session.h"

#include <algorithm>
#include <chrono>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"

namespace fth {
namespace {

using Clock = std::chrono::steady_clock;

// Adds what the store did during this object's life to `to`.
class Booked {
 public:
  Booked(const Engine::Impl& engine, IoStats& to) : engine_(engine), to_(to), n_plans_(engine.n_plans) {
    if (engine_.store) before_ = engine_.store->stats();
  }
  Booked(const Booked&) = delete;
  Booked& operator=(const Booked&) = delete;
  ~Booked() {
    if (!engine_.store) return;
    if (engine_.n_plans != n_plans_) before_ = {};  // another store, and what the one before did went with it
    const ExpertStats now = engine_.store->stats();
    to_ += {.requested = now.requested - before_.requested,
            .hits = now.hits - before_.hits,
            .late = now.late - before_.late,
            .misses = now.misses - before_.misses,
            .tier = now.tier - before_.tier,
            .early = now.early - before_.early,
            .guesses = now.guesses - before_.guesses,
            .wrong_guesses = now.wrong_guesses - before_.wrong_guesses,
            .bytes_read = now.bytes_read - before_.bytes_read,
            .stall_seconds = now.stall_s - before_.stall_s,
            .io_seconds = now.io_s - before_.io_s};
  }

 private:
  const Engine::Impl& engine_;
  IoStats& to_;
  uint64_t n_plans_;
  ExpertStats before_;
};
double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

// Rows and bytes of every activation, for steps of up to `bucket` tokens. Returns the block's size.
uint64_t lay_out(const Config& c, int64_t bucket, bool with_logits, std::array<Area, kPorts>* areas) {
  const int64_t slots = std::max<int64_t>(c.n_expert, 1);
  const auto f32 = [](int64_t width) { return static_cast<uint64_t>(width) * sizeof(float); };
  uint64_t end = 0;
  const auto put = [&](Port p, int64_t rows, uint64_t row_bytes) {
    Area& a = (*areas)[static_cast<size_t>(p)];
    a = {end, row_bytes, static_cast<uint64_t>(rows) * row_bytes, 0};
    end = align_up(end + a.bytes, 4096);
  };
  // The head reads up to kHeadRows rows from any row of x (or y, which a dense layer swaps with it): slack for the last block.
  const int64_t stream_rows = bucket + kHeadRows;
  put(Port::ids, bucket, sizeof(int32_t));
  put(Port::x, stream_rows, f32(c.n_embd));
  put(Port::y, stream_rows, f32(c.n_embd));
  put(Port::h, bucket, f32(c.n_embd));
  put(Port::norm, std::max(bucket, kHeadRows), f32(c.n_embd));
  if (c.is_sparse()) {
    put(Port::router_logits, bucket, f32(c.n_expert));
    put(Port::slot_begin, slots + 1, sizeof(int32_t));
    (*areas)[static_cast<size_t>(Port::slot_begin)].row_bytes = 0;  // copied whole
    put(Port::rows, bucket, sizeof(int32_t) * static_cast<uint64_t>(c.top_k));
    put(Port::gates, bucket, f32(c.top_k));
    put(Port::expert_out, bucket, f32(c.top_k * c.n_embd));
    put(Port::gate_values, 1, f32(c.top_k * c.n_ff));  // only single tokens' experts come in two
  }
  if (with_logits) put(Port::logits, kHeadRows, f32(c.n_vocab));
  return end;
}

}  // namespace

ActivationBytes activation_bytes(const Engine::Impl& engine) {
  std::array<Area, kPorts> areas;
  const Config& c = engine.model->config;
  ActivationBytes out;
  out.earlier = lay_out(c, engine.shapes.max_bucket, false, &areas);
  out.all = lay_out(c, engine.shapes.max_bucket, true, &areas);
  // Pages of logits beyond the first row are touched only when all positions are asked for.
  out.touched = out.all - areas[static_cast<size_t>(Port::logits)].row_bytes * static_cast<uint64_t>(kHeadRows - 1);
  return out;
}

Result<std::unique_ptr<Session::Impl>> Session::Impl::make(Engine::Impl& engine) {
  auto s = std::make_unique<Impl>();
  s->engine = &engine;
  s->generation = engine.generation;
  FTH_RETURN_IF_ERROR(s->lay_down());
  return s;
}

Result<> Session::Impl::lay_down() {
  n_plans = engine->n_plans;
  caches.clear();
  page_memory = {};
  pages.reset();
  const auto allocate = [&](bool with_logits, StepMemory* m) -> Result<> {
    m->act_buffers.clear();
    m->activations = {};
    const uint64_t bytes = lay_out(engine->model->config, engine->shapes.max_bucket, with_logits, &m->areas);
    FTH_ASSIGN_OR_RETURN(m->activations, HostBlock::allocate(bytes, "activations"));
    return {};
  };
  FTH_RETURN_IF_ERROR(allocate(true, &memory));
  earlier.act_buffers.clear();
  earlier.activations = {};
  if (engine->plan.overlap) FTH_RETURN_IF_ERROR(allocate(false, &earlier));
  if (engine->kv_pages.n_layers > 0) {
    FTH_ASSIGN_OR_RETURN(pages, KvPages::open(engine->kv_pages, engine->options.kv.directory, engine->options.stream.reader));
    const std::span<std::byte> in_ram = pages->memory();
    FTH_ASSIGN_OR_RETURN(page_memory, engine->device(0).import_host(in_ram.data(), in_ram.size()));
  }
  kv_before = {};
  return make_memory();
}

Result<> Session::Impl::make_memory() {
  Engine::Impl& e = *engine;
  const Config& c = e.model->config;
  const auto devices = e.background.lock();
  for (StepMemory* const m : {&memory, &earlier}) {
    if (m->activations.bytes() == 0) continue;
    m->act_buffers.resize(e.registry->devices().size());
    for (size_t d = 0; d < m->act_buffers.size(); ++d) {
      Buffer& buffer = m->act_buffers[d];
      const bool used = std::any_of(e.plan.placements.begin(), e.plan.placements.end(), [d](const Placement& p) { return p.device == d; });
      if (e.registry->devices()[d].check.wrong || !(used || e.device(d).reads_host_memory())) {
        buffer = {};
      } else if (!buffer) {
        const bool imports = e.device(d).reads_host_memory();
        FTH_ASSIGN_OR_RETURN(buffer, e.blame(d, imports ? e.device(d).import_host(m->activations.data(), m->activations.bytes())
                                                        : e.device(d).alloc(m->activations.bytes())));
      }
    }
  }
  int64_t n_paged = 0;
  caches.resize(static_cast<size_t>(c.n_layer));
  for (int64_t layer = 0; layer < c.n_layer; ++layer) {
    LayerCache& cache = caches[static_cast<size_t>(layer)];
    if (kv_in_pages(e.model->layers[static_cast<size_t>(layer)], e.shapes)) {
      cache.paged = n_paged++;
      cache.cells = e.kv_pages.n_pages * e.kv_pages.page_cells;
      continue;
    }
    const size_t d = e.device_for(SegmentKind::attention, layer);
    if (cache.k && cache.v && cache.device == d) continue;
    cache = {};
    cache.device = d;
    cache.cells = kv_cells(e.model->layers[static_cast<size_t>(layer)], e.shapes);
    const uint64_t bytes = static_cast<uint64_t>(cache.cells) * row_bytes(e.shapes.kv_dtype, c.n_head_kv * c.head_dim);
    Device& device = e.device(d);
    if (device.reads_host_memory()) {
      FTH_ASSIGN_OR_RETURN(cache.block, HostBlock::allocate(2 * align_up(bytes, 4096), "KV cache"));
      // A first token touches the beginning of every layer's two caches: 32 layers in huge pages would be 128 MiB to clear.
      for (const uint64_t at : {uint64_t{0}, align_up(bytes, 4096)}) cache.block.begin_small(at);
      FTH_ASSIGN_OR_RETURN(cache.k, e.blame(d, device.import_host(cache.block.data(), bytes)));
      FTH_ASSIGN_OR_RETURN(cache.v, e.blame(d, device.import_host(cache.block.data() + align_up(bytes, 4096), bytes)));
      if (e.starts_on_cpu(d)) {
        FTH_ASSIGN_OR_RETURN(cache.cpu_k, e.device(0).import_host(cache.block.data(), bytes));
        FTH_ASSIGN_OR_RETURN(cache.cpu_v, e.device(0).import_host(cache.block.data() + align_up(bytes, 4096), bytes));
      }
    } else {
      FTH_ASSIGN_OR_RETURN(cache.k, e.blame(d, device.alloc(bytes)));
      FTH_ASSIGN_OR_RETURN(cache.v, e.blame(d, device.alloc(bytes)));
    }
  }
  return {};
}

IoStats& IoStats::operator+=(const IoStats& o) {
  requested += o.requested, hits += o.hits, late += o.late, misses += o.misses, early += o.early, tier += o.tier;
  guesses += o.guesses, wrong_guesses += o.wrong_guesses;
  bytes_read += o.bytes_read;
  stall_seconds += o.stall_seconds, io_seconds += o.io_seconds;
  return *this;
}

Session::Session(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() {
  if (!impl_) return;
  const auto devices = impl_->engine->background.lock();  // whose memory it gives back
  impl_.reset();
}

int64_t Session::n_past() const { return static_cast<int64_t>(impl_->tokens.size()); }
int64_t Session::n_ctx() const { return impl_->engine->options.n_ctx; }
std::span<const int32_t> Session::tokens() const { return impl_->tokens; }

namespace {

Result<> check_ids(const Session& session, const Config& c, std::span<const int32_t> ids) {
  if (ids.empty()) return fail(Code::invalid_argument, "no tokens to process");
  for (const int32_t id : ids)
    if (id < 0 || id >= c.n_vocab)
      return fail(Code::invalid_argument, "token " + std::to_string(id) + " is outside the vocabulary of " + std::to_string(c.n_vocab));
  const int64_t n = static_cast<int64_t>(ids.size());
  if (session.n_past() + n > session.n_ctx())
    return fail(Code::out_of_range, std::to_string(session.n_past()) + " + " + std::to_string(n) + " tokens do not fit the context of " +
                                        std::to_string(session.n_ctx()) + "; raise --ctx (the model allows " + std::to_string(c.n_ctx) +
                                        ") or shorten the prompt");
  return {};
}

}  // namespace

Result<std::span<const float>> Session::prefill(std::span<const int32_t> ids, const std::function<bool(int64_t, int64_t)>& on_progress) {
  Impl& s = *impl_;
  const Config& c = s.engine->model->config;
  FTH_RETURN_IF_ERROR(check_ids(*this, c, ids));
  s.head_again_ok = false;
  const Booked booked(*s.engine, s.stats.prompt_io);
  const auto begin = Clock::now();
  const auto total = static_cast<int64_t>(ids.size());
  for (int64_t done = 0; done < total;) {
    const int64_t n = std::min((s.overlaps() ? 2 : 1) * s.engine->options.ubatch, total - done);
    const auto part = ids.subspan(static_cast<size_t>(done), static_cast<size_t>(n));
    FTH_RETURN_IF_ERROR(s.run_step(part, done + n == total ? Want::last_logits : Want::nothing, {}));
    s.tokens.insert(s.tokens.end(), part.begin(), part.end());
    done += n;
    s.stats.prompt_tokens += n;
    if (on_progress && !on_progress(done, total) && done < total) {
      s.stats.prompt_seconds += seconds_since(begin);
      return fail(Code::cancelled, "stopped after " + std::to_string(done) + " of " + std::to_string(total) + " prompt tokens");
    }
  }
  s.stats.prompt_seconds += seconds_since(begin);
  return std::span<const float>(s.memory.host<float>(Port::logits), static_cast<size_t>(c.n_vocab));
}

Result<std::span<const float>> Session::decode(int32_t id) {
  Impl& s = *impl_;
  const Config& c = s.engine->model->config;
  FTH_RETURN_IF_ERROR(check_ids(*this, c, {&id, 1}));
  TokenStats token;
  uint64_t bytes = 0;
  {
    const Booked booked(*s.engine, token.io);
    const auto begin = Clock::now();
    FTH_ASSIGN_OR_RETURN(bytes, s.run_step({&id, 1}, Want::last_logits, {}));
    token.seconds = seconds_since(begin);
  }
  s.tokens.push_back(id);
  s.head_again_ok = true;
  const double seconds = token.seconds;
  s.engine->guess_trial.decoded(seconds);
  s.stats.tokens.push_back(token);
  s.stats.decode_io += token.io;
  s.stats.decode_seconds += seconds;
  s.stats.decode_tokens += 1;
  s.stats.decode_bytes += bytes;
  return std::span<const float>(s.memory.host<float>(Port::logits), static_cast<size_t>(c.n_vocab));
}

void Session::set_wanted_logits(int64_t k) { impl_->wanted_logits = k; }

Result<std::span<const float>> Session::head_again(int64_t k) {
  Impl& s = *impl_;
  if (!s.head_again_ok) return fail(Code::failed_precondition, "head_again: the last step was no decode");
  const Stats stats = s.stats;
  const auto times = s.times;
  const Result<> done = run_head_again(s, k);
  s.stats = stats;
  s.times = times;
  FTH_RETURN_IF_ERROR(done);
  return std::span<const float>(s.memory.host<float>(Port::logits), static_cast<size_t>(s.engine->model->config.n_vocab));
}

Result<> Session::compare_heads(std::span<const int32_t> ids, int64_t k, HeadAgreement* sum, const std::function<bool()>& go_on) {
  Impl& s = *impl_;
  if (!s.engine->screens(k))
    return fail(Code::failed_precondition, "there is no screened head for " + std::to_string(k) + " logits" +
                                               (s.engine->screen.why_not.empty() ? std::string() : ": " + s.engine->screen.why_not));
  const Stats stats = s.stats;
  const auto times = s.times;
  const auto on_rows = [&](int64_t first_pos, int64_t rows, const float* exact) -> Result<> {
    if (go_on && !go_on()) return fail(Code::cancelled, "interrupted");
    const auto pos = static_cast<int64_t>(s.tokens.size());
    const std::span<const int32_t> part = ids.subspan(static_cast<size_t>(s.stats.prompt_tokens - stats.prompt_tokens));
    const size_t n = std::min(static_cast<size_t>(s.engine->options.ubatch), part.size());
    return compare_head_rows(s, part.subspan(0, n), pos, first_pos - pos, rows, exact, k, sum);
  };
  const Result<> done = prefill_all(ids, on_rows);
  s.stats = stats;
  s.times = times;
  return done;
}

Result<> Session::prefill_all(std::span<const int32_t> ids, const OnRows& on_rows) {
  Impl& s = *impl_;
  FTH_RETURN_IF_ERROR(check_ids(*this, s.engine->model->config, ids));
  s.head_again_ok = false;
  const Booked booked(*s.engine, s.stats.prompt_io);
  const auto begin = Clock::now();
  for (size_t done = 0; done < ids.size();) {
    const size_t n = std::min(static_cast<size_t>(s.engine->options.ubatch), ids.size() - done);
    const auto part = ids.subspan(done, n);
    FTH_RETURN_IF_ERROR(s.run_step(part, Want::all_logits, on_rows));
    s.tokens.insert(s.tokens.end(), part.begin(), part.end());
    done += n;
    s.stats.prompt_tokens += static_cast<int64_t>(n);
  }
  s.stats.prompt_seconds += seconds_since(begin);
  return {};
}

int64_t Session::reuse(std::span<const int32_t> ids) {
  Impl& s = *impl_;
  if (ids.empty()) {
    clear();
    return 0;
  }
  const size_t limit = std::min(s.tokens.size(), ids.size() - 1);
  size_t keep = 0;
  while (keep < limit && s.tokens[keep] == ids[keep]) ++keep;
  // A ring holds the last `cells` positions. Going back to `keep` needs the window before it to be among them.
  const int64_t past = n_past();
  for (size_t i = 0; i < s.caches.size(); ++i) {
    const int64_t window = s.engine->model->layers[i].window, cells = s.caches[i].cells;
    const int64_t oldest_needed = window == 0 ? 0 : std::max<int64_t>(0, static_cast<int64_t>(keep) - window + 1);
    if (oldest_needed < past - cells) keep = 0;
  }
  s.tokens.resize(keep);
  s.head_again_ok = false;
  if (s.pages) s.pages->truncate(static_cast<int64_t>(keep));
  s.stats.reused_tokens += static_cast<int64_t>(keep);
  return static_cast<int64_t>(keep);
}

void Session::clear() {
  impl_->tokens.clear();
  impl_->head_again_ok = false;
  if (impl_->pages) impl_->pages->truncate(0);
}

Stats Session::stats() const {
  Stats out = impl_->stats;
  if (impl_->pages) {
    const KvPagesStats now = impl_->pages->stats();
    out.kv = {now.bytes_read - impl_->kv_before.bytes_read, now.bytes_written - impl_->kv_before.bytes_written,
              now.stall_s - impl_->kv_before.stall_s};
  }
  for (const auto& [key, time] : impl_->times) {
    SegmentTime t = time;
    t.device = impl_->engine->device(key.first).name();
    t.kind = name(key.second);
    out.segments.push_back(std::move(t));
  }
  return out;
}

void Session::reset_stats() {
  impl_->stats = {};
  if (impl_->pages) impl_->kv_before = impl_->pages->stats();
  impl_->times.clear();
}

void Session::set_inspect(Inspect inspect) { impl_->inspect = std::move(inspect); }
void Session::set_on_routing(OnRouting on_routing) { impl_->on_routing = std::move(on_routing); }
void Session::set_force_routing(ForceRouting force) { impl_->force_routing = std::move(force); }

}  // namespace fth
