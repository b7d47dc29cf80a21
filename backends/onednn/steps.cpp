// The steps of a segment. Items of the host's pool are tiles of 64 weight rows; a tile is unpacked once for up to 128 columns. Every value is one sum over
// k in a fixed order, so that neither threads nor neighbours reach the bits.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "backends/onednn/plan.h"

namespace fth::onednn {
namespace {

int64_t padded(int64_t columns, int64_t unit) { return (columns + unit - 1) / unit * unit; }

// body(i) for i in [0, n) on the host's pool; inline when there is one.
template <class F>
void parallel(const sdk::Host& host, int64_t n, const F& body) {
  if (n == 1) return body(uint32_t{0});
  if (n > 1) host.parallel_for(static_cast<uint32_t>(n), body);
}

// The panels of `columns` padded columns that begin at column `first` of an area.
Panels panels_at(const Run& run, const PackedArea& area, bool int8, int64_t first, int64_t columns) {
  Panels p{.groups = area.groups, .columns = columns};
  const auto skip = static_cast<uint64_t>(first * area.groups);
  p.data = run.area<std::byte>(area.data) + skip * kGroup * (int8 ? 1 : sizeof(float));
  if (int8) p.scales = run.area<float>(area.scales) + skip, p.sums = run.area<int32_t>(area.sums) + skip;
  return p;
}

// Packs n rows of x, and zeros up to p, into the panel at column `first` of an area.
void pack(const Run& run, const PackedArea& area, const Products* int8, int64_t first, int64_t p, const float* const* x, int64_t n) {
  const Panels at = panels_at(run, area, int8 != nullptr, first, p);
  std::byte* const data = const_cast<std::byte*>(at.data);
  if (int8 == nullptr) return run.units.tiles.pack_f32(x, n, p, area.k, p, reinterpret_cast<float*>(data));
  run.units.tiles.pack_q8(x, n, p, area.k, p, int8->interleaved, reinterpret_cast<int8_t*>(data), const_cast<float*>(at.scales),
                          const_cast<int32_t*>(at.sums));
}

struct Outcome {
  std::atomic<bool> failed{false};  // written by any worker, read after the barrier
  Result<> result(const char* op) const {
    if (failed.load()) return fail(Code::internal, sdk::text(op, ": a product of oneDNN failed"));
    return {};
  }
};

using Accumulator = float[kTile * kWide];

// Behind a thread's products: oneDNN may have set its registers up for them.
void leave(const Units& units) {
  for (const Products* p : {units.int8, &units.f32})
    if (p != nullptr && p->leave != nullptr) p->leave();
}

}  // namespace

Result<> run_step(const MatmulStep& s, const Run& run) {
  const Products& products = *s.w.products;
  const int64_t columns = padded(run.n_tokens, products.unit);
  const float* const x = run.at<const float>(s.x);
  // Panels of the same widths that multiply_tile walks: 64 while there are as many, then what is left.
  const int64_t whole = columns / kPanel;
  parallel(run.host, whole + (columns % kPanel != 0), [&](uint32_t item) {
    for (int64_t first = item * kPanel, end = std::min(first + kPanel, columns); first < end;) {
      const int64_t p = first_panel(end - first), n = std::clamp<int64_t>(run.n_tokens - first, 0, p);
      const float* rows[kPanel];
      for (int64_t c = 0; c < n; ++c) rows[c] = x + (first + c) * s.w.k;
      pack(run, s.packed, products.int8 ? &products : nullptr, first, p, rows, n);
      first += p;
    }
  });
  Outcome outcome;
  const int64_t tiles = (s.w.rows + kTile - 1) / kTile, wides = (columns + kWide - 1) / kWide;
  parallel(run.host, tiles * wides, [&](uint32_t item) {
    const int64_t row = item / wides * kTile, n = std::min(kTile, s.w.rows - row), first = item % wides * kWide;
    const int64_t width = std::min(kWide, columns - first);
    alignas(64) Accumulator acc;
    const WeightView weight = s.w.view(run.at<const std::byte>(s.w.tensor));
    if (!multiply_tile(run.units.tiles, products, weight, row, n, panels_at(run, s.packed, products.int8, first, width), acc))
      outcome.failed = true;
    leave(run.units);
    const float* const bias = s.bias == kNoValue ? nullptr : run.at<const float>(s.bias) + row;
    for (int64_t c = 0; c < std::min(width, run.n_tokens - first); ++c) {
      float* const y = run.at<float>(s.y) + (first + c) * s.w.rows + row;
      for (int64_t r = 0; r < n; ++r) y[r] = acc[r * kWide + c] + (bias != nullptr ? bias[r] : 0.0f);
    }
  });
  return outcome.result("matmul");
}

namespace {

struct Experts {
  const ExpertsStep& s;
  const Run& run;
  const int32_t* begin;
  const int32_t* rows;
  int32_t* columns;  // first padded column of each slot
  Outcome outcome{};

