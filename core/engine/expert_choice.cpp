// Times one expert on each device that could run it and chooses for each bucket.
#include "core/engine/expert_choice.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "core/engine/engine_impl.h"
#include "core/model/neuron_major.h"

namespace fth {
namespace {

constexpr double kWorthLeaving = 0.95;
constexpr int64_t kMostRows = kTimedRows[std::size(kTimedRows) - 1];
constexpr double kEnoughSeconds = 1e-3;
constexpr int kLeastRuns = 5, kMostRuns = 50;

// The first expert of the first layer, ready to run with up to kMostRows rows on one device.
class TimedExpert {
 public:
  static Result<TimedExpert> make(Device& device, const Model& model) {
    TimedExpert t;
    const Segment s = experts_segment(model, 0, kMostRows, Variant::plain);
    FTH_ASSIGN_OR_RETURN(const fth_estimate estimate, device.estimate(s.view()));
    FTH_ASSIGN_OR_RETURN(t.executable_, device.compile(s.view(), {}));
    const Layer& l = model.layers[0];
    const int64_t k = model.config.top_k;
    // Weights of the mapping; a device only reads them. A down matrix that will be put into another order is timed in that order.
    for (const Weight* w : {&l.gate, &l.up, &l.down}) {
      const std::byte* data = w->data;
      if (w == &l.down && l.down_layout == DownLayout::neuron_major && !model.config.packed) {
        FTH_ASSIGN_OR_RETURN(t.reordered_, HostBlock::allocate(w->expert_bytes(), "an expert's down matrix"));
        if (!to_neuron_major(w->dtype, w->rows, w->cols, data, t.reordered_.data()))
          return fail(Code::internal, w->name + ": cannot be put into neuron-major order");
        data = t.reordered_.data();
      }
      FTH_ASSIGN_OR_RETURN(t.matrices_[static_cast<size_t>(t.n_matrices_++)],
                           device.import_host(const_cast<std::byte*>(data), w->expert_bytes()));
    }
    size_t matrix = 0, port = 0;
    for (const fth_tensor& tensor : s.tensors) {
      const Port p = s.ports[port++];
      if (tensor.role == FTH_ROLE_SLOTS) {
        t.bindings_.push_back(t.matrices_[matrix++].whole());
        t.bindings_.insert(t.bindings_.end(), static_cast<size_t>(tensor.dims[0] - 1), fth_binding{});
        continue;
      }
      int64_t values = 1;
      for (uint32_t i = 0; i < tensor.rank; ++i) values *= tensor.dims[i];
      FTH_ASSIGN_OR_RETURN(Buffer buffer, device.alloc(static_cast<uint64_t>(values) * sizeof(float)));
      if (p == Port::h) FTH_RETURN_IF_ERROR(fill(buffer, values));
      if (p == Port::slot_begin) t.begin_ = t.buffers_.size();
      if (p == Port::rows) {
        std::vector<int32_t> rows(static_cast<size_t>(values));
        for (int64_t i = 0; i < kMostRows; ++i) rows[static_cast<size_t>(i)] = static_cast<int32_t>(i * k);
        FTH_RETURN_IF_ERROR(buffer.write(0, rows.data(), rows.size() * sizeof(int32_t)));
      }
      t.bindings_.push_back(buffer.whole());
      t.buffers_.push_back(std::move(buffer));
    }
    if (estimate.workspace_bytes > 0) {
      FTH_ASSIGN_OR_RETURN(Buffer workspace, device.alloc(estimate.workspace_bytes));
      t.bindings_.push_back(workspace.whole());
      t.buffers_.push_back(std::move(workspace));
    }
    return t;
  }

  Result<double> run(int64_t rows) const {
    const int32_t begin[2] = {0, static_cast<int32_t>(rows)};
    FTH_RETURN_IF_ERROR(buffers_[begin_].write(0, begin, sizeof begin));
    const int64_t scalars[FTH_SCALAR_COUNT] = {kMostRows, 0, 1};
    const auto start = std::chrono::steady_clock::now();
    FTH_RETURN_IF_ERROR(executable_.run(bindings_, scalars));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  // Numbers like those of a normalised stream, the same every time.
  static Result<> fill(const Buffer& buffer, int64_t n) {
    std::vector<float> x(static_cast<size_t>(n));
    uint64_t state = 0x2545f4914f6cdd1du;
    for (float& v : x) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      v = static_cast<float>(static_cast<int32_t>(state >> 33) - (1 << 30)) * 0x1p-30f;
    }
    return buffer.write(0, x.data(), x.size() * sizeof(float));
  }

