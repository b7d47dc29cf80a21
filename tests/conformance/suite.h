#pragma once
// The modes of the conformance program.

#include <span>
#include <string>
#include <vector>

#include "tests/conformance/case.h"
#include "tests/conformance/runner.h"

namespace fth::conformance {

struct SuiteOptions {
  BackendOptions backend;
  std::string filter = "*";
  Expectations expectations;
  bool json = false;
  double device_keeps = 0;  // mode leaks: bytes of heap that this driver keeps of every device that was opened
};

// Each case against the reference, then its `same=` properties bit for bit. Prints a line per case that is not as expected, and a summary. Returns
// the exit code: 0, or 1 when a case failed, passed against expectation, or none was selected.
int run_tests(const Backend& backend, const SuiteOptions& options, std::span<const Case> cases);

// Times each case: the weights are copied until they exceed every cache, as in decode, where each is read once per token.
int run_perf(const Backend& backend, const SuiteOptions& options, std::span<const Case> cases);

// Makes and frees devices, buffers, segments and runs many times, the given cases as segments, and calls that are refused; says what the process kept of them.
// Returns the exit code: 1 when anything grows with every turn.
int run_leaks(const Backend& backend, const SuiteOptions& options, std::span<const Case> cases);

// What the device says yes to, asked of estimate(): op by weight type, as a markdown table with the reasons below it.
int run_support(const Backend& backend, const SuiteOptions& options);

std::string json_string(const std::string& text);  // quoted

}  // namespace fth::conformance
