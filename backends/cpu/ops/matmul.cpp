// MATMUL: products that read the same x share its Q8 rows and one parallel loop.

#include <algorithm>
#include <array>

#include "backends/cpu/ops/work.h"
#include "backends/cpu/planner.h"

namespace fth::cpu {

Result<> plan_matmul(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(2, 3, 1));
  int64_t k = -1, m = -1;
  FTH_ASSIGN_OR_RETURN(const ValueId x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"K", &k}}));
  FTH_ASSIGN_OR_RETURN(const ValueId w, p.input(1, "weight", {{"M", &m}, {"K", &k}}));
  FTH_RETURN_IF_ERROR(p.check_weight("weight", w));
  if (p.tensor(w).role == FTH_ROLE_SLOTS) return p.invalid("the weight has the role slots");
  ValueId bias = kNoValue;
  if (p.has_input(2)) {
    FTH_ASSIGN_OR_RETURN(bias, p.input(2, "bias", DType::f32, {{"M", &m}}));
  }
  const DType type = p.dtype(w);
  FTH_ASSIGN_OR_RETURN(const int64_t wants_fine, p.integer(0, "fine activations", 0, 1));
  const bool fine = wants_fine == 1 && is_quantized(type);
  FTH_ASSIGN_OR_RETURN(const bool interleaved, p.interleaved(1, "weight", w));
  const ValueId act = is_quantized(type) ? p.quantized(x, k, fine) : x;
  FTH_ASSIGN_OR_RETURN(const ValueId y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"M", &m}}));
  const MatmulPart part{.weight = w,
                        .bias = bias,
                        .y = y,
                        .act = act,
                        .type = type,
                        .rows = m,
                        .row_bytes = row_bytes(type, k),
                        .act_bytes = is_quantized(type) ? q8_row_bytes(k) : static_cast<uint64_t>(k) * sizeof(float),
                        .fine = fine,
                        .interleaved = interleaved};
  p.plan.bytes += static_cast<double>(part.row_bytes) * static_cast<double>(m);
  p.plan.flops += 2.0 * static_cast<double>(k) * static_cast<double>(m) * static_cast<double>(p.plan.n_tokens) * (fine ? 2.0 : 1.0);

  // An earlier product of the same x takes this one along. One writer per tensor makes that safe: x was complete then, and y is read later. The
  // Q8 rows, if this product is the first to want them, were made after that step, and a weight that a step computes may be too.
  uint32_t at = p.step();
  const auto constant = [&](ValueId v) {
    return v == kNoValue || p.tensor(v).role == FTH_ROLE_WEIGHT || p.tensor(v).role == FTH_ROLE_INPUT;
  };
  if (constant(w) && constant(bias))
    for (uint32_t s = 0; s < p.plan.steps.size(); ++s)
      if (auto* other = std::get_if<MatmulStep>(&p.plan.steps[s]);
          other && other->x == x && (act == x || p.plan.values[act].first_step < s)) {
        other->parts.push_back(part);
        at = s;
        break;
      }
  if (at == p.step()) p.plan.steps.push_back(MatmulStep{.x = x, .k = k, .parts = {part}});
  for (const ValueId v : {x, w, act, y}) p.touch(v, at);
  if (bias != kNoValue) p.touch(bias, at);
  return {};
}

Result<> run_step(const QuantizeStep& s, const Run& run) {
  const float* const x = run.at<const float>(s.x);
  std::byte* const q8 = run.at<std::byte>(s.q8);
  const uint64_t row = q8_row_bytes(s.width);
  for_tokens(run, s.width, [&](int64_t t) {
    const float* const values = x + t * s.width;
    (s.fine ? run.kernels.quantize_fine : run.kernels.quantize_q8)(s.width, values, q8 + static_cast<uint64_t>(s.fine ? 2 * t : t) * row);
  });
  return {};
}

