// HEAD_SCREENED: an estimate of every row from the plane, the best of them multiplied to learn how large the k-th largest is at least, then every row whose
// estimate may reach that.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "backends/cpu/planner.h"
#include "core/base/head_plane.h"

namespace fth::cpu {
namespace {

// The rows of one work item: fixed, so that what is skipped does not hang on the number of threads.
constexpr int64_t kItemRows = 512;
constexpr int64_t kMaxFirst = 4096;  // rows tried first

// Rows tried first: more than k, since the best by estimate are not the best. Each item offers its own best.
constexpr int64_t first_rows(int64_t k) { return std::min(std::max<int64_t>(64, 4 * k), kMaxFirst); }
constexpr int64_t offers(int64_t k, int64_t rows) {
  return std::min(kItemRows, 4 + 2 * first_rows(k) / std::max<int64_t>(1, rows / kItemRows));
}

struct Offer {
  float estimate;
  int32_t row;  // -1: none
};

// The step's scratch, one after another.
struct Scratch {
  float* rotated;  // [E]
  int8_t* q;       // [plane_columns(E)]
  Offer* best;     // [items * offers]
  float* first;    // [first_rows]
};
struct ScratchPlaces {
  uint64_t q, best, first, bytes;
};
ScratchPlaces places(int64_t width, int64_t rows, int64_t k) {
  ScratchPlaces p{};
  p.q = static_cast<uint64_t>(width) * sizeof(float);
  p.best = p.q + static_cast<uint64_t>(plane_columns(width));
  p.best = (p.best + 63) / 64 * 64;
  p.first = p.best + static_cast<uint64_t>(ceil_div(rows, kItemRows) * offers(k, rows)) * sizeof(Offer);
  p.bytes = p.first + static_cast<uint64_t>(first_rows(k)) * sizeof(float);
  return p;
}

// Products of some rows from `first` on, numbered from there and ascending, into y[row].
void multiply(const HeadScreenedStep& s, const Run& run, int64_t first, std::span<const int32_t> rows, float* y) {
  constexpr int64_t kColumns = 2;  // of fine activations
  alignas(64) std::array<float, kItemRows * kColumns> two;
  run.kernels.matmul[static_cast<size_t>(s.type)](
      {.weights = run.at<const std::byte>(s.weight) + static_cast<uint64_t>(first) * s.row_bytes,
       .row_bytes = s.row_bytes,
       .act = run.at<const std::byte>(s.act),
       .act_bytes = s.act_bytes,
       .dst = s.fine ? two.data() : y,
       .dst_stride = kItemRows,
       .k = s.width,
       .n_rows = static_cast<int64_t>(rows.size()),
       .n_cols = s.fine ? kColumns : 1,
       .rows = rows.data()});
  if (!s.fine) return;
  for (const int32_t r : rows) y[r] = two[static_cast<size_t>(r)] + two[static_cast<size_t>(kItemRows + r)];
}

// Into y what each row may reach at most, and the item's best estimates.
void estimate(const HeadScreenedStep& s, const Run& run, const PlaneInput& in, float base, const Scratch& scratch, int64_t item) {
  const int64_t first = item * kItemRows, n = std::min(kItemRows, s.rows - first), n_offers = offers(s.k, s.rows);
  const uint64_t row_bytes = plane_row_bytes(s.width);
  const std::byte* const plane = run.at<const std::byte>(s.plane) + static_cast<uint64_t>(first) * row_bytes;
  alignas(64) std::array<int32_t, kItemRows> sums;
  run.kernels.plane_sums({.rows = plane,
                          .row_bytes = row_bytes,
                          .row_head = kPlaneRowHead,
                          .q = scratch.q,
                          .n_groups = plane_columns(s.width) / kPlaneGroup,
                          .n_rows = n,
                          .sums = sums.data()});
  float* const y = run.at<float>(s.y) + first;
  Offer* const best = scratch.best + item * n_offers;
  std::fill_n(best, n_offers, Offer{-std::numeric_limits<float>::infinity(), -1});
  const float deviations = s.z * in.norm;
  for (int64_t i = 0; i < n; ++i) {
    const PlaneRow row = plane_row(plane + static_cast<uint64_t>(i) * row_bytes);
    const float value = base + plane_product(row, in, sums[static_cast<size_t>(i)]);
    y[i] = value + deviations * row.residual;
    if (!(value > best[n_offers - 1].estimate)) continue;
    int64_t at = n_offers - 1;
    for (; at > 0 && value > best[at - 1].estimate; --at) best[at] = best[at - 1];
    best[at] = {value, static_cast<int32_t>(first + i)};
  }
}

// At most the k-th largest product of all: the k-th largest of the rows that the estimates put first. -inf: nothing may be skipped.
float least_wanted(const HeadScreenedStep& s, const Run& run, const Scratch& scratch) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const auto better = [](const Offer& a, const Offer& b) { return a.estimate > b.estimate || (a.estimate == b.estimate && a.row < b.row); };
  Offer* const begin = scratch.best;
  Offer* end = std::remove_if(begin, begin + ceil_div(s.rows, kItemRows) * offers(s.k, s.rows), [](const Offer& o) { return o.row < 0; });
  if (end - begin > first_rows(s.k)) {
    std::nth_element(begin, begin + first_rows(s.k), end, better);
    end = begin + first_rows(s.k);
  }
  const int64_t n = end - begin;
  if (n < s.k) return kNone;
  parallel(run.host, ceil_div(n, 32), [&](uint32_t part) {
    alignas(64) std::array<float, kItemRows> one;
    for (int64_t i = int64_t{part} * 32; i < std::min(n, (int64_t{part} + 1) * 32); ++i) {
      constexpr int32_t kFirst = 0;
      multiply(s, run, begin[i].row, {&kFirst, 1}, one.data());
      scratch.first[i] = one[0];
    }
  });
  if (std::any_of(scratch.first, scratch.first + n, [](float v) { return std::isnan(v); })) return kNone;
  std::nth_element(scratch.first, scratch.first + s.k - 1, scratch.first + n, std::greater<>());
  return scratch.first[s.k - 1];
}

void refine(const HeadScreenedStep& s, const Run& run, float least, int64_t item) {
  const int64_t first = item * kItemRows, n = std::min(kItemRows, s.rows - first);
  float* const y = run.at<float>(s.y) + first;
  std::array<int32_t, kItemRows> rows;
  size_t n_rows = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (y[i] < least)  // false for NaN: what cannot be judged is multiplied
      y[i] = -std::numeric_limits<float>::infinity();
    else
      rows[n_rows++] = static_cast<int32_t>(i);
  }
  if (n_rows > 0) multiply(s, run, first, {rows.data(), n_rows}, y);
}

}  // namespace

