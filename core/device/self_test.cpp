// The cases, the comparison, the timings.
#include "core/device/self_test.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <utility>
#include <vector>

#include "core/device/scratch_run.h"

namespace fth {
namespace {

using Clock = std::chrono::steady_clock;
constexpr uint64_t kSeed = 20250728, kSpread = uint64_t{24} << 20, kCopy = uint64_t{8} << 20;
constexpr double kTimingSeconds = 0.02, kSlower = 1.25;
constexpr int kTurns = 4;

struct Made {
  std::vector<fth_tensor> tensors;
  std::vector<fth_op> ops;
  uint16_t tensor(uint16_t role, std::initializer_list<int64_t> dims, uint16_t dtype = FTH_DTYPE_F32) {
    fth_tensor t{};
    t.role = role;
    t.dtype = dtype;
    for (const int64_t d : dims) t.dims[t.rank++] = d;
    tensors.push_back(t);
    return static_cast<uint16_t>(tensors.size() - 1);
  }
  uint16_t in(std::initializer_list<int64_t> dims) { return tensor(FTH_ROLE_INPUT, dims); }
  uint16_t out(std::initializer_list<int64_t> dims) { return tensor(FTH_ROLE_OUTPUT, dims); }
  uint16_t temp(std::initializer_list<int64_t> dims) { return tensor(FTH_ROLE_TEMP, dims); }
  void op(uint16_t kind, std::initializer_list<uint16_t> in, uint16_t to, std::initializer_list<double> attr = {}) {
    fth_op o{};
    o.kind = kind;
    std::fill(std::begin(o.in), std::end(o.in), static_cast<uint16_t>(FTH_NO_TENSOR));
    std::fill(std::begin(o.out), std::end(o.out), static_cast<uint16_t>(FTH_NO_TENSOR));
    for (const uint16_t i : in) o.in[o.n_in++] = i;
    o.out[o.n_out++] = to;
    std::copy(attr.begin(), attr.end(), o.attr);
    ops.push_back(o);
  }
  fth_segment view(const char* name) const {
    return {sizeof(fth_segment),
            static_cast<uint32_t>(tensors.size()),
            static_cast<uint32_t>(ops.size()),
            FTH_SCALAR_COUNT,
            name,
            tensors.data(),
            ops.data()};
  }
};

struct Run {
  int64_t n_tokens, pos;
};

struct TestCase {
  const char* name;
  Made made;
  std::vector<Run> runs;  // in order, on the same state
  double nmse;            // of the outputs of the last run against the CPU's
};

Made matmul(int64_t m, int64_t k, int64_t n, uint16_t type) {
  Made s;
  const uint16_t x = s.in({m, k}), w = s.tensor(FTH_ROLE_WEIGHT, {n, k}, type);
  s.op(FTH_OP_MATMUL, {x, w}, s.out({m, n}), {0});
  return s;
}

Made rms_norm(int64_t m, int64_t e) {
  Made s;
  const uint16_t x = s.in({m, e}), w = s.tensor(FTH_ROLE_WEIGHT, {e});
  s.op(FTH_OP_RMS_NORM, {x, w}, s.out({m, e}), {1e-6});
  return s;
}

Made rope(int64_t m, int64_t heads, int64_t dim) {
  Made s;
  const uint16_t x = s.in({m, heads * dim});
  s.op(FTH_OP_ROPE, {x}, s.out({m, heads * dim}),
       {static_cast<double>(heads), static_cast<double>(dim), 10000, static_cast<double>(dim), 0, 1});
  return s;
}

constexpr int64_t kHeads = 4, kKvHeads = 2, kDim = 64, kCells = 64;

void attend(Made& s, int64_t m, uint16_t q, uint16_t k, uint16_t v, uint16_t to) {
  const uint16_t k_cache = s.tensor(FTH_ROLE_STATE, {kCells, kKvHeads * kDim}, FTH_DTYPE_F16);
  const uint16_t v_cache = s.tensor(FTH_ROLE_STATE, {kCells, kKvHeads * kDim}, FTH_DTYPE_F16);
  s.op(FTH_OP_ATTENTION, {q, k, v, k_cache, v_cache}, to, {kHeads, kKvHeads, kDim, static_cast<double>(kCells - m + 1), 0.125});
}

Made attention(int64_t m) {
  Made s;
  const uint16_t q = s.in({m, kHeads * kDim}), k = s.in({m, kKvHeads * kDim}), v = s.in({m, kKvHeads * kDim});
  attend(s, m, q, k, v, s.out({m, kHeads * kDim}));
  return s;
}

// What a layer's attention is: norm, products, rotation, cache, output product, residual, norm.
Made attention_segment(int64_t m) {
  constexpr int64_t kWidth = 256;
  Made s;
  const uint16_t x = s.in({m, kWidth});
  const uint16_t normed = s.temp({m, kWidth});
  s.op(FTH_OP_RMS_NORM, {x, s.tensor(FTH_ROLE_WEIGHT, {kWidth})}, normed, {1e-6});
  const auto product = [&](uint16_t from, int64_t k, int64_t n) {
    const uint16_t to = s.temp({m, n});
    s.op(FTH_OP_MATMUL, {from, s.tensor(FTH_ROLE_WEIGHT, {n, k}, FTH_DTYPE_Q4_0)}, to, {0});
    return to;
  };
  const auto rotate = [&](uint16_t from, int64_t heads) {
    const uint16_t to = s.temp({m, heads * kDim});
    s.op(FTH_OP_ROPE, {from}, to, {static_cast<double>(heads), kDim, 1.5e6, kDim, 0, 1});
    return to;
  };
  const uint16_t q = rotate(product(normed, kWidth, kHeads * kDim), kHeads);
  const uint16_t k = rotate(product(normed, kWidth, kKvHeads * kDim), kKvHeads);
  const uint16_t v = product(normed, kWidth, kKvHeads * kDim), attended = s.temp({m, kHeads * kDim});
  attend(s, m, q, k, v, attended);
  const uint16_t y = s.out({m, kWidth});
  s.op(FTH_OP_ADD, {x, product(attended, kHeads * kDim, kWidth)}, y);
  s.op(FTH_OP_RMS_NORM, {y, s.tensor(FTH_ROLE_WEIGHT, {kWidth})}, s.out({m, kWidth}), {1e-6});
  return s;
}

// Tolerances: q4_0 products round activations to 8 bits here and may not there (3e-5 of their power, more through a segment); the rest differs in the order of sums
// and in the last bits of sine and exponential.
std::vector<TestCase> cases() {
  std::vector<TestCase> all;
  all.push_back({"rms_norm m=3 e=512", rms_norm(3, 512), {{3, 0}}, 1e-8});
  all.push_back({"matmul m=3 k=256 n=96 w=f32", matmul(3, 256, 96, FTH_DTYPE_F32), {{3, 0}}, 1e-6});
  all.push_back({"matmul m=1 k=512 n=384 w=q4_0", matmul(1, 512, 384, FTH_DTYPE_Q4_0), {{1, 0}}, 3e-4});
  all.push_back({"matmul m=8 k=512 n=384 w=q4_0", matmul(8, 512, 384, FTH_DTYPE_Q4_0), {{7, 0}}, 3e-4});
  all.push_back({"rope m=3 h=4 d=64 pos=100", rope(3, kHeads, kDim), {{3, 100}}, 1e-6});
  // Past the end of the ring.
  all.push_back({"attention m=4 h=4 g=2 d=64 window=61", attention(4), {{4, 0}, {4, 4}, {3, 70}}, 1e-5});
  all.push_back({"attention segment m=1 e=256 w=q4_0", attention_segment(1), {{1, 0}, {1, 1}, {1, 2}}, 3e-3});
  all.push_back({"attention segment m=8 e=256 w=q4_0", attention_segment(8), {{8, 0}, {5, 8}}, 3e-3});
  return all;
}

Result<std::vector<float>> answer(const Device& device, const TestCase& c) {
  FTH_ASSIGN_OR_RETURN(ScratchRun run, ScratchRun::make(device, c.made.view(c.name), kSeed));
  for (const Run& r : c.runs) FTH_RETURN_IF_ERROR(run.run(r.n_tokens, r.pos));
  return run.outputs(c.runs.back().n_tokens);
}

// Empty when `got` is near enough.
std::string difference(const std::vector<float>& want, const std::vector<float>& got, double allowed) {
  double error = 0, power = 0, worst = -1;
  size_t at = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double d = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    const double size = std::isfinite(d) ? d : HUGE_VAL;
    if (size > worst) worst = size, at = i;
    error += size * size;
    power += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  const double nmse = power > 0 ? error / power : error;
  if (nmse <= allowed) return {};
  char text[160];
  std::snprintf(text, sizeof text, "value %zu of %zu is %.6g, expected %.6g (error %.2g of the power, allowed %.2g)", at, want.size(),
                static_cast<double>(got[at]), static_cast<double>(want[at]), nmse, allowed);
  return text;
}

// Both in turn, so that what slows the machine down slows both; in short turns, since a busy moment may last as long as one.
void time_both(const Device& device, const Device& reference, const Made& made, int64_t rows, uint64_t spread, double DeviceTimes::*to,
               SelfTest* out) {
  const fth_segment segment = made.view("timing");
  auto theirs = ScratchRun::make(device, segment, kSeed, spread);
  auto ours = ScratchRun::make(reference, segment, kSeed, spread);
  if (!theirs || !ours) return;
  for (int i = 0; i < kTurns; ++i)
    for (const bool own : {false, true}) {
      const auto seconds = (own ? *ours : *theirs).fastest(rows, 0, kTimingSeconds);
      DeviceTimes& of = own ? out->cpu : out->times;  // named: g++ 12 stores into a copy of a conditional expression's member
      double& best = of.*to;
      if (seconds && (best <= 0 || *seconds < best)) best = *seconds;
    }
}

void time_copies(const Device& device, DeviceTimes* out) {
  const auto buffer = device.alloc(kCopy);
  if (!buffer) return;
  std::vector<std::byte> host(kCopy);
  for (int i = 0; i < 4; ++i) {
    const auto begin = Clock::now();
    if (!buffer->write(0, host.data(), kCopy)) return;
    const auto middle = Clock::now();
    if (!buffer->read(0, host.data(), kCopy)) return;
    const auto end = Clock::now();
    if (i == 0) continue;  // first touch of both memories
    const auto speed = [](Clock::duration d) {
      return static_cast<double>(kCopy) / std::max(std::chrono::duration<double>(d).count(), 1e-9);
    };
    out->write_bytes_per_second = std::max(out->write_bytes_per_second, speed(middle - begin));
    out->read_bytes_per_second = std::max(out->read_bytes_per_second, speed(end - middle));
  }
}

}  // namespace

SelfTest self_test(const Device& device, const Device& reference) {
  SelfTest out;
  for (const TestCase& c : cases()) {
    ++out.n_cases;
    const auto supported = device.estimate(c.made.view(c.name));
    if (!supported && supported.error().code == Code::unimplemented) continue;
    const auto want = answer(reference, c);
    if (!want) continue;  // the reference has no such kernels in this build
    ++out.n_run;
    const auto got = supported ? answer(device, c) : Result<std::vector<float>>(tl::unexpected<Error>(supported.error()));
    out.failure = got ? difference(*want, *got, c.nmse) : got.error().message;
    if (out.failure.empty()) continue;
    out.failure = std::string(c.name) + ": " + out.failure;
    return out;
  }
  time_both(device, reference, rms_norm(1, 64), 1, 0, &DeviceTimes::launch_s, &out);
  time_both(device, reference, matmul(1, 2048, 2048, FTH_DTYPE_Q4_0), 1, kSpread, &DeviceTimes::decode_s, &out);
  time_both(device, reference, matmul(32, 2048, 2048, FTH_DTYPE_Q4_0), 32, kSpread, &DeviceTimes::batch_s, &out);
  time_copies(device, &out.times);
  return out;
}

std::string too_slow(const DeviceTimes& device, const DeviceTimes& cpu) {
  if (device.decode_s <= 0 || device.batch_s <= 0 || cpu.decode_s <= 0 || cpu.batch_s <= 0) return {};
  if (device.decode_s < kSlower * cpu.decode_s || device.batch_s < kSlower * cpu.batch_s) return {};
  char text[160];
  std::snprintf(text, sizeof text,
                "slower than the CPU: a product of 2048 x 2048 takes %.3g ms for 1 row (CPU %.3g), %.3g ms for 32 (CPU %.3g)",
                1e3 * device.decode_s, 1e3 * cpu.decode_s, 1e3 * device.batch_s, 1e3 * cpu.batch_s);
  return text;
}

}  // namespace fth