  int64_t rows_of(int64_t slot) const { return begin[slot + 1] - begin[slot]; }

  // The table comes from the host's router; a bad one would write outside the packed areas or race on a row of y.
  Result<> check() const {
    const int64_t used = run.n_tokens * s.top_k;
    auto* const seen = run.area<uint8_t>(s.seen);
    std::memset(seen, 0, static_cast<size_t>(used));
    int64_t at = 0;
    if (begin[0] < 0) return fail(Code::invalid_argument, sdk::text("slot_begin[0] is ", begin[0]));
    for (int64_t slot = 0; slot < run.n_slots; ++slot) {
      if (begin[slot + 1] < begin[slot] || begin[slot + 1] > s.max_rows)
        return fail(Code::invalid_argument, sdk::text("slot_begin goes from ", begin[slot], " to ", begin[slot + 1], " at slot ", slot,
                                                      " of ", run.n_slots, ", there are ", s.max_rows, " rows"));
      columns[slot] = static_cast<int32_t>(at);
      at += padded(rows_of(slot), s.unit);
      for (const Matrix* m : {&s.gate, &s.up, &s.down})
        if (rows_of(slot) > 0 && m->products != nullptr && !run.slots[m->first_slot + static_cast<uint64_t>(slot)])
          return fail(Code::invalid_argument, sdk::text("slot ", slot, " has ", rows_of(slot), " rows and an empty binding"));
    }
    for (int64_t i = begin[0]; i < begin[run.n_slots]; ++i) {
      if (rows[i] < 0 || rows[i] >= used)
        return fail(Code::invalid_argument, sdk::text("rows[", i, "] is ", rows[i], ", need 0 to ", used - 1));
      if (seen[rows[i]]++ != 0) return fail(Code::invalid_argument, sdk::text("row ", rows[i], " is in two slots"));
    }
    return {};
  }

  void pack_slot(int64_t slot) const {
    const int64_t n = rows_of(slot), end = padded(n, s.unit);
    for (int64_t done = 0; done < end;) {
      const int64_t p = first_panel(end - done), there = std::clamp<int64_t>(n - done, 0, p);
      const float* x[kPanel];
      for (int64_t c = 0; c < there; ++c) x[c] = run.at<const float>(s.x) + rows[begin[slot] + done + c] / s.top_k * s.width;
      if (s.x_int8.used) pack(run, s.x_int8, run.units.int8, columns[slot] + done, p, x, there);
      if (s.x_f32.used) pack(run, s.x_f32, nullptr, columns[slot] + done, p, x, there);
      done += p;
    }
  }

  bool product(const Matrix& m, const PackedArea& area, int64_t slot, int64_t row, int64_t n, int64_t first, int64_t width, float* acc) {
    const bool ok = multiply_tile(run.units.tiles, *m.products, m.view(run.slots[m.first_slot + static_cast<uint64_t>(slot)]), row, n,
                                  panels_at(run, area, m.products->int8, columns[slot] + first, width), acc);
    if (!ok) outcome.failed = true;
    return ok;
  }
  const PackedArea& x_of(const Matrix& m) const { return m.products->int8 ? s.x_int8 : s.x_f32; }

