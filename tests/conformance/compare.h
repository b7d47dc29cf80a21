#pragma once
// Judging an answer: against the reference within the case's tolerance, or against another run bit for bit.

#include <string>
#include <vector>

#include "tests/conformance/problem.h"

namespace fth::conformance {

// "nmse:1e-4": sum of squared errors over sum of squares, and no single error above 16 times what it allows on average, so that one wrong row of a
// large matrix shows. "max:1e-6": largest error over largest value. "exact": the same values. A bare word is invalid_argument.
struct Tolerance {
  enum class Kind { nmse, max, exact } kind = Kind::exact;
  double value = 0;
};
Result<Tolerance> parse_tolerance(const std::string& text);

// Empty when every OUTPUT and STATE of `got` is within tolerance, else what is wrong with the first that is not. Elements that the reference does
// not define must still hold what they held in `before`.
std::string compare(const Problem& before, const Problem& got, const std::vector<std::vector<double>>& want, const Tolerance& tolerance);

// Empty when the OUTPUT and STATE tensors hold the same bytes.
std::string compare_bits(const Problem& a, const Problem& b);

}  // namespace fth::conformance
