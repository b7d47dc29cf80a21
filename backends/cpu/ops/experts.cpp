// EXPERTS: all slots of a submit in one parallel loop, two when there are several tokens.
//   1. Each token's activations go to the packed row of every (token, rank) that a slot has, so that a slot's rows are adjacent.
//   2. Items of (slot, neurons): gate rows; then only the up rows of neurons that some row of the block keeps alive, of a batch where it pays only the (neuron,
//      row) pairs that live; hidden values, quantised at once in pieces of whole blocks, so that no barrier stands between this and the next.
//   3. Items of (slot, outputs): down, each as soon as its slot's hidden values are there, of a batch where it pays only the (neuron, row) pairs that live.
// Every sum is within one row and in a fixed order: neither the split into items nor the other slots of the submit reach the bits.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "backends/cpu/ops/work.h"
#include "backends/cpu/planner.h"

namespace fth::cpu {
namespace {

constexpr int64_t kTileRows = 128;  // neurons or outputs of an item, at most
constexpr int64_t kTileCols = 64;   // rows of a slot that pass through a tile on the stack at once: weights are unpacked once for them
constexpr int64_t kRunRows = 1024;  // neurons of an item where every slot has one row
constexpr int64_t kPairCols = 24;   // from here on live pairs alone may be quicker than whole tiles (docs/kernels.md)
constexpr int64_t kListCols = 4;    // from here on a slot's down may be quicker by live neurons than by whole tiles
static_assert(kTileRows <= kPairRows && kTileCols <= kPairColumns && kRunRows <= kTileRows * kTileCols);

uint64_t f32_bytes(int64_t n) { return static_cast<uint64_t>(n) * sizeof(float); }

Result<ValueId> slots_input(Planner& p, uint32_t i, std::string_view what, std::initializer_list<Planner::Dim> dims) {
  FTH_ASSIGN_OR_RETURN(const ValueId v, p.input(i, what, dims));
  if (p.tensor(v).role != FTH_ROLE_SLOTS) return p.invalid(text(what, " (tensor ", v, ") has the role ", sdk::role_name(p.tensor(v).role)));
  FTH_RETURN_IF_ERROR(p.check_weight(what, v));
  return v;
}

}  // namespace

Result<> plan_experts(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(6, 6, 1));
  ExpertsStep s{};
  s.width = s.ff = s.max_slots = -1;
  FTH_ASSIGN_OR_RETURN(const int64_t activation, p.integer(0, "activation", 0, 1));
  FTH_ASSIGN_OR_RETURN(s.top_k, p.integer(1, "K", 1, 1 << 16));
  FTH_ASSIGN_OR_RETURN(const int64_t order, p.integer(2, "order of down", 0, 2));
  s.silu = activation == 1;
  s.order = static_cast<DownOrder>(order);
  FTH_ASSIGN_OR_RETURN(s.x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  s.max_tokens = p.plan.n_tokens;
  int64_t n_rows = s.max_tokens * s.top_k;
  const bool gates_given = p.tensor(p.op->in[3]).role != FTH_ROLE_SLOTS;
  ValueId gate = kNoValue;
  s.gate_values = kNoValue;
  if (gates_given) {
    FTH_ASSIGN_OR_RETURN(s.gate_values, p.input(3, "gate values", DType::f32, {{"N*K", &n_rows}, {"F", &s.ff}}));
  } else {
    FTH_ASSIGN_OR_RETURN(gate, slots_input(p, 3, "gate", {{"S", &s.max_slots}, {"F", &s.ff}, {"E", &s.width}}));
    FTH_ASSIGN_OR_RETURN(s.gate_interleaved, p.interleaved(3, "gate", gate));
  }
  FTH_ASSIGN_OR_RETURN(const ValueId up, slots_input(p, 4, "up", {{"S", &s.max_slots}, {"F", &s.ff}, {"E", &s.width}}));
  const Planner::Dim f{"F", &s.ff}, e{"E", &s.width};
  const bool rows_of_neurons = s.order == DownOrder::row_per_neuron;
  FTH_ASSIGN_OR_RETURN(const ValueId down,
                       slots_input(p, 5, "down", {{"S", &s.max_slots}, rows_of_neurons ? f : e, rows_of_neurons ? e : f}));
  if (s.order == DownOrder::neuron_major) {
    const DType type = p.dtype(down);
    if (!p.kernels.matmul_by_neuron[static_cast<size_t>(type)])
      return p.unsupported(text("down neuron-major of ", name(type), ": q4_0 and q8_0 have that order"));
    if (s.width % 32 != 0) return p.invalid(text("down neuron-major with E ", s.width, ": need a multiple of 32"));
  }
  int64_t n_begin = s.max_slots + 1;
  if (n_rows > (1 << 24)) return p.unsupported(text(n_rows, " rows (N * K): at most ", 1 << 24));
  FTH_ASSIGN_OR_RETURN(s.slot_begin, p.input(1, "slot_begin", DType::i32, {{"S+1", &n_begin}}));
  FTH_ASSIGN_OR_RETURN(s.rows, p.input(2, "rows", DType::i32, {{"N*K", &n_rows}}));
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N*K", &n_rows}, {"E", &s.width}}));
  s.gate = gates_given ? 0 : p.plan.values[gate].first_slot;
  s.up = p.plan.values[up].first_slot;
  s.down = p.plan.values[down].first_slot;
  s.gate_type = gates_given ? p.dtype(up) : p.dtype(gate);
  s.up_type = p.dtype(up);
  s.down_type = p.dtype(down);

  const uint64_t n = static_cast<uint64_t>(n_rows);
  const bool hidden_q8 = is_quantized(s.down_type) && s.order != DownOrder::row_per_neuron;
  const bool any_q8 = is_quantized(s.gate_type) || is_quantized(s.up_type);
  const bool any_f32 = !is_quantized(s.gate_type) || !is_quantized(s.up_type);
  s.place = p.scratch(n * sizeof(int32_t));
  s.pending = p.scratch(static_cast<uint64_t>(s.max_slots) * sizeof(int32_t));
  s.x_q8 = any_q8 ? p.scratch(n * q8_row_bytes(s.width)) : kNoValue;
  s.x_f32 = any_f32 ? p.scratch(n * f32_bytes(s.width)) : kNoValue;
  s.hidden = p.scratch(n * (hidden_q8 ? q8_row_bytes(s.ff) : f32_bytes(s.ff)));
  const bool pairs = !s.silu && s.max_tokens >= kPairCols && s.width % 64 == 0 && p.kernels.matmul_pairs[static_cast<size_t>(s.up_type)];
  s.x_pairs = pairs ? p.scratch(static_cast<uint64_t>(s.max_tokens) * q8_row_bytes(s.width)) : kNoValue;
  const bool lists =
      !s.silu && s.max_tokens >= kListCols && s.order == DownOrder::neuron_major && p.kernels.matmul_live[static_cast<size_t>(s.down_type)];
  s.lists = lists ? p.scratch(n * static_cast<uint64_t>(s.ff / 32) * sizeof(LiveGroup)) : kNoValue;
  s.n_live = lists ? p.scratch(static_cast<uint64_t>(s.max_slots) * sizeof(int64_t)) : kNoValue;

  p.plan.max_slots = std::max(p.plan.max_slots, s.max_slots);
  const uint64_t expert = (gates_given ? 0 : p.plan.values[gate].bytes) + p.plan.values[up].bytes + p.plan.values[down].bytes;
  p.plan.bytes += static_cast<double>(expert) * static_cast<double>(std::min(s.max_slots, n_rows));
  p.plan.flops += (gates_given ? 4.0 : 6.0) * static_cast<double>(n_rows) * static_cast<double>(s.width) * static_cast<double>(s.ff);
  p.plan.steps.push_back(s);
  return {};
}

namespace {

// One submit of one step: what the items share.
struct Experts {
  const ExpertsStep& s;
  const Run& run;
  const int32_t* begin;
  const int32_t* rows;
  int32_t* place;

