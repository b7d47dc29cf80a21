// ROPE and ATTENTION.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "backends/cpu/ops/work.h"
#include "backends/cpu/planner.h"

namespace fth::cpu {

Result<> plan_rope(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(1, 2, 1));
  RopeStep s{};
  FTH_ASSIGN_OR_RETURN(s.heads, p.integer(0, "heads", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(s.head_dim, p.integer(1, "D", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(const double base, p.finite(2, "base"));
  FTH_ASSIGN_OR_RETURN(const int64_t rotated, p.integer(3, "R", 2, s.head_dim));
  FTH_ASSIGN_OR_RETURN(const int64_t pairing, p.integer(4, "pairing", 0, 1));
  FTH_ASSIGN_OR_RETURN(const double scale, p.finite(5, "position scale"));
  if (!(base > 0)) return p.invalid(text("attribute 2 (base) is ", base, ", need more than 0"));
  if (rotated % 2 != 0) return p.invalid(text("attribute 3 (R) is ", rotated, ", need an even number"));
  s.half = rotated / 2;
  s.adjacent = pairing == 1;
  int64_t width = s.heads * s.head_dim;
  FTH_ASSIGN_OR_RETURN(s.x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"H*D", &width}}));
  ValueId factors = kNoValue;
  if (p.has_input(1)) {
    FTH_ASSIGN_OR_RETURN(factors, p.input(1, "factors", DType::f32, {{"R/2", &s.half}}));
  }

  const RopeTableStep* table = nullptr;
  for (const Step& step : p.plan.steps)
    if (const auto* t = std::get_if<RopeTableStep>(&step);
        t && t->factors == factors && t->base == base && t->position_scale == scale && static_cast<int64_t>(t->frequency.size()) == s.half)
      table = t;
  if (!table) {
    RopeTableStep t{};
    const uint64_t bytes = static_cast<uint64_t>(p.plan.n_tokens) * static_cast<uint64_t>(s.half) * sizeof(float);
    t.cosine = p.scratch(bytes);
    t.sine = p.scratch(bytes);
    t.factors = factors;
    t.base = base;
    t.position_scale = scale;
    for (int64_t j = 0; j < s.half; ++j)
      t.frequency.push_back(std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(rotated)));
    p.plan.steps.push_back(std::move(t));
    table = &std::get<RopeTableStep>(p.plan.steps.back());
  }
  s.cosine = table->cosine;
  s.sine = table->sine;
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"H*D", &width}}));
  for (const ValueId v : {s.x, s.cosine, s.sine}) p.touch(v, p.step());
  p.plan.flops += 3.0 * static_cast<double>(width) * static_cast<double>(p.plan.n_tokens);
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const RopeTableStep& s, const Run& run) {
  const int64_t half = static_cast<int64_t>(s.frequency.size());
  float* const cosine = run.at<float>(s.cosine);
  float* const sine = run.at<float>(s.sine);
  const float* const factors = s.factors == kNoValue ? nullptr : run.at<const float>(s.factors);
  // Angles in double: at position 2^31 a float angle is off by more than a turn. A sine is worth about 30 values of other work.
  for_tokens(run, 60 * half, [&](int64_t t) {
    const double position = static_cast<double>(run.pos + t) * s.position_scale;
    for (int64_t j = 0; j < half; ++j) {
      const double angle = position * s.frequency[static_cast<size_t>(j)] / (factors ? static_cast<double>(factors[j]) : 1.0);
      cosine[t * half + j] = static_cast<float>(std::cos(angle));
      sine[t * half + j] = static_cast<float>(std::sin(angle));
    }
  });
  return {};
}

Result<> run_step(const RopeStep& s, const Run& run) {
  const int64_t width = s.heads * s.head_dim;
  const float* const x = run.at<const float>(s.x);
  float* const y = run.at<float>(s.y);
  const float* const cosine = run.at<const float>(s.cosine);
  const float* const sine = run.at<const float>(s.sine);
  const auto rotate = s.adjacent ? run.kernels.rope_adjacent : run.kernels.rope_neox;
  for_tokens(run, 2 * width, [&](int64_t t) {
    std::memmove(y + t * width, x + t * width, static_cast<size_t>(width) * sizeof(float));
    for (int64_t h = 0; h < s.heads; ++h) rotate(s.half, cosine + t * s.half, sine + t * s.half, y + t * width + h * s.head_dim);
  });
  return {};
}

