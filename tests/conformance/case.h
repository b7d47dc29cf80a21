#pragma once
// One line of a case file: `matmul m=1 k=256 n=512 w=q4_0 tol=nmse:1e-4`. The first word says what is built (problem.cpp), the others are its
// parameters. '#' starts a comment. docs/testing.md lists the words.

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/result.h"

namespace fth::conformance {

struct Case {
  std::string text;  // the line, blanks made single: its identity in filters and expectation lists
  std::string kind;  // "matmul"
  std::map<std::string, std::string, std::less<>> values;
  mutable std::map<std::string, bool, std::less<>> used;  // keys that were asked for; the others are typing errors

  // Each throws std::invalid_argument with the key when the value does not parse: main() prints it with the line.
  std::string word(std::string_view key, std::string_view otherwise) const;
  int64_t integer(std::string_view key, int64_t otherwise) const;
  double number(std::string_view key, double otherwise) const;
  DType dtype(std::string_view key, DType otherwise) const;
  std::vector<std::string> list(std::string_view key) const;  // "a,b"; empty when absent
  void check_all_used() const;
};

Result<Case> parse_case(std::string_view line);
// The cases of one file, in order.
Result<std::vector<Case>> read_cases(const std::string& path);

// '*' matches any run of characters, the rest itself.
bool glob_match(std::string_view pattern, std::string_view text);

// backends/NAME/conformance.txt: lines `unsupported GLOB` and `expected_failure GLOB`, matched against Case::text. An unsupported case that is
// supported, and an expected failure that passes, fail the run: the lists tell the truth or change. `inexact GLOB`: what `same=` asks of the case holds
// within its tolerance, not bit for bit (a compiler that sums in another order for another number of rows).
struct Expectations {
  std::vector<std::string> unsupported, expected_failures, inexact;
};
Result<Expectations> read_expectations(const std::string& path);
bool any_match(const std::vector<std::string>& patterns, std::string_view text);

}  // namespace fth::conformance
