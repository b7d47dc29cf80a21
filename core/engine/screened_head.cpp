// The screened head: its plane, made from the head's own rows when the model is opened, and how far its estimates are trusted. That is measured: over the first
// positions the exact head runs, and the estimates of its largest logits are compared with them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/head_plane.h"
#include "core/engine/segment_runner.h"

namespace fth {
namespace {

constexpr int64_t kMeasured = 64, kEnough = 32;  // positions of one prompt that are looked at, and that are needed
constexpr int64_t kMeasuredBeside = 256;         // and where many tokens are compared
constexpr int64_t kLargest = 40;                 // logits of each that are compared
// The errors of the largest logits are close to normal, but not around zero: a product is among the largest also because its error went up. Five of their own
// deviations above their mean is one in three million, and a quarter above the largest seen allows for longer tails.
constexpr double kDeviations = 5, kMargin = 1.25;
constexpr uint64_t kTried = 32;           // screened tokens after which it has to have paid
constexpr double kWorth = 0.9;            // of the exact head's bytes
constexpr int64_t kPlaneRows = 512;       // made at once
constexpr int64_t kAtMostOneIn = 10'000;  // checked positions may differ

// Whether the k largest of the exact logits are the k largest of the others, to the bit. Those of the screened head that are there have the exact head's bits by
// contract; one that is larger than it should be would be among them.
bool same_largest(std::span<const float> exact, std::span<const float> screened, int64_t k, std::vector<float>* order) {
  order->assign(exact.begin(), exact.end());
  std::nth_element(order->begin(), order->begin() + k - 1, order->end(), std::greater<>());
  const float floor = (*order)[static_cast<size_t>(k - 1)];
  for (size_t i = 0; i < exact.size(); ++i)
    if (std::max(exact[i], screened[i]) >= floor && exact[i] != screened[i]) return false;
  return true;
}

}  // namespace

bool HeadErrors::enough() const { return positions >= kEnough; }
bool HeadErrors::trusted() const { return (checked - same) * kAtMostOneIn <= checked; }

double HeadErrors::z() const {
  const auto n = static_cast<double>(std::max<int64_t>(samples, 1));
  const double mean = sum / n, deviation = std::sqrt(std::max(squares / n - mean * mean, 0.0));
  return std::max({mean + kDeviations * deviation, kMargin * largest, 1.0});
}

void Engine::Impl::shape_plane() {
  const Weight& head = model->output;
  screen.plane = {};
  screen.plane.name = "head plane";
  screen.plane.dtype = DType::i32;
  screen.plane.rows = head.rows;
  screen.plane.cols = static_cast<int64_t>(plane_row_bytes(head.cols) / sizeof(int32_t));
  screen.plane.bytes = static_cast<uint64_t>(head.rows) * plane_row_bytes(head.cols);
  screen.mean = {};
  screen.mean.name = "head mean";
  screen.mean.rows = 1;
  screen.mean.cols = head.cols;
  screen.mean.bytes = static_cast<uint64_t>(head.cols) * sizeof(float);
  screen.k = 1;
}

Result<> Engine::Impl::make_plane() {
  const int64_t width = model->output.cols, vocabulary = model->output.rows;
  const size_t d = device_for(SegmentKind::head, -1);
  const auto estimate = device(d).estimate(screened_head_segment(*model, screen.plane, screen.mean, 1, 0).view());
  if (!estimate || !device(d).reads_host_memory()) {
    screen.why_not = device(d).name() + ": " + (estimate ? std::string("has memory of its own") : estimate.error().message);
    plan.notes.push_back("the exact head is used: " + screen.why_not);
    return {};
  }
  // Rows of the head as f32 come from its own device, as rows of an embedding do.
  const Segment rows_of = embed_segment(*model, model->output, kPlaneRows);
  FTH_ASSIGN_OR_RETURN(const Buffer* const head, weight(d, model->output));
  FTH_ASSIGN_OR_RETURN(const fth_estimate wants, device(d).estimate(rows_of.view()));
  const std::vector<fth_binding> bound{head->whole()};
  FTH_ASSIGN_OR_RETURN(const Executable read, device(d).compile(rows_of.view(), bound));
  const uint64_t ids_bytes = kPlaneRows * sizeof(int32_t), values_bytes = static_cast<uint64_t>(kPlaneRows * width) * sizeof(float);
  FTH_ASSIGN_OR_RETURN(const HostBlock scratch, HostBlock::allocate(ids_bytes + values_bytes + wants.workspace_bytes, "head plane"));
  FTH_ASSIGN_OR_RETURN(const Buffer buffer, device(d).import_host(scratch.data(), scratch.bytes()));
  auto* const ids = reinterpret_cast<int32_t*>(scratch.data());
  auto* const values = reinterpret_cast<float*>(scratch.data() + ids_bytes);
  std::vector<fth_binding> bindings{buffer.at(0, ids_bytes), buffer.at(ids_bytes, values_bytes)};
  if (wants.workspace_bytes > 0) bindings.push_back(buffer.at(ids_bytes + values_bytes, wants.workspace_bytes));
  const auto read_rows = [&](int64_t first, int64_t step, int64_t n) {
    for (int64_t i = 0; i < n; ++i) ids[i] = static_cast<int32_t>(first + i * step);
    return read.run(bindings, std::array<int64_t, FTH_SCALAR_COUNT>{n, 0, 0});
  };

  FTH_ASSIGN_OR_RETURN(screen.memory, HostBlock::allocate(screen.data_bytes(), "head plane"));
  auto* const plane = screen.memory.data();
  auto* const mean = reinterpret_cast<float*>(screen.memory.data() + screen.plane.bytes);
  // Of some rows, evenly spread: whatever is subtracted here is added again by the op.
  const int64_t sampled = std::min<int64_t>(kPlaneRows, vocabulary);
  FTH_RETURN_IF_ERROR(read_rows(0, vocabulary / sampled, sampled));
  for (int64_t r = 0; r < sampled; ++r)
    for (int64_t i = 0; i < width; ++i) mean[i] += values[r * width + i] / static_cast<float>(sampled);
  struct Part {
    float* values;
    const float* mean;
    std::byte* rows;
    int64_t n, width;
  };
  constexpr int64_t kRowsEach = 16;
  const auto encode = [](void* arg, uint32_t item) {
    const Part& p = *static_cast<const Part*>(arg);
    for (int64_t r = item * kRowsEach; r < std::min(p.n, (item + 1) * kRowsEach); ++r) {
      float* const x = p.values + r * p.width;
      for (int64_t i = 0; i < p.width; ++i) x[i] -= p.mean[i];
      plane_rotate(x, p.width);
      plane_encode(x, p.width, p.rows + static_cast<uint64_t>(r) * plane_row_bytes(p.width));
    }
  };
  for (int64_t first = 0; first < vocabulary; first += kPlaneRows) {
    const int64_t n = std::min(kPlaneRows, vocabulary - first);
    FTH_RETURN_IF_ERROR(read_rows(first, 1, n));
    Part part{values, mean, plane + static_cast<uint64_t>(first) * plane_row_bytes(width), n, width};
    registry->pool().parallel_for(static_cast<uint32_t>((n + kRowsEach - 1) / kRowsEach), encode, &part);
    if (options.on_load) options.on_load(static_cast<uint64_t>(first + n) * plane_row_bytes(width), screen.plane.bytes);
  }
  screen.plane.data = plane;
  screen.mean.data = screen.memory.data() + screen.plane.bytes;
  screen.ready = true;
  return {};
}

bool Engine::Impl::trust_screen() {
  const HeadErrors& e = screen.errors;
  if (e.trusted()) return true;
  screen.ready = false;
  screen.why_not = "the screened one had other largest logits in " + std::to_string(e.checked - e.same) + " of " +
                   std::to_string(e.checked) + " checked tokens; 1 in " + std::to_string(kAtMostOneIn) + " is allowed";
  return false;
}

void Engine::Impl::screen_for(int64_t k) {
  const double z = screen.errors.z();
  if (screen.k == k && screen.z == z) return;
  screen.k = k;
  screen.z = z;
  compiled[compiled_at(SegmentKind::head, -1, 1, Variant::screened)].reset();
}

std::string Engine::screened_head() const {
  const ScreenedHead& s = impl_->screen;
  if (impl_->options.head != HeadMode::screened) return {};
  if (!s.ready) return "exact: " + (s.why_not.empty() ? std::string("nothing was computed yet") : s.why_not);
  std::string out = "2 bits a weight, " + format_bytes(s.plane.bytes);
  if (!s.errors.enough()) return out + "; exact until " + std::to_string(kEnough) + " positions have been compared";
  char z[32];
  std::snprintf(z, sizeof z, "%.1f", s.errors.z());
  out += std::string(", z ") + z + " from " + std::to_string(s.errors.positions) + " positions";
  if (s.errors.checked == 0) return out + ", not checked yet";
  return out + ", the exact head's largest logits in " + std::to_string(s.errors.same) + " of " + std::to_string(s.errors.checked) +
         " checked tokens";
}

const HeadErrors& Engine::head_errors() const { return impl_->screen.errors; }
void Engine::set_head_errors(const HeadErrors& errors) {
  impl_->screen.errors = errors;
  impl_->trust_screen();
}

Result<> SegmentRunner::head_rows(int64_t first_row, int64_t rows, Variant variant) {
  first_row_ = first_row;
  n_rows_ = rows;
  FTH_RETURN_IF_ERROR(submit(SegmentKind::head, -1, variant));
  return fetch_to_host(Port::logits);
}

// Runs the exact head over some rows and books how far the estimates of their largest logits are off.
Result<> SegmentRunner::measure_head(int64_t first_row, int64_t rows) {
  ScreenedHead& screen = e_.screen;
  HeadErrors& errors = screen.errors;
  FTH_RETURN_IF_ERROR(head_rows(first_row, rows, Variant::norms));
  FTH_RETURN_IF_ERROR(fetch_to_host(Port::norm));
  const int64_t width = config_.n_embd, vocabulary = config_.n_vocab, largest = std::min(kLargest, vocabulary);
  const auto* const mean = reinterpret_cast<const float*>(screen.mean.data);
  std::vector<float> rotated(static_cast<size_t>(width));
  std::vector<int8_t> q(static_cast<size_t>(plane_columns(width)));
  std::vector<int32_t> order(static_cast<size_t>(vocabulary));
  for (int64_t row = 0; row < rows; ++row) {
    const float *const x = m_.host<float>(Port::norm) + row * width, *const logits = m_.host<float>(Port::logits) + row * vocabulary;
    if (std::any_of(logits, logits + vocabulary, [](float v) { return !std::isfinite(v); })) continue;  // the sampler's to report
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + largest - 1, order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    std::copy_n(x, width, rotated.data());
    plane_rotate(rotated.data(), width);
    const PlaneInput in = plane_quantize(rotated.data(), width, q.data());
    double base = 0;
    for (int64_t i = 0; i < width; ++i) base += static_cast<double>(x[i]) * static_cast<double>(mean[i]);
    ++errors.positions;
    for (int64_t i = 0; i < largest; ++i) {
      const std::byte* const at = screen.plane.data + static_cast<uint64_t>(order[static_cast<size_t>(i)]) * plane_row_bytes(width);
      const PlaneRow plane = plane_row(at);
      int32_t sum = 0;
      for (int64_t c = 0; c < width; ++c) {
        const int64_t in_group = c % kPlaneGroup;
        const auto codes = std::to_integer<int>(
            at[kPlaneRowHead + static_cast<uint64_t>(c / kPlaneGroup) * kPlaneGroupBytes + static_cast<uint64_t>(in_group % 32)]);
        sum += (codes >> (2 * (in_group / 32)) & 3) * q[static_cast<size_t>(c)];
      }
      const double deviation = static_cast<double>(plane.residual) * static_cast<double>(in.norm);
      if (!(deviation > 0)) continue;
      const double z =
          (static_cast<double>(logits[order[static_cast<size_t>(i)]]) - base - static_cast<double>(plane_product(plane, in, sum))) /
          deviation;
      ++errors.samples;
      errors.sum += z;
      errors.squares += z * z;
      errors.largest = std::max(errors.largest, z);
    }
  }
  return {};
}

Result<> SegmentRunner::wanted_head(int64_t k) {
  ScreenedHead& screen = e_.screen;
  HeadStats& stats = s_.stats.head;
  if (!screen.errors.enough()) {
    for (int64_t row = std::max<int64_t>(0, n_ - kMeasured); row < n_ - 1; row += ScreenedHead::kMeasuredRows)
      FTH_RETURN_IF_ERROR(measure_head(row, std::min(ScreenedHead::kMeasuredRows, n_ - 1 - row)));
    ++stats.exact;
    return measure_head(n_ - 1, 1);  // row 0 of the logits is the last position's
  }
  e_.screen_for(k);
  FTH_RETURN_IF_ERROR(head_rows(n_ - 1, 1, Variant::screened));
  const float* const logits = m_.host<float>(Port::logits);
  const auto rows =
      static_cast<uint64_t>(config_.n_vocab - std::count(logits, logits + config_.n_vocab, -std::numeric_limits<float>::infinity()));
  const uint64_t row_size = e_.model->output.bytes / static_cast<uint64_t>(config_.n_vocab);
  ++stats.screened;
  stats.rows += rows;
  stats.all_rows += static_cast<uint64_t>(config_.n_vocab);
  bytes_ += rows * row_size;
  s_.times[{e_.device_for(SegmentKind::head, -1), SegmentKind::head}].bytes += rows * row_size;
  screen.rows += rows;
  const bool check = screen.check_now();
  if (++screen.tokens % kTried == 0) {
    const double read = static_cast<double>(screen.plane.bytes * kTried + std::exchange(screen.rows, 0) * row_size);
    if (read > kWorth * static_cast<double>(e_.model->output.bytes * kTried)) {
      screen.ready = false;
      screen.why_not = "too many rows could not be told apart by 2 bits a weight";
    }
  }
  if (!check) return {};
  // The logits that stay are the exact ones: this token is right whatever comes of the check.
  const std::vector<float> screened(logits, logits + config_.n_vocab);
  FTH_RETURN_IF_ERROR(measure_head(n_ - 1, 1));  // z goes on learning
  std::vector<float> order;
  ++stats.checked;
  ++screen.errors.checked;
  screen.errors.same += same_largest({logits, screened.size()}, screened, k, &order);
  e_.trust_screen();
  return {};
}

Result<> compare_head_rows(Session::Impl& session, std::span<const int32_t> ids, int64_t pos, int64_t first_row, int64_t rows,
                           const float* exact, int64_t k, HeadAgreement* sum) {
  class Heads : public SegmentRunner {
   public:
    using SegmentRunner::SegmentRunner;
    Result<> run(int64_t row0, int64_t n, const float* logits, int64_t wanted, HeadAgreement* out) {
      HeadErrors& errors = e_.screen.errors;
      const auto vocabulary = static_cast<size_t>(config_.n_vocab);
      const std::vector<float> all(logits, logits + static_cast<size_t>(n) * vocabulary);  // the other ones go to the same place
      const bool enough = errors.enough();
      if (errors.positions < kMeasuredBeside)
        for (int64_t row = 0; row < n; row += ScreenedHead::kMeasuredRows)
          FTH_RETURN_IF_ERROR(measure_head(row0 + row, std::min(ScreenedHead::kMeasuredRows, n - row)));
      if (!enough) return {};
      std::vector<float> order;
      for (const int64_t k : {int64_t{1}, wanted}) {
        e_.screen_for(k);
        for (int64_t row = 0; row < n; ++row) {
          FTH_RETURN_IF_ERROR(head_rows(row0 + row, 1, Variant::screened));
          const std::span<const float> screened(m_.host<float>(Port::logits), vocabulary);
          const bool same = same_largest(std::span(all).subspan(static_cast<size_t>(row) * vocabulary, vocabulary), screened, k, &order);
          (k == 1 ? out->same_first : out->same_largest) += same;
          ++errors.checked;
          errors.same += same;
          if (k == 1) {
            ++out->positions;
            const auto skipped = std::count(screened.begin(), screened.end(), -std::numeric_limits<float>::infinity());
            out->share += 1 - static_cast<double>(skipped) / static_cast<double>(vocabulary);
          }
          if (!same) FTH_RETURN_IF_ERROR(measure_head(row0 + row, 1));  // what was missed raises z
        }
      }
      return {};
    }
  };
  return Heads(session, session.memory, ids, pos).run(first_row, rows, exact, k, sum);
}

Result<> run_head_again(Session::Impl& session, int64_t k) {
  class Head : public SegmentRunner {
   public:
    using SegmentRunner::SegmentRunner;
    Result<> run(int64_t wanted) {
      if (e_.screens(wanted)) return wanted_head(wanted);
      first_row_ = 0;
      n_rows_ = 1;
      FTH_RETURN_IF_ERROR(submit(SegmentKind::head, -1));
      return fetch_to_host(Port::logits);
    }
  };
  const auto past = static_cast<int64_t>(session.tokens.size());
  Head head(session, session.memory, std::span<const int32_t>(session.tokens).last(1), past - 1);
  return head.run(k);
}

}  // namespace fth