Result<> plan_attention(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(5, 5, 1));
  AttentionStep s{};
  FTH_ASSIGN_OR_RETURN(s.heads, p.integer(0, "H", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(s.kv_heads, p.integer(1, "G", 1, s.heads));
  FTH_ASSIGN_OR_RETURN(s.head_dim, p.integer(2, "D", 1, 1 << 20));
  FTH_ASSIGN_OR_RETURN(s.window, p.integer(3, "window", 0, int64_t{1} << 40));
  FTH_ASSIGN_OR_RETURN(const double scale, p.finite(4, "score scale"));
  if (s.heads % s.kv_heads != 0) return p.invalid(text(s.heads, " query heads over ", s.kv_heads, " kv heads"));
  s.scale = static_cast<float>(scale);
  s.cells = -1;
  int64_t q_width = s.heads * s.head_dim, kv_width = s.kv_heads * s.head_dim;
  int64_t& n = p.plan.n_tokens;
  FTH_ASSIGN_OR_RETURN(s.q, p.input(0, "q", DType::f32, {{"N", &n}, {"H*D", &q_width}}));
  FTH_ASSIGN_OR_RETURN(s.k, p.input(1, "k", DType::f32, {{"N", &n}, {"G*D", &kv_width}}));
  FTH_ASSIGN_OR_RETURN(s.v, p.input(2, "v", DType::f32, {{"N", &n}, {"G*D", &kv_width}}));
  s.paged = p.tensor(p.op->in[3]).role == FTH_ROLE_SLOTS;
  int64_t pages = s.paged ? -1 : 1;
  s.page_cells = -1;
  const auto cache = [&](uint32_t i, const char* what) {
    return s.paged ? p.input(i, what, {{"P", &pages}, {"C/P", &s.page_cells}, {"G*D", &kv_width}})
                   : p.input(i, what, {{"C", &s.page_cells}, {"G*D", &kv_width}});
  };
  FTH_ASSIGN_OR_RETURN(s.k_cache, cache(3, "k_cache"));
  FTH_ASSIGN_OR_RETURN(s.v_cache, cache(4, "v_cache"));
  s.cells = pages * s.page_cells;
  s.cache_type = p.dtype(s.k_cache);
  const auto role = p.tensor(s.k_cache).role;
  if ((role != FTH_ROLE_STATE && role != FTH_ROLE_SLOTS) || p.tensor(s.v_cache).role != role || s.k_cache == s.v_cache)
    return p.invalid("k_cache and v_cache must be two tensors of the role state, or two of the role slots");
  if (p.dtype(s.v_cache) != s.cache_type)
    return p.unsupported(text("k_cache of ", name(s.cache_type), " and v_cache of ", name(p.dtype(s.v_cache))));
  if (s.cache_type != DType::f32 && s.cache_type != DType::f16 && s.cache_type != DType::q8_0)
    return p.unsupported(text("a cache of ", name(s.cache_type), ": only f32, f16 and q8_0"));
  if (s.cache_type == DType::q8_0 && s.head_dim % 32 != 0)
    return p.unsupported(text("a cache of q8_0 with heads of ", s.head_dim, ": need a multiple of 32"));
  if (s.paged && s.window > 0) return p.unsupported("a window over cells in pages");
  if (s.paged) {
    s.k_pages = p.plan.values[s.k_cache].first_slot;
    s.v_pages = p.plan.values[s.v_cache].first_slot;
    p.plan.max_slots = std::max(p.plan.max_slots, pages);
  }
  const int64_t need = s.window > 0 ? s.window + n - 1 : n;
  if (s.cells < need) return p.invalid(text("a cache of ", s.cells, " cells for window ", s.window, " and ", n, " tokens, need ", need));
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &n}, {"H*D", &q_width}}));
  const double seen = static_cast<double>(s.window > 0 ? std::min(s.window, s.cells) : s.cells) / 2;
  p.plan.bytes += 2 * seen * static_cast<double>(row_bytes(s.cache_type, kv_width));
  p.plan.flops += 4 * seen * static_cast<double>(q_width) * static_cast<double>(n);
  p.plan.steps.push_back(s);
  return {};
}

// An item is a tile of tokens and the query heads of one kv head: its cells are read, and converted, once for all of them. Where that leaves threads idle,
// items take fewer tokens, then fewer heads.
AttentionWork::AttentionWork(const AttentionStep& step, const Run& run)
    : s_(step), run_(run), cell_bytes_(row_bytes(step.cache_type, step.kv_heads * step.head_dim)) {
  const int64_t n = run.n_tokens, threads = run.host.n_threads(), n_q = s_.heads / s_.kv_heads;
  tokens_ = std::clamp<int64_t>(n * s_.kv_heads / (threads * 4), 1, std::max<int64_t>(1, kAttentionRows / n_q));
  tiles_ = ceil_div(n, tokens_);
  const int64_t idle = ceil_div(threads, tiles_ * s_.kv_heads);
  heads_ = ceil_div(n_q, std::min(idle, n_q));
  parts_ = ceil_div(n_q, heads_);
}

