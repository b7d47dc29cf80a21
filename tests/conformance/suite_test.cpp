// Mode test.

#include <array>
#include <cstdio>
#include <functional>

#include "tests/conformance/compare.h"
#include "tests/conformance/reference.h"
#include "tests/conformance/suite.h"

namespace fth::conformance {

std::string json_string(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + "\"";
}

namespace {

// Tensors of the whole problem with the rows of token t as `one` has them, and its state.
void put_token(Problem& all, const Problem& one, int64_t t) {
  for (size_t i = 0; i < all.tensors.size(); ++i) {
    Tensor& x = all.tensors[i];
    const Tensor& y = one.tensors[i];
    if (x.desc.role == FTH_ROLE_STATE) x.data = y.data;
    if (x.desc.role == FTH_ROLE_OUTPUT)
      std::copy(y.data.begin(), y.data.end(), x.data.begin() + static_cast<int64_t>(static_cast<uint64_t>(t) * y.data.size()));
  }
}

// Says what is different between the answer and another to the same problem, or nothing.
using Same = std::function<std::string(const Problem& got, const Problem& other)>;

// A property that must hold. Returns what breaks it, or nothing.
Result<std::string> check_property(const std::string& property, const Backend& backend, const SuiteOptions& options, const Problem& problem,
                                   const Problem& got, const Same& same) {
  if (property == "threads") {
    for (const uint32_t n : {1u, 2u, 3u}) {
      BackendOptions other = options.backend;
      other.n_threads = n;
      FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> b, Backend::open(other));
      FTH_ASSIGN_OR_RETURN(const Problem again, run_once(b->device(), problem));
      if (const std::string why = same(got, again); !why.empty()) return std::to_string(n) + " threads: " + why;
    }
    return std::string();
  }
  if (property == "tokens") {
    Problem joined = got;
    Problem state = problem;
    for (int64_t t = 0; t < problem.scalars[FTH_SCALAR_TOKENS]; ++t) {
      Problem one = slice_token(problem, state, t);
      FTH_ASSIGN_OR_RETURN(state, run_once(backend.device(), one));
      put_token(joined, state, t);
    }
    const std::string why = same(got, joined);
    return why.empty() ? why : "tokens one by one: " + why;
  }
  if (property == "slots") {
    const int64_t used = problem.scalars[FTH_SCALAR_SLOTS];
    Problem part = problem;
    for (const auto& [begin, end] : {std::array<int64_t, 2>{used / 2, used}, std::array<int64_t, 2>{0, used / 2}}) {
      Problem next = slice_slots(problem, begin, end);
      for (size_t i = 0; i < next.tensors.size(); ++i)
        if (next.tensors[i].desc.role == FTH_ROLE_OUTPUT) next.tensors[i].data = part.tensors[i].data;
      FTH_ASSIGN_OR_RETURN(part, run_once(backend.device(), next));
    }
    const std::string why = same(got, part);
    return why.empty() ? why : "slots in two submits: " + why;
  }
  if (property == "orders") {
    FTH_ASSIGN_OR_RETURN(const Problem row_major, run_once(backend.device(), with_row_major(problem)));
    const std::string why = same(got, row_major);
    return why.empty() ? why : "row-major matrices: " + why;
  }
  return fail(Code::invalid_argument, "same=" + property + ": need threads, tokens, slots or orders");
}

enum class Outcome { pass, failure, refused };

struct Verdict {
  Outcome outcome = Outcome::pass;
  std::string message;
};

Verdict judge(const Backend& backend, const SuiteOptions& options, const Case& c) {
  const auto failed = [](const Error& e) { return Verdict{Outcome::failure, std::string(code_name(e.code)) + ": " + e.message}; };
  const Result<Tolerance> tolerance = parse_tolerance(c.word("tol", "exact"));
  if (!tolerance) return failed(tolerance.error());
  const Result<Problem> problem = build(c);
  if (!problem) return failed(problem.error());
  const Problem::Segment segment = problem->segment();
  if (const auto estimate = backend.device().estimate(segment.segment); !estimate) {
    if (estimate.error().code == Code::unimplemented) return {Outcome::refused, estimate.error().message};
    return failed(estimate.error());
  }
  const Result<Problem> got = run_once(backend.device(), *problem);
  if (!got) return failed(got.error());
  if (std::string why = compare(*problem, *got, run_reference(*problem), *tolerance); !why.empty())
    return {Outcome::failure, std::move(why)};
  const bool inexact = any_match(options.expectations.inexact, c.text);
  const Same same = [&](const Problem& one, const Problem& other) {
    return inexact ? compare(*problem, other, run_reference(*problem), *tolerance) : compare_bits(one, other);
  };
  for (const std::string& property : c.list("same")) {
    const Result<std::string> why = check_property(property, backend, options, *problem, *got, same);
    if (!why) return failed(why.error());
    if (!why->empty()) return {Outcome::failure, (inexact ? "beyond the tolerance with " : "not the same bits with ") + *why};
  }
  return {};
}

}  // namespace

int run_tests(const Backend& backend, const SuiteOptions& options, std::span<const Case> cases) {
  int passed = 0, bad = 0, unsupported = 0, expected = 0;
  for (const Case& c : cases) {
    if (!glob_match(options.filter, c.text)) continue;
    const Verdict v = judge(backend, options, c);
    const bool may_refuse = any_match(options.expectations.unsupported, c.text);
    const bool may_fail = any_match(options.expectations.expected_failures, c.text);
    std::string problem;
    const char* word = "pass";
    if (v.outcome == Outcome::refused && may_refuse) {
      ++unsupported;
      word = "unsupported";
    } else if (v.outcome == Outcome::failure && may_fail) {
      ++expected;
      word = "expected_failure";
    } else if (v.outcome == Outcome::refused) {
      problem = "refused, and not listed as unsupported: " + v.message;
    } else if (v.outcome == Outcome::failure) {
      problem = v.message;
    } else if (may_refuse) {
      problem = "supported, but listed as unsupported";
    } else if (may_fail) {
      problem = "passes, but listed as an expected failure";
    }
    if (!problem.empty()) word = "fail";
    problem.empty() ? passed += v.outcome == Outcome::pass : ++bad;
    if (options.json)
      std::printf("{\"case\":%s,\"result\":\"%s\",\"message\":%s}\n", json_string(c.text).c_str(), word,
                  json_string(problem.empty() ? v.message : problem).c_str());
    else if (!problem.empty())
      std::printf("FAIL %s\n     %s\n", c.text.c_str(), problem.c_str());
  }
  if (!options.json)
    std::printf("%s: %d passed, %d failed, %d unsupported, %d expected failures\n", backend.device().name().c_str(), passed, bad,
                unsupported, expected);
  return bad > 0 || passed + unsupported + expected == 0 ? 1 : 0;
}

}  // namespace fth::conformance