  int64_t columns(int64_t slot) const { return begin[slot + 1] - begin[slot]; }
  bool hidden_q8() const { return is_quantized(s.down_type) && s.order != DownOrder::row_per_neuron; }
  uint64_t hidden_bytes() const { return hidden_q8() ? q8_row_bytes(s.ff) : f32_bytes(s.ff); }
  float* hidden_f32(int64_t i) const { return run.at<float>(s.hidden) + i * s.ff; }
  const std::byte* activations(DType type, int64_t i) const {
    return is_quantized(type) ? run.at<const std::byte>(s.x_q8) + static_cast<uint64_t>(i) * q8_row_bytes(s.width)
                              : run.at<const std::byte>(s.x_f32) + static_cast<uint64_t>(i) * f32_bytes(s.width);
  }

  Result<> check_slots() const;
  void pack(int64_t token) const;
  void neurons(int64_t slot, int64_t row0, int64_t n) const;
  bool live_pairs(int64_t slot, int64_t row0, int64_t n, int64_t i, int64_t n_cols, const float* gate, float* up) const;
  bool listed(int64_t slot) const { return s.lists != kNoValue && columns(slot) >= kListCols; }
  LiveGroup* list(int64_t i, int64_t row0) const { return run.at<LiveGroup>(s.lists) + (i * s.ff + row0) / 32; }
  int64_t& n_live(int64_t slot) const { return run.at<int64_t>(s.n_live)[slot]; }
  int64_t store_hidden(const float* h, int64_t i, int64_t row0, int64_t n, bool list_them) const;
  void down(int64_t slot, int64_t row0, int64_t n) const;
  void down_row_per_neuron(int64_t slot, int64_t col0, int64_t n) const;
};

// The table comes from the host's router; a bad one would write outside the packed areas or race on a row of y.
Result<> Experts::check_slots() const {
  const int64_t n_rows = s.max_tokens * s.top_k, used = run.n_tokens * s.top_k;
  std::fill_n(place, used, -1);
  if (begin[0] < 0) return fail(Code::invalid_argument, text("experts: slot_begin[0] is ", begin[0]));
  for (int64_t slot = 0; slot < run.n_slots; ++slot) {
    if (begin[slot + 1] < begin[slot] || begin[slot + 1] > n_rows)
      return fail(Code::invalid_argument, text("experts: slot_begin goes from ", begin[slot], " to ", begin[slot + 1], " at slot ", slot,
                                               " of ", run.n_slots, ", there are ", n_rows, " rows"));
    if (columns(slot) == 0) continue;
    for (const uint32_t tensor : {s.gate_values == kNoValue ? s.gate : s.up, s.up, s.down})
      if (!run.slots[tensor + static_cast<uint64_t>(slot)])
        return fail(Code::invalid_argument, text("experts: slot ", slot, " has ", columns(slot), " rows and an empty binding"));
  }
  for (int64_t i = begin[0]; i < begin[run.n_slots]; ++i) {
    if (rows[i] < 0 || rows[i] >= used)
      return fail(Code::invalid_argument, text("experts: rows[", i, "] is ", rows[i], ", need 0 to ", used - 1));
    if (place[rows[i]] >= 0) return fail(Code::invalid_argument, text("experts: row ", rows[i], " is in two slots"));
    place[rows[i]] = static_cast<int32_t>(i);
  }
  return {};
}

void Experts::pack(int64_t token) const {
  const float* const x = run.at<const float>(s.x) + token * s.width;
  const std::byte* first = nullptr;
  for (int64_t r = token * s.top_k; r < (token + 1) * s.top_k; ++r) {
    if (place[r] < 0) continue;
    const uint64_t i = static_cast<uint64_t>(place[r]);
    if (s.x_f32 != kNoValue) std::memcpy(run.at<float>(s.x_f32) + i * static_cast<uint64_t>(s.width), x, f32_bytes(s.width));
    if (s.x_q8 == kNoValue) continue;
    std::byte* const row = run.at<std::byte>(s.x_q8) + i * q8_row_bytes(s.width);
    if (first) {
      std::memcpy(row, first, q8_row_bytes(s.width));
    } else {
      run.kernels.quantize_q8(s.width, x, row);
      first = row;
    }
  }
  if (s.x_pairs != kNoValue && run.n_tokens >= kPairCols && first)
    run.kernels.pair_q8(s.width, first, run.at<std::byte>(s.x_pairs) + static_cast<uint64_t>(token) * q8_row_bytes(s.width));
}

// Up rows [row0, row0 + n) for the rows [i, i + n_cols) of a slot, only where the gate lives; false: not done, as too much of the tile does.
bool Experts::live_pairs(int64_t slot, int64_t row0, int64_t n, int64_t i, int64_t n_cols, const float* gate, float* up) const {
  if (s.x_pairs == kNoValue || n_cols < kPairCols) return false;
  std::array<uint64_t, kTileRows> columns;
  if (run.kernels.live_pairs(n, n_cols, gate, kTileRows, columns.data()) * 20 > n * n_cols * 7) return false;
  std::array<int32_t, kTileCols> tokens;
  for (int64_t c = 0; c < n_cols; ++c) tokens[static_cast<size_t>(c)] = static_cast<int32_t>(rows[i + c] / s.top_k);
  const uint64_t bytes = row_bytes(s.up_type, s.width);
  run.kernels.matmul_pairs[static_cast<size_t>(s.up_type)](
      {.weights = run.slots[s.up + static_cast<uint64_t>(slot)] + static_cast<uint64_t>(row0) * bytes,
       .row_bytes = bytes,
       .act = run.at<const std::byte>(s.x_pairs),
       .act_bytes = q8_row_bytes(s.width),
       .act_rows = tokens.data(),
       .dst = up,
       .dst_stride = kTileRows,
       .k = s.width,
       .n_rows = n,
       .columns = columns.data()});
  return true;
}

// Neurons [row0, row0 + n) of a slot for all of its rows; n <= kTileRows, or kRunRows if there is one.
void Experts::neurons(int64_t slot, int64_t row0, int64_t n) const {
  alignas(64) std::array<float, kTileRows * kTileCols> gate, up;
  std::array<int32_t, kRunRows> live;
  const auto product = [&](uint32_t tensor, DType type, bool interleaved, int64_t i, int64_t n_cols, float* dst, const int32_t* list,
                           int64_t n_list) {
    const uint64_t bytes = row_bytes(type, s.width);
    (interleaved ? run.kernels.matmul_interleaved : run.kernels.matmul)[static_cast<size_t>(type)](
        {.weights = run.slots[tensor + static_cast<uint64_t>(slot)] + static_cast<uint64_t>(row0) * bytes,
         .row_bytes = bytes,
         .act = activations(type, i),
         .act_bytes = is_quantized(type) ? q8_row_bytes(s.width) : f32_bytes(s.width),
         .dst = dst,
         .dst_stride = kTileRows,
         .k = s.width,
         .n_rows = n_list,
         .n_cols = n_cols,
         .rows = list});
  };
  for (int64_t i = begin[slot]; i < begin[slot + 1]; i += kTileCols) {
    const int64_t n_cols = std::min<int64_t>(kTileCols, begin[slot + 1] - i);
    if (s.gate_values == kNoValue) {
      product(s.gate, s.gate_type, s.gate_interleaved, i, n_cols, gate.data(), nullptr, n);
    } else {
      for (int64_t c = 0; c < n_cols; ++c)
        std::memcpy(gate.data() + c * kTileRows, run.at<const float>(s.gate_values) + rows[i + c] * s.ff + row0, f32_bytes(n));
    }
    if (s.silu) {
      product(s.up, s.up_type, false, i, n_cols, up.data(), nullptr, n);
      for (int64_t c = 0; c < n_cols; ++c)
        run.kernels.silu_mul(n, gate.data() + c * kTileRows, up.data() + c * kTileRows, gate.data() + c * kTileRows);
    } else if (live_pairs(slot, row0, n, i, n_cols, gate.data(), up.data())) {
      for (int64_t c = 0; c < n_cols; ++c)
        run.kernels.live_mul(n, gate.data() + c * kTileRows, up.data() + c * kTileRows, gate.data() + c * kTileRows);
    } else {
      std::array<uint8_t, kRunRows> alive;  // by some row
      std::fill_n(alive.begin(), n, uint8_t{0});
      for (int64_t c = 0; c < n_cols; ++c) run.kernels.mark_alive(n, gate.data() + c * kTileRows, alive.data());
      int64_t n_live = 0;
      for (int64_t r = 0; r < n; ++r) {
        live[static_cast<size_t>(n_live)] = static_cast<int32_t>(r);
        n_live += alive[static_cast<size_t>(r)];
      }
      if (columns(slot) == 1) {
        run.neurons.live.fetch_add(static_cast<uint64_t>(n_live), std::memory_order_relaxed);
        run.neurons.all.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
      }
      // From some share on a list costs more than the rows that it leaves out (docs/kernels.md).
      const bool dense = n_live * 100 >= n * run.gather_below;
      if (n_live > 0) product(s.up, s.up_type, false, i, n_cols, up.data(), dense ? nullptr : live.data(), dense ? n : n_live);
      // A dead neuron is exactly zero, whatever its up row says and whether or not a neighbour had that row computed.
      for (int64_t c = 0; c < n_cols; ++c)
        run.kernels.live_mul(n, gate.data() + c * kTileRows, up.data() + c * kTileRows, gate.data() + c * kTileRows);
    }
    int64_t n_listed = 0;
    for (int64_t c = 0; c < n_cols; ++c) n_listed += store_hidden(gate.data() + c * kTileRows, i + c, row0, n, listed(slot));
    if (n_listed > 0) std::atomic_ref<int64_t>(n_live(slot)).fetch_add(n_listed, std::memory_order_relaxed);  // seen after wait_for_zero
  }
}

// Returns the number of neurons listed.
int64_t Experts::store_hidden(const float* h, int64_t i, int64_t row0, int64_t n, bool list_them) const {
  if (!hidden_q8()) {
    std::memcpy(hidden_f32(i) + row0, h, f32_bytes(n));
    return 0;
  }
  alignas(64) std::array<std::byte, q8_row_bytes(kRunRows)> piece;
  run.kernels.quantize_q8(n, h, piece.data());
  place_q8(s.ff, row0, n, piece.data(), run.at<std::byte>(s.hidden) + static_cast<uint64_t>(i) * q8_row_bytes(s.ff));
  return list_them ? run.kernels.list_live(n, piece.data(), list(i, row0)) : 0;
}

// Outputs [row0, row0 + n) of a slot for all of its rows; n <= kTileRows if there are several.
void Experts::down(int64_t slot, int64_t row0, int64_t n) const {
  alignas(64) std::array<float, kTileRows * kTileCols> tile;
  float* const y = run.at<float>(s.y);
  const std::byte* const weights = run.slots[s.down + static_cast<uint64_t>(slot)];
  const uint64_t bytes = row_bytes(s.down_type, s.ff);
  // From half of the neurons on tiles are as quick (docs/kernels.md).
  if (listed(slot) && n_live(slot) * 2 < columns(slot) * s.ff) {
    const int64_t block = ceil_div(columns(slot), ceil_div(columns(slot), kLiveColumns));
    for (int64_t i = begin[slot]; i < begin[slot + 1]; i += block)
      run.kernels.matmul_live[static_cast<size_t>(s.down_type)]({.weights = weights,
                                                                 .n_outputs = s.width,
                                                                 .first = row0,
                                                                 .n_rows = n,
                                                                 .groups = list(i, 0),
                                                                 .dst = y + row0,
                                                                 .dst_rows = rows + i,
                                                                 .dst_stride = s.width,
                                                                 .k = s.ff,
                                                                 .n_cols = std::min<int64_t>(block, begin[slot + 1] - i)});
    return;
  }
  for (int64_t i = begin[slot]; i < begin[slot + 1]; i += kTileCols) {
    const int64_t n_cols = std::min<int64_t>(kTileCols, begin[slot + 1] - i);
    float* const dst = columns(slot) == 1 ? y + rows[i] * s.width + row0 : tile.data();
    const std::byte* const act = run.at<const std::byte>(s.hidden) + static_cast<uint64_t>(i) * hidden_bytes();
    if (s.order == DownOrder::neuron_major) {
      run.kernels.matmul_by_neuron[static_cast<size_t>(s.down_type)]({.weights = weights,
                                                                      .n_outputs = s.width,
                                                                      .first = row0,
                                                                      .n_rows = n,
                                                                      .act = act,
                                                                      .act_bytes = hidden_bytes(),
                                                                      .dst = dst,
                                                                      .dst_stride = kTileRows,
                                                                      .k = s.ff,
                                                                      .n_cols = n_cols});
    } else {
      run.kernels.matmul[static_cast<size_t>(s.down_type)]({.weights = weights + static_cast<uint64_t>(row0) * bytes,
                                                            .row_bytes = bytes,
                                                            .act = act,
                                                            .act_bytes = hidden_bytes(),
                                                            .dst = dst,
                                                            .dst_stride = kTileRows,
                                                            .k = s.ff,
                                                            .n_rows = n,
                                                            .n_cols = n_cols,
                                                            .rows = nullptr});
    }
    if (dst != tile.data()) continue;
    for (int64_t c = 0; c < n_cols; ++c) std::memcpy(y + rows[i + c] * s.width + row0, tile.data() + c * kTileRows, f32_bytes(n));
  }
}

// Outputs [col0, col0 + n), whole blocks of the weight: neurons in ascending order, those that are zero not even read.
void Experts::down_row_per_neuron(int64_t slot, int64_t col0, int64_t n) const {
  float* const y = run.at<float>(s.y);
  const uint64_t bytes = row_bytes(s.down_type, s.width);
  const std::byte* row = run.slots[s.down + static_cast<uint64_t>(slot)] + row_bytes(s.down_type, col0);
  for (int64_t i = begin[slot]; i < begin[slot + 1]; ++i) std::fill_n(y + rows[i] * s.width + col0, n, 0.0f);
  for (int64_t f = 0; f < s.ff; ++f, row += bytes)
    for (int64_t i = begin[slot]; i < begin[slot + 1]; ++i)
      if (const float h = hidden_f32(i)[f]; h != 0.0f)
        run.kernels.axpy[static_cast<size_t>(s.down_type)](n, h, row, y + rows[i] * s.width + col0);
}

// Sizes of pieces: about eight per thread over all busy slots, in multiples of `unit`, at most `max`.
int64_t piece_size(int64_t total, int64_t busy_slots, int64_t n_threads, int64_t unit, int64_t max) {
  const int64_t size = total * busy_slots / (n_threads * 8);
  return std::clamp(size / unit * unit, unit, std::max(unit, max / unit * unit));
}

}  // namespace

Result<> run_step(const ExpertsStep& s, const Run& run) {
  const Experts x{.s = s,
                  .run = run,
                  .begin = run.at<const int32_t>(s.slot_begin),
                  .rows = run.at<const int32_t>(s.rows),
                  .place = run.at<int32_t>(s.place)};
  FTH_RETURN_IF_ERROR(x.check_slots());
  if (run.n_slots == 0 || x.begin[run.n_slots] == x.begin[0]) return {};
  for_tokens(run, 2 * s.width, [&](int64_t t) { x.pack(t); });

  const int64_t threads = run.host.n_threads();
  int64_t busy = 0, most = 0;  // slots with rows, rows of the fullest
  for (int64_t slot = 0; slot < run.n_slots; ++slot) {
    busy += x.columns(slot) > 0;
    most = std::max(most, x.columns(slot));
  }
  // A token alone: long runs of gates and long lists of live rows, as what a run or a list begins with comes unannounced. One thread has nobody to share with.
  const int64_t neurons =
      most == 1 ? piece_size(threads == 1 ? 8 * s.ff : s.ff, busy, threads, 32, kRunRows) : piece_size(s.ff, busy, threads, 32, kTileRows);
  const int64_t per_slot = ceil_div(s.ff, neurons);
  // Whole blocks of a row per neuron; whole cache lines of neuron-major codes.
  const bool per_neuron = s.order == DownOrder::row_per_neuron;
  const int64_t unit = per_neuron ? traits(s.down_type).block : s.order == DownOrder::neuron_major ? kTileRows : 8;
  const bool tiles = s.order == DownOrder::row_major || (!per_neuron && most > 1);
  // A column alone needs no tile, and long runs of a neuron read better than short ones: fewer pieces.
  const bool runs = s.order == DownOrder::neuron_major && most == 1;
  const int64_t outputs = piece_size(s.width * (runs ? 4 : 1), busy, threads, unit, tiles ? kTileRows : s.width);
  const int64_t pieces = ceil_div(s.width, outputs);

  // One loop for both halves: a slot's down waits for that slot's hidden values alone. Threads take items in ascending order, so whatever an item waits for
  // runs already, or is done: nothing deadlocks, and only the last slots are ever waited for.
  int32_t* const pending = run.at<int32_t>(s.pending);
  for (int64_t slot = 0; slot < run.n_slots; ++slot) pending[slot] = static_cast<int32_t>(per_slot);
  if (s.lists != kNoValue) std::fill_n(run.at<int64_t>(s.n_live), run.n_slots, 0);
  const int64_t first = run.n_slots * per_slot;
  parallel(run.host, first + run.n_slots * pieces, [&](uint32_t item) {
    const int64_t slot = item < first ? item / per_slot : (item - first) / pieces;
    if (x.columns(slot) == 0) return;
    std::atomic_ref<int32_t> left(pending[slot]);
    if (item < first) {
      const int64_t row0 = item % per_slot * neurons;
      x.neurons(slot, row0, std::min(neurons, s.ff - row0));
      if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) left.notify_all();
      return;
    }
    wait_for_zero(left);
    const int64_t at = (item - first) % pieces * outputs, n = std::min(outputs, s.width - at);
    if (per_neuron) {
      x.down_row_per_neuron(slot, at, n);
    } else {
      x.down(slot, at, n);
    }
  });
  return {};
}