  Executable executable_;
  HostBlock reordered_;  // outlives its buffer
  std::array<Buffer, 3> matrices_;
  int64_t n_matrices_ = 0;
  std::vector<Buffer> buffers_;
  std::vector<fth_binding> bindings_;
  size_t begin_ = 0;
};

// The shortest of interleaved runs, so that a busy moment meets all candidates.
Result<std::vector<ExpertTimes>> time_experts(std::vector<TimedExpert>& experts) {
  std::vector<ExpertTimes> times;
  for (const int64_t rows : kTimedRows) {
    ExpertTimes t{rows, std::vector<double>(experts.size(), std::numeric_limits<double>::infinity())};
    double spent = 0;
    for (int i = 0; i < kMostRuns && (i < kLeastRuns || spent < kEnoughSeconds); ++i)
      for (size_t c = 0; c < experts.size(); ++c) {
        FTH_ASSIGN_OR_RETURN(const double seconds, experts[c].run(rows));
        t.seconds[c] = std::min(t.seconds[c], seconds);
        spent += seconds;
      }
    times.push_back(std::move(t));
  }
  // Fewer rows take no longer than more: where they did, the machine was busy.
  for (size_t i = times.size() - 1; i-- > 0;)
    for (size_t c = 0; c < experts.size(); ++c) times[i].seconds[c] = std::min(times[i].seconds[c], times[i + 1].seconds[c]);
  return times;
}

}  // namespace

double rows_per_expert(int64_t tokens, int64_t n_expert, int64_t top_k) {
  const auto n = static_cast<double>(tokens), k = static_cast<double>(top_k), all = static_cast<double>(n_expert);
  const double used = all * (1 - std::pow(1 - k / all, n));
  return std::max(1.0, n * k / std::max(1.0, used));
}

double seconds_for_rows(std::span<const ExpertTimes> times, size_t candidate, double rows) {
  for (size_t i = 0; i < times.size(); ++i) {
    const auto here = static_cast<double>(times[i].rows);
    if (rows > here) continue;
    if (i == 0) return times[0].seconds[candidate];
    const auto before = static_cast<double>(times[i - 1].rows);
    const double share = (rows - before) / (here - before);
    return times[i - 1].seconds[candidate] * (1 - share) + times[i].seconds[candidate] * share;
  }
  return times.back().seconds[candidate] * rows / static_cast<double>(times.back().rows);
}

double ExpertChoice::time_ratio(int64_t tokens) const {
  for (const ExpertBucket& b : buckets)
    if (b.tokens >= tokens) return b.seconds[0] > 0 ? b.seconds[b.chosen] / b.seconds[0] : 1;
  return 1;
}

size_t quickest(std::span<const double> seconds) {
  const auto best = static_cast<size_t>(std::min_element(seconds.begin(), seconds.end()) - seconds.begin());
  return seconds[best] < kWorthLeaving * seconds[0] ? best : 0;
}

Result<> Engine::Impl::choose_experts() {
  ExpertChoice& choice = expert_choice;
  choice = {};
  experts_on.fill(0);
  if (!model->config.is_sparse()) return {};
  const auto backend = [&](size_t d) { return std::string(device(d).api().name); };
  std::string refusal;  // of a device that would do, but for the order of the file's gates
  for (size_t d = 1; d < registry->devices().size(); ++d) {
    const bool fits = device(d).info().kind == FTH_KIND_CPU && device(d).reads_host_memory() && backend(d) != backend(0);
    // Slower at dense products is no reason: experts are timed here. What computes wrong or is a driver's software stays out.
    const DeviceEntry& entry = registry->devices()[d];
    if (!fits || entry.check.wrong || (device(d).info().flags & FTH_DEVICE_SOFTWARE) != 0) continue;
    bool takes_all = true;
    for (const int64_t bucket : kBuckets)
      for (const Variant v : {Variant::plain, Variant::gates, Variant::after_gates})
        if (const auto estimate = device(d).estimate(build(SegmentKind::experts, 0, bucket, v).view()); takes_all && !estimate) {
          takes_all = false;
          if (model->layers[0].gate.interleaved) refusal = device(d).name() + ": " + estimate.error().message;
        }
    if (takes_all && starts_on_cpu(d)) {
      choice.note = "experts stay on the CPU where it begins for another device";
      continue;
    }
    if (!takes_all || (!options.device.empty() && options.device != device(d).name())) continue;
    if (choice.candidates.empty()) choice.candidates.push_back(0);
    choice.candidates.push_back(d);
  }
  if (choice.candidates.empty() && choice.note.empty() && !refusal.empty()) choice.note = "experts stay on the CPU; " + refusal;
  if (choice.candidates.empty()) return {};
  for (const PlacementRule& rule : options.rules)
    for (int64_t layer = 0; layer < model->config.n_layer; ++layer)
      if (matches_pattern(rule.pattern, "layer." + std::to_string(layer) + ".experts")) {
        choice = {.candidates = {}, .times = {}, .buckets = {}, .note = "experts are where --place puts them"};
        return {};
      }

  const Layer& l = model->layers[0];
  std::string key = "experts " + std::to_string(l.gate.cols) + "x" + std::to_string(l.gate.rows) + " " + std::string(name(l.gate.dtype)) +
                    " " + std::string(name(l.up.dtype)) + " " + std::string(name(l.down.dtype)) + " order " +
                    std::to_string(static_cast<int>(l.down_layout)) + (l.gate.interleaved ? ", gates interleaved, " : ", ") +
                    std::to_string(registry->pool().n_threads()) + " threads";
  for (const size_t d : choice.candidates)
    key += "; " + device(d).name() + ", " + device(d).info().description + ", " + device(d).api().build;
  std::vector<double> flat;
  if (options.expert_times.load) flat = options.expert_times.load(key);
  const size_t n = choice.candidates.size(), wanted = std::size(kTimedRows) * n;
  const bool known = flat.size() == wanted && std::all_of(flat.begin(), flat.end(), [](double s) { return s > 0 && s < 1e6; });
  if (known) {
    for (size_t i = 0; i < std::size(kTimedRows); ++i)
      choice.times.push_back(
          {kTimedRows[i], {flat.begin() + static_cast<ptrdiff_t>(i * n), flat.begin() + static_cast<ptrdiff_t>((i + 1) * n)}});
    choice.note = "measured before";
  } else {
    const auto measured = [&]() -> Result<std::vector<ExpertTimes>> {
      std::vector<TimedExpert> experts;
      for (const size_t d : choice.candidates) {
        auto one = TimedExpert::make(device(d), *model);
        if (!one) return tl::unexpected<Error>(std::move(one).error().context(device(d).name()));
        experts.push_back(std::move(*one));
      }
      return time_experts(experts);
    }();
    if (!measured) {  // an optional device is no reason not to start
      choice = {
          .candidates = {}, .times = {}, .buckets = {}, .note = "experts stay on the CPU, timing them failed: " + measured.error().message};
      if (options.registry.log != nullptr) options.registry.log(options.registry.log_self, FTH_LOG_WARNING, choice.note.c_str());
      return {};
    }
    choice.times = *measured;
    choice.note = "measured now";
    flat.clear();
    for (const ExpertTimes& t : choice.times) flat.insert(flat.end(), t.seconds.begin(), t.seconds.end());
    if (options.expert_times.store) options.expert_times.store(key, flat);
  }
  for (size_t b = 0; b < std::size(kBuckets); ++b) {
    ExpertBucket bucket{kBuckets[b], rows_per_expert(kBuckets[b], model->config.n_expert, model->config.top_k), {}, 0};
    for (size_t c = 0; c < n; ++c) bucket.seconds.push_back(seconds_for_rows(choice.times, c, bucket.rows));
    bucket.chosen = options.device.empty() ? quickest(bucket.seconds) : 1;
    experts_on[b] = choice.candidates[bucket.chosen];
    choice.buckets.push_back(std::move(bucket));
  }
  if (!options.device.empty()) choice.note += "; --device " + options.device + " runs all of them";
  return {};
}

void Engine::Impl::add_expert_workspaces(std::vector<Arena>* fixed) {
  std::map<size_t, uint64_t> most;
  for (const ExpertBucket& bucket : expert_choice.buckets) {
    const size_t d = expert_choice.candidates[bucket.chosen];
    if (d == 0 || bucket.tokens > shapes.max_bucket) continue;
    for (int64_t layer = 0; layer < model->config.n_layer; ++layer)
      if (const Result<fth_estimate>& e = estimates_of(SegmentKind::experts, layer, bucket.tokens).by_device[d]; e)
        most[d] = std::max(most[d], e->workspace_bytes);
  }
  for (const auto& [d, bytes] : most) fixed->push_back({"workspace (" + device(d).name() + ")", "ram", bytes});
}

Result<const Buffer*> Engine::Impl::slots_on(size_t d) {
  if (d == 0) return &slots;
  const auto found = other_slots.find(d);
  if (found != other_slots.end()) return &found->second;
  const std::span<std::byte> memory = store->memory();
  FTH_ASSIGN_OR_RETURN(Buffer buffer, device(d).import_host(memory.data(), memory.size()));
  return &other_slots.emplace(d, std::move(buffer)).first->second;
}

const ExpertChoice& Engine::expert_choice() const { return impl_->expert_choice; }

}  // namespace fth
