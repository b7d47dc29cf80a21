// The search for leaks finds each kind, in a backend that leaks it on purpose, and finds none where there is none.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/conformance/suite.h"

namespace fth::conformance {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;

struct Found {
  int code;
  std::string text;
};

Found search(const std::string& options) {
  SuiteOptions o;
  o.backend = {.backend = FTH_LEAKING_PLUGIN, .options = options, .n_threads = 1, .log_level = -1};
  const auto backend = Backend::open(o.backend);
  EXPECT_TRUE(backend);
  const Case cases[] = {*parse_case("matmul m=2 k=64 n=8 w=q4_0"), *parse_case("experts m=1 e=64 f=64 slots=2 k=1 w=q4_0")};
  testing::internal::CaptureStdout();
  const int code = run_leaks(**backend, o, cases);
  return {code, testing::internal::GetCapturedStdout()};
}

TEST(Leaks, NoneWhereThereIsNone) {
  const Found found = search("");
  EXPECT_EQ(found.code, 0) << found.text;
  EXPECT_THAT(found.text, AllOf(HasSubstr("0 leak; 2 segments run"), testing::Not(HasSubstr("LEAK"))));
}

TEST(Leaks, EachKindIsFound) {
  for (const auto& [leak, loop, kept] : {std::tuple{"leak=device", "a device opened", "bytes of heap"},
                                         {"leak=buffer", "a buffer written", "bytes of heap"},
                                         {"leak=segment", "compiled, run, released: matmul", "bytes of heap"},
                                         {"leak=run", "run again: experts", "bytes of heap"},
                                         {"leak=file", "compiled, run, released: experts", "open files each time"},
                                         {"leak=thread", "compiled, run, released: matmul", "threads each time"},
                                         {"leak=log", "compiled, run, released: matmul", "errors logged"}}) {
    const Found found = search(leak);
    EXPECT_EQ(found.code, 1) << leak;
    EXPECT_THAT(found.text, ContainsRegex(std::string("LEAK +[0-9]+ x ") + loop + "[^\n]*\n[^\n]*" + kept)) << leak;
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_THAT(search("leak=memory").text, ContainsRegex("LEAK +[0-9]+ x compiled, run, released: matmul[^\n]*\n[^\n]*mapped bytes"));
#endif
}

}  // namespace
}  // namespace fth::conformance
