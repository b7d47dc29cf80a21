// Speed of the kernel tables: GB/s of weights read and GOP/s (a multiplication and an addition are two), by type, columns and working set.
//   kernels_bench --benchmark_filter='matmul/avx2/q4_0/.*/dram'
// "l2" keeps 192 KiB of weights per thread hot, "dram" walks through 96 MiB; threads share the weights and split the rows.
#include <benchmark/benchmark.h>

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

void matmul(benchmark::State& state, const KernelTable* table, DType type, int64_t n_cols, uint64_t bytes) {
  const uint64_t row = row_bytes(type, kK);
  const int64_t all_rows = static_cast<int64_t>(bytes / row);
  uint64_t act_bytes = 0;
  const std::vector<uint8_t> act = activations(*table, type, n_cols, act_bytes);
  static const std::vector<uint8_t>* w = nullptr;
  if (state.thread_index() == 0) w = &weights(bytes);
  // One call is at most 768 rows, as an expert's slice is.
  const int64_t slice = std::min<int64_t>(768, all_rows / state.threads());
  const int64_t first = all_rows / state.threads() * state.thread_index(), last = first + all_rows / state.threads() - slice;
  std::vector<float> dst(static_cast<size_t>(slice * n_cols));
  int64_t at = first;
  for (auto _ : state) {
    table->matmul[static_cast<size_t>(type)](
        {w->data() + static_cast<uint64_t>(at) * row, row, act.data(), act_bytes, dst.data(), slice, kK, slice, n_cols, nullptr});
    benchmark::DoNotOptimize(dst.data());
    at = at + slice > last ? first : at + slice;
  }
  const double calls = static_cast<double>(state.iterations()) * static_cast<double>(slice);
  state.counters["GB/s"] = benchmark::Counter(calls * static_cast<double>(row) * 1e-9, benchmark::Counter::kIsRate);
  state.counters["GOP/s"] = benchmark::Counter(calls * 2e-9 * static_cast<double>(kK * n_cols), benchmark::Counter::kIsRate);
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
            benchmark::RegisterBenchmark(("matmul/" + stem + "/cols:" + std::to_string(cols) + "/" + set).c_str(), matmul, t, d, cols,
                                         std::strcmp(set, "l2") == 0 ? bytes * static_cast<uint64_t>(threads) : bytes)
                ->Threads(threads)
                ->UseRealTime()
                ->Unit(benchmark::kMicrosecond);
          }
      benchmark::RegisterBenchmark(("axpy/" + stem).c_str(), axpy, t, d)->UseRealTime();
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
