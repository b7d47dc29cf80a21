// See compare.h.

#include "tests/conformance/compare.h"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "tests/conformance/reference.h"
#include "tests/conformance/runner.h"

namespace fth::conformance {
namespace {

bool is_result(const Tensor& t) { return t.desc.role == FTH_ROLE_OUTPUT || t.desc.role == FTH_ROLE_STATE; }

std::string place(const Tensor& t, size_t i) {
  const size_t width = static_cast<size_t>(t.desc.dims[t.desc.rank - 1]);
  return t.name + "[" + std::to_string(i / width) + ", " + std::to_string(i % width) + "]";
}

}  // namespace

Result<Tolerance> parse_tolerance(const std::string& text) {
  if (text == "exact") return Tolerance{};
  const size_t colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  Tolerance t{kind == "nmse" ? Tolerance::Kind::nmse : Tolerance::Kind::max, 0};
  const char* const end = text.data() + text.size();
  if (colon == std::string::npos || (kind != "nmse" && kind != "max") || std::from_chars(text.data() + colon + 1, end, t.value).ptr != end)
    return fail(Code::invalid_argument, "tol=" + text + ": need nmse:NUMBER, max:NUMBER or exact");
  return t;
}

std::string compare(const Problem& before, const Problem& got, const std::vector<std::vector<double>>& want, const Tolerance& tolerance) {
  for (size_t n = 0; n < got.tensors.size(); ++n) {
    const Tensor& t = got.tensors[n];
    if (!is_result(t)) continue;
    const uint64_t element = kDTypes[t.desc.dtype].block_bytes, block = kDTypes[t.desc.dtype].block;
    const std::vector<double> values = dequantize(t.desc.dtype, static_cast<int64_t>(t.data.size() / element * block), t.data.data());
    double squares = 0, errors = 0, largest = 0, worst = 0;
    size_t defined = 0, worst_at = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const double w = want[n][i];
      if (std::isnan(w)) {
        for (uint64_t b = 0; b < element; ++b) {
          const std::vector<std::byte>& old = before.tensors[n].data;
          const size_t at = i / block * element + b;
          if (t.data[at] != (old.empty() ? kCanary : old[at])) return place(t, i) + ": written, and no op may";
        }
        continue;
      }
      if (!std::isfinite(values[i])) return place(t, i) + ": " + std::to_string(values[i]) + " instead of " + std::to_string(w);
      const double error = std::fabs(values[i] - w);
      ++defined;
      squares += w * w;
      errors += error * error;
      largest = std::max(largest, std::fabs(w));
      if (error > worst) worst = error, worst_at = i;
    }
    if (defined == 0 || worst == 0) continue;
    const double rms = std::sqrt(squares / static_cast<double>(defined));
    double measured = worst, allowed = 0;
    bool good = false;
    const char* what = "largest error";
    switch (tolerance.kind) {
      case Tolerance::Kind::exact: break;
      case Tolerance::Kind::max:
        allowed = tolerance.value * largest;
        good = worst <= allowed;
        break;
      case Tolerance::Kind::nmse:
        allowed = 16 * std::sqrt(tolerance.value) * rms;
        good = worst <= allowed && errors <= tolerance.value * squares;
        if (errors > tolerance.value * squares) measured = errors / squares, allowed = tolerance.value, what = "nmse";
        break;
    }
    if (good) continue;
    char text[256];
    std::snprintf(text, sizeof text, "%s: %s %.3g, allowed %.3g; worst at %s: %.9g instead of %.9g", t.name.c_str(), what, measured,
                  allowed, place(t, worst_at).c_str(), values[worst_at], want[n][worst_at]);
    return text;
  }
  return {};
}

std::string compare_bits(const Problem& a, const Problem& b) {
  for (size_t n = 0; n < a.tensors.size(); ++n) {
    const Tensor &x = a.tensors[n], &y = b.tensors[n];
    if (!is_result(x) || x.data == y.data) continue;
    const uint64_t element = kDTypes[x.desc.dtype].block_bytes, block = kDTypes[x.desc.dtype].block;
    for (size_t i = 0; i < x.data.size(); ++i)
      if (x.data[i] != y.data[i]) {
        const auto value = [&](const Tensor& t) {
          return std::to_string(dequantize(t.desc.dtype, static_cast<int64_t>(block), t.data.data() + i / element * element)[0]);
        };
        return place(x, i / element * block) + ": " + value(x) + " and " + value(y);
      }
  }
  return {};
}

}  // namespace fth::conformance