  // Neurons [row, row + n) of a slot for all of its rows: hidden values, or the gates alone.
  void neurons(int64_t slot, int64_t row, int64_t n) {
    alignas(64) Accumulator gate, up;
    const int64_t all = rows_of(slot), end = padded(all, s.unit);
    for (int64_t first = 0; first < end; first += kWide) {
      const int64_t width = std::min(kWide, end - first), there = std::min(width, all - first);
      const int32_t* const row_of = rows + begin[slot] + first;
      if (s.gate.products != nullptr) {
        if (!product(s.gate, x_of(s.gate), slot, row, n, first, width, gate)) return;
      } else {
        std::memset(gate, 0, sizeof gate);
        for (int64_t c = 0; c < there; ++c)
          for (int64_t r = 0; r < n; ++r) gate[r * kWide + c] = run.at<const float>(s.gate_values)[row_of[c] * s.ff + row + r];
      }
      if (s.gates_only) {
        for (int64_t c = 0; c < there; ++c)
          for (int64_t r = 0; r < n; ++r) run.at<float>(s.y)[row_of[c] * s.ff + row + r] = gate[r * kWide + c];
        continue;
      }
      if (!product(s.up, x_of(s.up), slot, row, n, first, width, up)) return;
      // A dead neuron is exactly zero, whatever its up row says; a NaN stays one.
      for (int64_t i = 0; i < kTile; ++i)
        for (int64_t c = 0; c < width; ++c) {
          float& g = gate[i * kWide + c];
          g = s.silu ? g / (1.0f + std::exp(-g)) * up[i * kWide + c] : g <= 0.0f ? 0.0f : g * up[i * kWide + c];
        }
      store_hidden(gate, columns[slot] + first, row, width);
    }
    leave(run.units);
  }

  // Whole groups of neurons: those behind the last are zero.
  void store_hidden(const float* h, int64_t first, int64_t row, int64_t width) const {
    const int64_t n = std::min(kTile, s.hidden.groups * kGroup - row);
    for (int64_t column = 0; column < width;) {
      const int64_t p = first_panel(width - column);
      const Panels to = panels_at(run, s.hidden, s.down.products->int8, first + column, p);
      std::byte* const data = const_cast<std::byte*>(to.data);
      if (!s.down.products->int8) {
        for (int64_t r = 0; r < n; ++r)
          std::memcpy(reinterpret_cast<float*>(data) + (row + r) * p, h + r * kWide + column, static_cast<size_t>(p) * sizeof(float));
      } else {
        for (int64_t g = row / kGroup; g < (row + n) / kGroup; ++g)
          run.units.tiles.pack_q8_group(h + (g * kGroup - row) * kWide + column, kWide, p, s.down.products->interleaved,
                                        reinterpret_cast<int8_t*>(data) + g * kGroup * p, const_cast<float*>(to.scales) + g * p,
                                        const_cast<int32_t*>(to.sums) + g * p);
      }
      column += p;
    }
  }

  // Outputs [row, row + n) of a slot for all of its rows.
  void down(int64_t slot, int64_t row, int64_t n) {
    alignas(64) Accumulator acc;
    const int64_t all = rows_of(slot), end = padded(all, s.unit);
    for (int64_t first = 0; first < end; first += kWide) {
      const int64_t width = std::min(kWide, end - first);
      if (!product(s.down, s.hidden, slot, row, n, first, width, acc)) return;
      for (int64_t c = 0; c < std::min(width, all - first); ++c) {
        float* const y = run.at<float>(s.y) + rows[begin[slot] + first + c] * s.width + row;
        for (int64_t r = 0; r < n; ++r) y[r] = acc[r * kWide + c];
      }
    }
    leave(run.units);
  }
};

}  // namespace

Result<> run_step(const ExpertsStep& s, const Run& run) {
  Experts x{.s = s,
            .run = run,
            .begin = run.at<const int32_t>(s.slot_begin),
            .rows = run.at<const int32_t>(s.rows),
            .columns = run.area<int32_t>(s.columns)};
  const char* const name = s.gates_only ? "expert_gates" : "experts";
  if (Result<> r = x.check(); !r) return tl::unexpected<Error>(std::move(r).error().context(name));
  if (run.n_slots == 0 || x.begin[run.n_slots] == x.begin[0]) return {};
  parallel(run.host, run.n_slots, [&](uint32_t slot) { x.pack_slot(slot); });
  const int64_t neurons = (s.ff + kTile - 1) / kTile;
  parallel(run.host, run.n_slots * neurons, [&](uint32_t item) {
    const int64_t row = item % neurons * kTile;
    if (x.rows_of(item / neurons) > 0) x.neurons(item / neurons, row, std::min(kTile, s.ff - row));
  });
  if (s.gates_only) return x.outcome.result(name);
  const int64_t outputs = (s.width + kTile - 1) / kTile;
  parallel(run.host, run.n_slots * outputs, [&](uint32_t item) {
    const int64_t row = item % outputs * kTile;
    if (x.rows_of(item / outputs) > 0) x.down(item / outputs, row, std::min(kTile, s.width - row));
  });
  return x.outcome.result(name);
}

}  // namespace fth::onednn
