// Modes perf and support.

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "tests/conformance/suite.h"

namespace fth::conformance {
namespace {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Of all threads: on a machine that others use too, it says more than the wall clock.
double cpu_s() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

struct Timing {
  double median_s = 0, best_s = 0, cpu_s = 0;  // cpu: mean per run
  int runs = 0;
};

Result<Timing> time_case(const Device& device, const Problem& problem) {
  constexpr double kCacheBytes = 256e6, kSeconds = 0.5;
  const int copies = static_cast<int>(std::clamp(kCacheBytes / std::max(problem.weight_bytes, 1.0), 1.0, 64.0));
  std::vector<Prepared> prepared;
  for (int i = 0; i < copies; ++i) {
    FTH_ASSIGN_OR_RETURN(Prepared p, Prepared::make(device, problem));
    prepared.push_back(std::move(p));
  }
  for (Prepared& p : prepared) FTH_RETURN_IF_ERROR(p.run());
  std::vector<double> times;
  const double start = now_s(), cpu_start = cpu_s();
  for (size_t i = 0; times.size() < 5 || (now_s() - start < kSeconds && times.size() < 100000); ++i) {
    const double before = now_s();
    FTH_RETURN_IF_ERROR(prepared[i % prepared.size()].run());
    times.push_back(now_s() - before);
  }
  const double cpu = (cpu_s() - cpu_start) / static_cast<double>(times.size());
  std::sort(times.begin(), times.end());
  return Timing{times[times.size() / 2], times.front(), cpu, static_cast<int>(times.size())};
}

}  // namespace

int run_perf(const Backend& backend, const SuiteOptions& options, std::span<const Case> cases) {
  int failed = 0;
  if (!options.json)
    std::printf("%10s %10s %10s %8s %8s  case (times are of one submit; rates by the median)\n", "median us", "best us", "cpu us", "GB/s",
                "GFLOP/s");
  for (const Case& c : cases) {
    if (!glob_match(options.filter, c.text)) continue;
    const Result<Problem> problem = build(c);
    const Result<Timing> t = problem ? time_case(backend.device(), *problem) : Result<Timing>(tl::unexpected<Error>(problem.error()));
    if (!t) {
      std::printf("FAIL %s\n     %s\n", c.text.c_str(), t.error().message.c_str());
      ++failed;
      continue;
    }
    const double gbps = problem->weight_bytes / t->median_s / 1e9, gflops = problem->flops / t->median_s / 1e9;
    if (options.json)
      std::printf("{\"case\":%s,\"median_s\":%.9f,\"best_s\":%.9f,\"cpu_s\":%.9f,\"gb_per_s\":%.3f,\"gflop_per_s\":%.3f,\"runs\":%d}\n",
                  json_string(c.text).c_str(), t->median_s, t->best_s, t->cpu_s, gbps, gflops, t->runs);
    else
      std::printf("%10.1f %10.1f %10.1f %8.2f %8.2f  %s\n", t->median_s * 1e6, t->best_s * 1e6, t->cpu_s * 1e6, gbps, gflops,
                  c.text.c_str());
    std::fflush(stdout);
  }
  return failed > 0 ? 1 : 0;
}

int run_support(const Backend& backend, const SuiteOptions& options) {
  constexpr const char* kTypes[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q6_k", "q4_k"};
  constexpr std::pair<const char*, const char*> kByWeight[] = {
      {"embed table", "embed v=32 e=256 w=%"},
      {"matmul", "matmul k=256 n=32 w=%"},
      {"matmul, bias", "matmul k=256 n=32 bias=1 w=%"},
      {"experts gate, up", "experts e=256 f=256 w=% wd=f32"},
      {"experts down", "experts e=256 f=256 w=f32 wd=%"},
      {"experts down by neuron", "experts e=256 f=256 w=f32 wd=% by_neuron=1"},
  };
  constexpr std::pair<const char*, const char*> kOthers[] = {
      {"matmul interleaved, q4_0", "matmul k=256 n=32 w=q4_0 interleaved=1"},
      {"matmul interleaved, q8_0", "matmul k=256 n=32 w=q8_0 interleaved=1"},
      {"matmul interleaved, q6_k", "matmul k=256 n=32 w=q6_k interleaved=1"},
      {"experts gate interleaved, q4_0", "experts e=256 f=256 w=q4_0 wd=f32 interleaved=1"},
      {"experts down neuron-major, q4_0", "experts e=256 f=256 w=q4_0 by_neuron=2"},
      {"experts down neuron-major, q8_0", "experts e=256 f=256 w=q8_0 by_neuron=2"},
      {"rms_norm", "rms_norm e=256"},
      {"rope neox", "rope h=2 d=64"},
      {"rope adjacent", "rope h=2 d=64 pairing=adjacent"},
      {"rope, part of the head", "rope h=2 d=64 r=32"},
      {"rope, factors", "rope h=2 d=64 factors=1"},
      {"attention, f16 cache", "attention h=4 g=2 d=64 state=f16"},
      {"attention, f32 cache", "attention h=4 g=2 d=64 state=f32"},
      {"attention, window", "attention h=4 g=2 d=64 window=8"},
      {"add", "add e=256"},
      {"glu relu", "glu f=256"},
      {"glu silu", "glu f=256 act=silu"},
      {"experts silu", "experts e=256 f=256 act=silu"},
      {"combine", "combine e=256"},
  };
  std::vector<std::string> reasons;
  // "yes", or "no" with the number of the reason.
  const auto ask = [&](std::string line, const char* type) -> std::string {
    if (const size_t at = line.find('%'); at != std::string::npos) line.replace(at, 1, type);
    const Result<Case> c = parse_case(line);
    const Result<Problem> problem = c ? build(*c) : Result<Problem>(tl::unexpected<Error>(c.error()));
    std::string reason = problem ? "" : problem.error().message;
    if (problem) {
      const Problem::Segment segment = problem->segment();
      const auto estimate = backend.device().estimate(segment.segment);
      if (!estimate) reason = estimate.error().message;
    }
    if (options.json)
      std::printf("{\"case\":%s,\"supported\":%s,\"reason\":%s}\n", json_string(line).c_str(), reason.empty() ? "true" : "false",
                  json_string(reason).c_str());
    if (reason.empty()) return "yes";
    auto it = std::find(reasons.begin(), reasons.end(), reason);
    if (it == reasons.end()) it = reasons.insert(reasons.end(), reason);
    return "no [" + std::to_string(it - reasons.begin() + 1) + "]";
  };
  std::string table = "| op |";
  for (const char* type : kTypes) table += std::string(" ") + type + " |";
  table += "\n| --- |";
  for (size_t i = 0; i < std::size(kTypes); ++i) table += " --- |";
  for (const auto& [title, line] : kByWeight) {
    table += std::string("\n| ") + title + " |";
    for (const char* type : kTypes) table += " " + ask(line, type) + " |";
  }
  table += "\n\n| op | supported |\n| --- | --- |";
  for (const auto& [title, line] : kOthers) table += std::string("\n| ") + title + " | " + ask(line, "") + " |";
  for (size_t i = 0; i < reasons.size(); ++i) table += (i == 0 ? "\n\n" : "\n") + std::to_string(i + 1) + ". " + reasons[i];
  if (!options.json) std::printf("%s\n", table.c_str());
  return 0;
}

}  // namespace fth::conformance