namespace {

// Fine products stand on the stack until the two of a token are added: few tokens of many rows, or as many tokens as one unpacking of the weights
// serves, of a few rows (measured: 512 tokens of a dense model 1.2 times as fast as by 8 tokens of 512 rows).
constexpr int64_t kFineSums = 8192, kFineRows = 512, kFineTokens = 64;
constexpr int64_t fine_rows(int64_t n_tokens) { return std::min(kFineRows, kFineSums / (2 * n_tokens) / 16 * 16); }

// Weight rows per work item. One token: bandwidth is all, so a few items per thread, in case one loses its core. More: the item's weights stay
// in the second-level cache while the columns pass.
int64_t rows_per_item(const MatmulPart& part, int64_t all_rows, int64_t n_threads, int64_t n_tokens) {
  const uint64_t tile = n_tokens == 1 ? 512 * 1024 : 96 * 1024;
  const int64_t cap = static_cast<int64_t>(tile / part.row_bytes);
  const int64_t rows = std::min({ceil_div(all_rows, n_threads * 8), cap, part.fine ? kFineRows : cap});
  const int64_t unit = part.interleaved ? 16 : 8;
  return std::max<int64_t>(unit, rows / unit * unit);
}

// The columns of m are tokens with two Q8 rows each.
void fine_product(const KernelTable& kernels, void (*product)(const MatmulArgs&), const MatmulArgs& m) {
  alignas(64) std::array<float, kFineSums> two;
  const int64_t step = fine_rows(m.n_cols);
  for (int64_t r0 = 0; r0 < m.n_rows; r0 += step) {
    MatmulArgs part = m;
    part.weights = static_cast<const std::byte*>(m.weights) + static_cast<uint64_t>(r0) * m.row_bytes;
    part.dst = two.data();
    part.dst_stride = step;
    part.n_rows = std::min(step, m.n_rows - r0);
    part.n_cols = 2 * m.n_cols;
    product(part);
    for (int64_t c = 0; c < m.n_cols; ++c) {
      const float* const pair = two.data() + 2 * c * step;
      float* const dst = m.dst + c * m.dst_stride + r0;
      kernels.add(part.n_rows, pair, pair + step, dst);
    }
  }
}

}  // namespace

MatmulWork::MatmulWork(const MatmulStep& step, const Run& run) : s_(step), run_(run) {
  for (const MatmulPart& part : s_.parts) all_rows_ += part.rows;
  for (const MatmulPart& part : s_.parts) items_ += ceil_div(part.rows, rows_per_item(part, all_rows_, run.host.n_threads(), run.n_tokens));
}

void MatmulWork::operator()(int64_t item) const {
  const int64_t n = run_.n_tokens;
  int64_t i = item;
  const MatmulPart* part = s_.parts.data();
  int64_t rows = 0;
  for (;; ++part) {
    rows = rows_per_item(*part, all_rows_, run_.host.n_threads(), n);
    const int64_t own = ceil_div(part->rows, rows);
    if (i < own) break;
    i -= own;
  }
  const int64_t row0 = i * rows;
  rows = std::min(rows, part->rows - row0);
  const std::byte* const weights = run_.at<const std::byte>(part->weight) + static_cast<uint64_t>(row0) * part->row_bytes;
  float* const y = run_.at<float>(part->y) + row0;
  const float* const bias = part->bias == kNoValue ? nullptr : run_.at<const float>(part->bias) + row0;
  const int64_t columns = part->fine ? kFineTokens : std::max<int64_t>(64, static_cast<int64_t>(320 * 1024 / part->act_bytes) / 64 * 64);
  for (int64_t c = 0; c < n; c += columns) {
    const int64_t n_cols = std::min(columns, n - c);
    const MatmulArgs args{.weights = weights,
                          .row_bytes = part->row_bytes,
                          .act = run_.at<const std::byte>(part->act) + static_cast<uint64_t>(part->fine ? 2 * c : c) * part->act_bytes,
                          .act_bytes = part->act_bytes,
                          .dst = y + c * part->rows,
                          .dst_stride = part->rows,
                          .k = s_.k,
                          .n_rows = rows,
                          .n_cols = n_cols,
                          .rows = nullptr,
                          .next = weights + static_cast<uint64_t>(rows * run_.host.n_threads()) * part->row_bytes};
    const auto product = (part->interleaved ? run_.kernels.matmul_interleaved : run_.kernels.matmul)[static_cast<size_t>(part->type)];
    part->fine ? fine_product(run_.kernels, product, args) : product(args);
    if (!bias) continue;
    for (int64_t j = c; j < c + n_cols; ++j)
      for (int64_t r = 0; r < rows; ++r) y[j * part->rows + r] += bias[r];
  }
}

Result<> run_step(const MatmulStep& s, const Run& run) {
  const MatmulWork work(s, run);
  parallel(run.host, work.n_items(), work);
  return {};
}

}  // namespace fth::cpu
