// Speed of the kernel tables: GB/s of weights read and GOP/s (a multiplication and an addition are two), by type, columns and working set.
//   kernels_bench --benchmark_filter='(matmul|interleaved)/avx2/q4_0/.*/dram'
//   kernels_bench --benchmark_filter='(activity/avx2/q4_0|peak)' --benchmark_format=csv      dense, masked or gathered: what pays at which activity
// "l2" keeps 192 KiB of weights per thread hot, "dram" walks through 96 MiB; threads share the weights and split the rows.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "backends/cpu/kernels/kernels.h"
#include "core/base/dtype.h"

namespace fth::cpu {
namespace {

constexpr int64_t kK = 2560;

// Rows of arbitrary codes whose f16 and f32 fields are ordinary numbers: every 16-bit word below 0x3c00 is an f16 below 1, but f32 and
// bf16 weights are zeros and small numbers by the same token, which costs no kernel anything.
const std::vector<uint8_t>& weights(uint64_t bytes) {
  static std::map<uint64_t, std::vector<uint8_t>> cache;
  std::vector<uint8_t>& w = cache[bytes];
  if (w.empty()) {
    w.resize(bytes);
    std::mt19937 rng(1);
    std::vector<uint16_t> pattern(1 << 16);
    for (uint16_t& v : pattern) v = static_cast<uint16_t>(0x2000 + rng() % 0x1800);
    for (uint64_t at = 0; at < bytes; at += pattern.size() * 2)
      std::memcpy(w.data() + at, pattern.data(), std::min<uint64_t>(bytes - at, pattern.size() * 2));
  }
  return w;
}

std::vector<uint8_t> activations(const KernelTable& table, DType type, int64_t n_cols, uint64_t& row) {
  std::vector<float> x(static_cast<size_t>(kK));
  std::mt19937 rng(2);
  std::normal_distribution<float> normal;
  const bool quantised = type >= DType::q8_0;
  row = quantised ? q8_row_bytes(kK) : kK * 4;
  std::vector<uint8_t> act(row * static_cast<uint64_t>(n_cols));
  for (int64_t c = 0; c < n_cols; ++c) {
    for (float& v : x) v = normal(rng);
    uint8_t* out = act.data() + row * static_cast<uint64_t>(c);
    if (quantised) {
      table.quantize_q8(kK, x.data(), out);
    } else {
      std::memcpy(out, x.data(), row);
    }
  }
  return act;
}

void matmul(benchmark::State& state, const KernelTable* table, DType type, bool interleaved, int64_t n_cols, uint64_t bytes) {
  const uint64_t row = row_bytes(type, kK);
  const int64_t all_rows = static_cast<int64_t>(bytes / row);
  uint64_t act_bytes = 0;
  const std::vector<uint8_t> act = activations(*table, type, n_cols, act_bytes);
  static const std::vector<uint8_t>* w = nullptr;
  if (state.thread_index() == 0) w = &weights(bytes);
  const auto product = (interleaved ? table->matmul_interleaved : table->matmul)[static_cast<size_t>(type)];
  // One call is at most 768 rows, as an expert's slice is; whole panels of 16.
  const int64_t slice = std::min<int64_t>(768, all_rows / state.threads() / 16 * 16);
  const int64_t own = all_rows / state.threads() / 16 * 16, first = own * state.thread_index(), last = first + own - slice;
  std::vector<float> dst(static_cast<size_t>(slice * n_cols));
  int64_t at = first;
  for (auto _ : state) {
    product({w->data() + static_cast<uint64_t>(at) * row, row, act.data(), act_bytes, dst.data(), slice, kK, slice, n_cols, nullptr});
    benchmark::DoNotOptimize(dst.data());
    at = at + slice > last ? first : at + slice;
  }
  const double calls = static_cast<double>(state.iterations()) * static_cast<double>(slice);
  state.counters["GB/s"] = benchmark::Counter(calls * static_cast<double>(row) * 1e-9, benchmark::Counter::kIsRate);
  state.counters["GOP/s"] = benchmark::Counter(calls * 2e-9 * static_cast<double>(kK * n_cols), benchmark::Counter::kIsRate);
}

// What dead neurons save, as Flash-LLM asks it: an expert's up matrix (kFf neurons of kK values, rows of dead neurons are not wanted) and its down matrix
// (kK outputs of kFf neurons, dead ones are zeros), of 384 MiB of experts walked through, with random neurons alive: a tenth of that is more than a cache.
//   dense     everything is read and multiplied; down row-major
//   masked    up: blocks of 8 rows, those without a live one left out; down: a row per neuron, added where the neuron is not zero
//   gathered  up: a list of the live rows; down: neuron-major, only live neurons read. What the cpu backend does for a token
enum class Form { dense, masked, gathered };
constexpr int64_t kFf = 768;

void activity(benchmark::State& state, const KernelTable* table, DType type, bool up, Form form, int percent) {
  constexpr size_t kMasks = 16;
  const uint64_t up_row = row_bytes(type, kK), expert = up_row * kFf;  // down has as many bytes
  const std::vector<uint8_t>& w = weights(384 << 20);
  const uint64_t n_experts = w.size() / expert;
  std::mt19937 rng(3);
  std::vector<std::vector<int32_t>> live(kMasks);
  std::vector<std::vector<float>> hidden(kMasks, std::vector<float>(kFf));
  std::vector<std::vector<uint8_t>> hidden_q8(kMasks, std::vector<uint8_t>(q8_row_bytes(kFf)));
  for (size_t m = 0; m < kMasks; ++m) {
    for (int32_t f = 0; f < kFf; ++f) {
      if (static_cast<int>(rng() % 100) >= percent) continue;
      live[m].push_back(f);
      hidden[m][static_cast<size_t>(f)] = 1.0f;
    }
    table->quantize_q8(kFf, hidden[m].data(), hidden_q8[m].data());
  }
  uint64_t act_bytes = 0;
  const std::vector<uint8_t> act = activations(*table, type, 1, act_bytes);
  std::vector<float> dst(static_cast<size_t>(kK));
  const auto product = table->matmul[static_cast<size_t>(type)];
  uint64_t e = 0, n_live = 0;
  size_t m = 0;
  for (auto _ : state) {
    const uint8_t* const p = w.data() + e * expert;
    if (up) {
      MatmulArgs args{p, up_row, act.data(), act_bytes, dst.data(), kFf, kK, kFf, 1, nullptr};
      if (form == Form::dense) product(args);
      if (form == Form::gathered && !live[m].empty()) {
        args.n_rows = static_cast<int64_t>(live[m].size());
        args.rows = live[m].data();
        product(args);
      }
      if (form == Form::masked) {
        args.n_rows = 8;
        for (size_t i = 0; i < live[m].size();) {
          const int32_t block = live[m][i] / 8;
          args.weights = p + static_cast<uint64_t>(block) * 8 * up_row;
          args.dst = dst.data() + block * 8;
          product(args);
          while (i < live[m].size() && live[m][i] / 8 == block) ++i;
        }
      }
    } else if (form == Form::dense) {
      product({p, row_bytes(type, kFf), hidden_q8[m].data(), q8_row_bytes(kFf), dst.data(), kK, kFf, kK, 1, nullptr});
    } else if (form == Form::masked) {
      std::fill(dst.begin(), dst.end(), 0.0f);
      for (size_t f = 0; f < hidden[m].size(); ++f)
        if (hidden[m][f] != 0.0f) table->axpy[static_cast<size_t>(type)](kK, hidden[m][f], p + f * up_row, dst.data());
    } else {
      table->matmul_by_neuron[static_cast<size_t>(type)]({p, kK, 0, kK, hidden_q8[m].data(), q8_row_bytes(kFf), dst.data(), kK, kFf, 1});
    }
    benchmark::DoNotOptimize(dst.data());
    n_live += live[m].size();
    e = e + 1 < n_experts ? e + 1 : 0;
    m = (m + 1) % kMasks;
  }
  const auto rate = [&](double amount) { return benchmark::Counter(amount, benchmark::Counter::kIsRate); };
  state.counters["live %"] = 100.0 * static_cast<double>(n_live) / (static_cast<double>(state.iterations()) * static_cast<double>(kFf));
  state.counters["live GB/s"] = rate(static_cast<double>(n_live * up_row) * 1e-9);
  state.counters["live GOP/s"] = rate(static_cast<double>(n_live) * 2e-9 * static_cast<double>(kK));
}

// The limit of the figures above: 96 MiB read by one thread, added up.
void peak_read(benchmark::State& state) {
  const std::vector<uint8_t>& w = weights(96 << 20);
  for (auto _ : state) {
    uint64_t sum[8] = {};
    for (size_t at = 0; at + 64 <= w.size(); at += 64) {
      uint64_t line[8];
      std::memcpy(line, w.data() + at, sizeof line);
      for (size_t i = 0; i < 8; ++i) sum[i] += line[i];
    }
    benchmark::DoNotOptimize(sum);
  }
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(w.size()) * 1e-9, benchmark::Counter::kIsRate);
}

void axpy(benchmark::State& state, const KernelTable* table, DType type) {
  const uint64_t row = row_bytes(type, kK);
  const std::vector<uint8_t>& w = weights(192 << 10);
  const int64_t n_rows = static_cast<int64_t>(w.size() / row);
  std::vector<float> y(static_cast<size_t>(kK));
  int64_t r = 0;
  for (auto _ : state) {
    table->axpy[static_cast<size_t>(type)](kK, 1e-3f, w.data() + static_cast<uint64_t>(r) * row, y.data());
    r = r + 1 < n_rows ? r + 1 : 0;
    benchmark::DoNotOptimize(y.data());
  }
  state.counters["GB/s"] =
      benchmark::Counter(static_cast<double>(state.iterations()) * static_cast<double>(row) * 1e-9, benchmark::Counter::kIsRate);
}

// n_tokens tokens at the end of a context of n_pos.
void attention(benchmark::State& state, const KernelTable* table, DType type, int64_t n_pos, int64_t n_q, int64_t n_tokens) {
  constexpr int64_t kHeadDim = 128;
  const uint64_t cell = row_bytes(type, kHeadDim);
  const std::vector<uint8_t>& kv = weights(cell * static_cast<uint64_t>(n_pos));
  const auto* const page = reinterpret_cast<const std::byte*>(kv.data());
  std::vector<float> q(static_cast<size_t>(n_tokens * n_q * kHeadDim), 0.01f), y(q.size());
  const AttentionArgs args{.q = q.data(),
                           .k = &page,
                           .v = &page,
                           .head_offset = 0,
                           .cell_bytes = cell,
                           .page_cells = n_pos,
                           .y = y.data(),
                           .stride = n_q * kHeadDim,
                           .n_q = n_q,
                           .head_dim = kHeadDim,
                           .pos = n_pos - n_tokens,
                           .n_tokens = n_tokens,
                           .window = 0,
                           .n_cells = n_pos,
                           .scale = 0.088f};
  const auto attend = type == DType::f16 ? table->attention_f16 : type == DType::f32 ? table->attention_f32 : table->attention_q8_0;
  for (auto _ : state) {
    attend(args);
    benchmark::DoNotOptimize(y.data());
  }
  const double seen = static_cast<double>(n_tokens * (2 * n_pos - n_tokens + 1)) / 2;
  state.counters["GFLOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations() * n_q * kHeadDim) * 4e-9 * seen, benchmark::Counter::kIsRate);
}

void elementwise(benchmark::State& state, const KernelTable* table, int which) {
  std::vector<float> x(static_cast<size_t>(kK), 0.5f), y(x.size()), z(x.size(), 0.25f);
  std::vector<uint8_t> row(q8_row_bytes(kK));
  for (auto _ : state) {
    if (which == 0) table->quantize_q8(kK, x.data(), row.data());
    if (which == 1) table->rms_norm(kK, x.data(), z.data(), 1e-6f, y.data());
    if (which == 2) table->silu_mul(kK, x.data(), z.data(), y.data());
    benchmark::DoNotOptimize(y.data());
    benchmark::DoNotOptimize(row.data());
  }
}

void add_all() {
  benchmark::RegisterBenchmark("peak/read", peak_read)->UseRealTime()->Unit(benchmark::kMicrosecond);
  const KernelChoice* choices = nullptr;
  const size_t n = kernel_choices(&choices);
  for (size_t i = 0; i < n; ++i) {
    if (choices[i].refusal) continue;
    const KernelTable* t = choices[i].table;
    const std::string name = t->name;
    for (size_t type = 0; type < kWeightTypes; ++type) {
      const DType d = static_cast<DType>(type);
      const std::string stem = name + "/" + std::string(fth::name(d));
      for (const int64_t cols : {1, 2, 3, 4, 8, 32, 128})
        for (const auto& [set, bytes] : {std::pair<const char*, uint64_t>{"l2", 192 << 10}, {"dram", 96 << 20}})
          for (const int threads : {1, 2}) {
            if (cols > 8 && std::strcmp(set, "l2") == 0 && threads == 2) continue;
            for (const bool interleaved : {false, true}) {
              if (interleaved && !t->matmul_interleaved[type]) continue;
              benchmark::RegisterBenchmark(
                  ((interleaved ? "interleaved/" : "matmul/") + stem + "/cols:" + std::to_string(cols) + "/" + set).c_str(), matmul, t, d,
                  interleaved, cols, std::strcmp(set, "l2") == 0 ? bytes * static_cast<uint64_t>(threads) : bytes)
                  ->Threads(threads)
                  ->UseRealTime()
                  ->Unit(benchmark::kMicrosecond);
            }
          }
      benchmark::RegisterBenchmark(("axpy/" + stem).c_str(), axpy, t, d)->UseRealTime();
    }
    for (const DType type : {DType::q4_0, DType::q8_0})
      for (const bool up : {true, false})
        for (const auto& [form, form_name] : {std::pair{Form::dense, "dense"}, {Form::masked, "masked"}, {Form::gathered, "gathered"}}) {
          if (!up && form == Form::gathered && !t->matmul_by_neuron[static_cast<size_t>(type)]) continue;
          for (int percent = 0; percent <= 100; percent += 10)
            benchmark::RegisterBenchmark(("activity/" + name + "/" + std::string(fth::name(type)) + (up ? "/up/" : "/down/") + form_name +
                                          "/" + std::to_string(percent))
                                             .c_str(),
                                         activity, t, type, up, form, percent)
                ->UseRealTime()
                ->Unit(benchmark::kMicrosecond);
        }
    for (const auto& [n_q, n_tokens] : {std::pair{1, 1}, {2, 1}, {6, 1}, {7, 1}, {6, 8}, {7, 6}})
      for (const DType type : {DType::f32, DType::f16, DType::q8_0})
        benchmark::RegisterBenchmark(("attention/" + name + "/" + std::string(fth::name(type)) + "/n_q:" + std::to_string(n_q) +
                                      "/tokens:" + std::to_string(n_tokens))
                                         .c_str(),
                                     attention, t, type, 1024, n_q, n_tokens);
    const char* const names[] = {"quantize_q8/", "rms_norm/", "silu_mul/"};
    for (int which = 0; which < 3; ++which) benchmark::RegisterBenchmark((names[which] + name).c_str(), elementwise, t, which);
  }
}

}  // namespace
}  // namespace fth::cpu

int main(int argc, char** argv) {
  fth::cpu::add_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