Result<AttentionWork> AttentionWork::make(const AttentionStep& s, const Run& run) {
  const AttentionWork work(s, run);
  const int64_t n = run.n_tokens, kv_width = s.kv_heads * s.head_dim;
  if (s.window == 0 && run.pos + n > s.cells)
    return fail(Code::out_of_range, text("attention: positions to ", run.pos + n - 1, " and a cache of ", s.cells, " cells"));
  std::byte *const *const k_pages = work.k_pages(), *const *const v_pages = work.v_pages();
  if (s.paged) {
    const int64_t used = ceil_div(run.pos + n, s.page_cells);
    for (int64_t page = 0; page < used; ++page)
      if (page >= run.n_slots || !k_pages[page] || !v_pages[page])
        return fail(Code::invalid_argument,
                    text("attention: positions to ", run.pos + n - 1, " and page ", page, " of ", s.page_cells, " cells is not bound"));
  }
  const float* const k = run.at<const float>(s.k);
  const float* const v = run.at<const float>(s.v);
  for_tokens(run, 2 * kv_width, [&](int64_t t) {
    const int64_t cell = (run.pos + t) % s.cells;
    const auto store = [&](const float* row, std::byte* page) {
      std::byte* const to = page + static_cast<uint64_t>(cell % s.page_cells) * work.cell_bytes_;
      switch (s.cache_type) {
        case DType::f16: run.kernels.f32_to_f16(kv_width, row, reinterpret_cast<uint16_t*>(to)); break;
        case DType::q8_0: run.kernels.f32_to_q8_0(kv_width, row, to); break;
        default: std::memcpy(to, row, work.cell_bytes_);
      }
    };
    store(k + t * kv_width, k_pages[cell / s.page_cells]);
    store(v + t * kv_width, v_pages[cell / s.page_cells]);
  });
  return work;
}

void AttentionWork::operator()(int64_t item) const {
  const AttentionStep& s = s_;
  const auto attend = s.cache_type == DType::f16    ? run_.kernels.attention_f16
                      : s.cache_type == DType::q8_0 ? run_.kernels.attention_q8_0
                                                    : run_.kernels.attention_f32;
  const int64_t n_q = s.heads / s.kv_heads;
  // The last tokens, which see the most, go first.
  const int64_t t = (tiles_ - 1 - item % tiles_) * tokens_, kv_head = item / tiles_ / parts_, head = item / tiles_ % parts_ * heads_;
  const int64_t at = ((t * s.kv_heads + kv_head) * n_q + head) * s.head_dim;
  attend({.q = run_.at<const float>(s.q) + at,
          .k = k_pages(),
          .v = v_pages(),
          .head_offset = row_bytes(s.cache_type, s.head_dim) * static_cast<uint64_t>(kv_head),
          .cell_bytes = cell_bytes_,
          .page_cells = s.page_cells,
          .y = run_.at<float>(s.y) + at,
          .stride = s.heads * s.head_dim,
          .n_q = std::min(heads_, n_q - head),
          .head_dim = s.head_dim,
          .pos = run_.pos + t,
          .n_tokens = std::min(tokens_, run_.n_tokens - t),
          .window = s.window,
          .n_cells = s.cells,
          .scale = s.scale});
}

void prefetch_cells(const AttentionStep& s, const Run& run) {
  constexpr int64_t kBlock = 64;  // the kernels ask for each block of cells while they multiply the one before
  const auto cell_bytes = static_cast<int64_t>(row_bytes(s.cache_type, s.kv_heads * s.head_dim));
  std::byte *const *const k = s.paged ? run.slots + s.k_pages : &run.values[s.k_cache], *const *const v = s.paged ? run.slots + s.v_pages
                                                                                                                  : &run.values[s.v_cache];
  const int64_t first = s.window > 0 ? std::max<int64_t>(0, run.pos - s.window + 1) : 0;
  for (int64_t p = first, end = std::min(run.pos, (first / kBlock + 1) * kBlock); p < end;) {
    const int64_t cell = p % s.cells, page = cell / s.page_cells, in_page = cell % s.page_cells;
    const int64_t n = std::min({end - p, s.page_cells - in_page, s.cells - cell});
    if (page < (s.paged ? run.n_slots : 1) && k[page] && v[page])
      for (int64_t at = in_page * cell_bytes; at < (in_page + n) * cell_bytes; at += 64) {
        __builtin_prefetch(k[page] + at);
        __builtin_prefetch(v[page] + at);
      }
    p += n;
  }
}

Result<> run_step(const AttentionStep& s, const Run& run) {
  FTH_ASSIGN_OR_RETURN(const AttentionWork work, AttentionWork::make(s, run));
  parallel(run.host, work.n_items(), work);
  return {};
}

}  // namespace fth::cpu