Result<> plan_expert_gates(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(4, 4, 1));
  ExpertGatesStep s{};
  s.width = s.ff = s.max_slots = -1;
  FTH_ASSIGN_OR_RETURN(s.top_k, p.integer(0, "K", 1, 1 << 16));
  FTH_ASSIGN_OR_RETURN(s.x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(const ValueId gate, slots_input(p, 3, "gate", {{"S", &s.max_slots}, {"F", &s.ff}, {"E", &s.width}}));
  s.type = p.dtype(gate);
  FTH_ASSIGN_OR_RETURN(s.interleaved, p.interleaved(1, "gate", gate));
  s.act = is_quantized(s.type) ? p.quantized(s.x, s.width, false) : s.x;
  s.max_tokens = p.plan.n_tokens;
  int64_t n_begin = s.max_slots + 1, n_rows = s.max_tokens * s.top_k;
  if (n_rows > (1 << 24)) return p.unsupported(text(n_rows, " rows (N * K): at most ", 1 << 24));
  FTH_ASSIGN_OR_RETURN(s.slot_begin, p.input(1, "slot_begin", DType::i32, {{"S+1", &n_begin}}));
  FTH_ASSIGN_OR_RETURN(s.rows, p.input(2, "rows", DType::i32, {{"N*K", &n_rows}}));
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "g", {{"N*K", &n_rows}, {"F", &s.ff}}));
  s.gate = p.plan.values[gate].first_slot;
  for (const ValueId v : {s.x, s.act, gate}) p.touch(v, p.step());
  p.plan.max_slots = std::max(p.plan.max_slots, s.max_slots);
  p.plan.bytes += static_cast<double>(p.plan.values[gate].bytes) * static_cast<double>(std::min(s.max_slots, n_rows));
  p.plan.flops += 2.0 * static_cast<double>(n_rows) * static_cast<double>(s.width) * static_cast<double>(s.ff);
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const ExpertGatesStep& s, const Run& run) {
  const int32_t* const begin = run.at<const int32_t>(s.slot_begin);
  const int32_t* const rows = run.at<const int32_t>(s.rows);
  const int64_t n_rows = s.max_tokens * s.top_k, used = run.n_tokens * s.top_k;
  int64_t busy = 0;
  for (int64_t slot = 0; slot < run.n_slots; ++slot) {
    if (begin[slot] < 0 || begin[slot + 1] < begin[slot] || begin[slot + 1] > n_rows)
      return fail(Code::invalid_argument, text("expert_gates: slot_begin goes from ", begin[slot], " to ", begin[slot + 1], " at slot ",
                                               slot, " of ", run.n_slots, ", there are ", n_rows, " rows"));
    if (begin[slot] == begin[slot + 1]) continue;
    ++busy;
    if (!run.slots[s.gate + static_cast<uint64_t>(slot)])
      return fail(Code::invalid_argument, text("expert_gates: slot ", slot, " has rows and an empty binding"));
    for (int64_t i = begin[slot]; i < begin[slot + 1]; ++i)
      if (rows[i] < 0 || rows[i] >= used)
        return fail(Code::invalid_argument, text("expert_gates: rows[", i, "] is ", rows[i], ", need 0 to ", used - 1));
  }
  if (busy == 0) return {};
  const uint64_t bytes = row_bytes(s.type, s.width), act_bytes = is_quantized(s.type) ? q8_row_bytes(s.width) : f32_bytes(s.width);
  const int64_t neurons = piece_size(s.ff, busy, run.host.n_threads(), 32, kTileRows), per_slot = ceil_div(s.ff, neurons);
  const auto product = (s.interleaved ? run.kernels.matmul_interleaved : run.kernels.matmul)[static_cast<size_t>(s.type)];
  parallel(run.host, run.n_slots * per_slot, [&](uint32_t item) {
    const int64_t slot = item / per_slot, row0 = item % per_slot * neurons;
    for (int64_t i = begin[slot]; i < begin[slot + 1]; ++i)
      product({.weights = run.slots[s.gate + static_cast<uint64_t>(slot)] + static_cast<uint64_t>(row0) * bytes,
               .row_bytes = bytes,
               .act = run.at<const std::byte>(s.act) + static_cast<uint64_t>(rows[i] / s.top_k) * act_bytes,
               .act_bytes = act_bytes,
               .dst = run.at<float>(s.y) + rows[i] * s.ff + row0,
               .dst_stride = s.ff,
               .k = s.width,
               .n_rows = std::min(neurons, s.ff - row0),
               .n_cols = 1,
               .rows = nullptr});
  });
  return {};
}

}  // namespace fth::cpu
