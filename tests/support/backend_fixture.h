#pragma once
// What the tests of a backend plugin set up alike: the plugin opened with a device and options, cases run on it, a segment whose bindings the test changes.

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "tests/conformance/compare.h"
#include "tests/conformance/reference.h"
#include "tests/conformance/runner.h"

namespace fth::conformance {

inline Result<std::unique_ptr<Backend>> open_plugin(const std::string& plugin, const std::string& options, uint32_t device = 0,
                                                    uint32_t n_threads = 1) {
  BackendOptions o;
  o.backend = plugin;
  o.options = options;
  o.device = device;
  o.n_threads = n_threads;
  o.log_level = -1;
  return Backend::open(o);
}

inline Problem make(const std::string& line) { return *build(*parse_case(line)); }

class BackendTest : public testing::Test {
 protected:
  const Device& device() const { return backend_->device(); }
  Error run_error(const Problem& p) const {
    const Result<Problem> r = run_once(device(), p);
    return r ? Error{Code::internal, "no error"} : r.error();
  }
  Error estimate_error(const Problem& p) const {
    const Problem::Segment s = p.segment();
    const Result<fth_estimate> r = device().estimate(s.segment);
    return r ? Error{Code::internal, "no error"} : r.error();
  }
  // The case on the device, against the reference. Empty when they agree.
  std::string wrong(const std::string& line, const char* tolerance = "nmse:1e-10") const {
    const Problem p = make(line);
    const Result<Problem> got = run_once(device(), p);
    return got ? compare(p, *got, run_reference(p), *parse_tolerance(tolerance)) : got.error().message;
  }
  std::unique_ptr<Backend> backend_;
};

// A device's own clock: nothing before a run, and of each run something that is not longer than the wait for it from submit on.
inline void expect_clock(const Device& device) {
  auto small = Prepared::make(device, make("matmul m=1 k=64 n=32 w=f32")),
       large = Prepared::make(device, make("matmul m=32 k=1024 n=512 w=f32"));
  ASSERT_TRUE(small && large);
  EXPECT_LT(small->device_seconds(), 0) << "before there was a run";
  double least[2] = {1, 1};
  for (int i = 0; i < 5; ++i) {
    for (Prepared* const p : {&*small, &*large}) {
      const auto begin = std::chrono::steady_clock::now();
      ASSERT_TRUE(p->run());
      const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - begin;
      const double seconds = p->device_seconds();
      EXPECT_GE(seconds, 0);
      EXPECT_LE(seconds, wall.count());
      double& shortest = least[p == &*large];
      shortest = std::min(shortest, seconds);
    }
  }
  EXPECT_GT(least[1], 0);
  EXPECT_GT(least[1], least[0]) << "8192 times the work";
}

// A segment with its bindings as the test changes them.
struct Bound {
  const Device& device;
  Problem problem;
  Problem::Segment segment = problem.segment();
  fth_estimate estimate = *device.estimate(segment.segment);
  std::vector<fth::Buffer> buffers{};
  std::vector<fth_binding> weights{}, bindings{};

  explicit Bound(const Device& d, Problem p) : device(d), problem(std::move(p)) {
    for (Tensor& t : problem.tensors) {
      if (t.desc.role == FTH_ROLE_TEMP) continue;
      t.data.resize(tensor_bytes(t.desc));
      buffers.push_back(*device.alloc(t.data.size() + 16));
      EXPECT_TRUE(buffers.back().write(0, t.data.data(), t.data.size()));
      (t.desc.role == FTH_ROLE_WEIGHT ? weights : bindings).push_back(buffers.back().at(0, t.data.size()));
    }
    if (estimate.workspace_bytes > 0) {
      buffers.push_back(*device.alloc(estimate.workspace_bytes));
      bindings.push_back(buffers.back().whole());
    }
  }
  Result<fth::Executable> compile() const { return device.compile(segment.segment, weights); }
};

}  // namespace fth::conformance