Result<> plan_head_screened(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(4, 4, 1));
  HeadScreenedStep s{};
  s.width = s.rows = -1;
  FTH_ASSIGN_OR_RETURN(s.x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  if (p.plan.n_tokens != 1) return p.unsupported(text(p.plan.n_tokens, " rows of x: only 1, the position that a token is drawn from"));
  FTH_ASSIGN_OR_RETURN(s.weight, p.input(1, "weight", {{"V", &s.rows}, {"E", &s.width}}));
  FTH_RETURN_IF_ERROR(p.check_weight("weight", s.weight));
  if (p.tensor(s.weight).role != FTH_ROLE_WEIGHT) return p.unsupported("the head must be of the role weight");
  int64_t words = static_cast<int64_t>(plane_row_bytes(s.width) / sizeof(int32_t));
  FTH_ASSIGN_OR_RETURN(s.plane, p.input(2, "plane", DType::i32, {{"V", &s.rows}, {"P", &words}}));
  FTH_ASSIGN_OR_RETURN(s.mean, p.input(3, "mean", DType::f32, {{"E", &s.width}}));
  if (s.rows > std::numeric_limits<int32_t>::max() || s.width > (1 << 20))
    return p.unsupported(text(s.rows, " x ", s.width, ": rows of at most 2^20 values, numbered by 32 bits"));
  FTH_ASSIGN_OR_RETURN(s.k, p.integer(0, "k", 1, std::min(s.rows, kMaxFirst)));
  FTH_ASSIGN_OR_RETURN(const double z, p.finite(1, "z"));
  if (z < 0) return p.invalid(text("attribute 1 (z) is ", z, ", need at least 0"));
  s.z = static_cast<float>(std::min(z, 1e30));
  s.type = p.dtype(s.weight);
  FTH_ASSIGN_OR_RETURN(const int64_t wants_fine, p.integer(2, "fine activations", 0, 1));
  s.fine = wants_fine == 1 && is_quantized(s.type);
  s.row_bytes = row_bytes(s.type, s.width);
  s.act = is_quantized(s.type) ? p.quantized(s.x, s.width, s.fine) : s.x;
  s.act_bytes = is_quantized(s.type) ? q8_row_bytes(s.width) : static_cast<uint64_t>(s.width) * sizeof(float);
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"V", &s.rows}}));
  s.input = p.scratch(places(s.width, s.rows, s.k).bytes);
  for (const ValueId v : {s.x, s.weight, s.plane, s.mean, s.act, s.y}) p.touch(v, p.step());
  // About one row in a hundred is multiplied: the estimate of a run that has not been.
  p.plan.bytes += static_cast<double>(s.rows) * (static_cast<double>(plane_row_bytes(s.width)) + 0.01 * static_cast<double>(s.row_bytes));
  p.plan.flops += 2.0 * static_cast<double>(s.width) * static_cast<double>(s.rows);
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const HeadScreenedStep& s, const Run& run) {
  std::byte* const memory = run.at<std::byte>(s.input);
  const ScratchPlaces at = places(s.width, s.rows, s.k);
  const Scratch scratch{reinterpret_cast<float*>(memory), reinterpret_cast<int8_t*>(memory + at.q),
                        reinterpret_cast<Offer*>(memory + at.best), reinterpret_cast<float*>(memory + at.first)};
  const float *const x = run.at<const float>(s.x), *const mean = run.at<const float>(s.mean);
  double base = 0;
  for (int64_t i = 0; i < s.width; ++i) base += static_cast<double>(x[i]) * static_cast<double>(mean[i]);
  std::copy_n(x, s.width, scratch.rotated);
  plane_rotate(scratch.rotated, s.width);
  const PlaneInput in = plane_quantize(scratch.rotated, s.width, scratch.q);
  const int64_t items = ceil_div(s.rows, kItemRows);
  float least = -std::numeric_limits<float>::infinity();
  if (std::isfinite(in.norm) && std::isfinite(base)) {
    parallel(run.host, items, [&](uint32_t item) { estimate(s, run, in, static_cast<float>(base), scratch, item); });
    least = least_wanted(s, run, scratch);
  } else {
    std::fill_n(run.at<float>(s.y), s.rows, 0.0f);
  }
  parallel(run.host, items, [&](uint32_t item) { refine(s, run, least, item); });
  return {};
}

}  // namespace fth::cpu
