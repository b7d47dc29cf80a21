// Errors as values: the macros pass them on, and the codes are the boundary's.

#include "core/base/result.h"

#include <gtest/gtest.h>

#include <memory>

#include "plugins/abi/fth_backend.h"

namespace fth {
namespace {

Result<int> parse(int v) {
  if (v < 0) return fail(Code::out_of_range, std::to_string(v) + " is below 0");
  return v;
}
Result<> check_even(int v) {
  if (v % 2 != 0) return fail(Code::invalid_argument, "odd");
  return {};
}
Result<std::unique_ptr<int>> boxed(int v) {
  FTH_ASSIGN_OR_RETURN(const int value, parse(v));
  FTH_RETURN_IF_ERROR(check_even(value));
  return std::make_unique<int>(value);
}
Result<int> sum(int a, int b) {
  FTH_ASSIGN_OR_RETURN(const auto x, boxed(a));  // twice in one function, and a type that only moves
  FTH_ASSIGN_OR_RETURN(const auto y, boxed(b));
  int total = 0;
  FTH_ASSIGN_OR_RETURN(total, parse(*x + *y));  // to what is declared already
  return total;
}

TEST(Result, MacrosPassValuesAndErrorsOn) {
  EXPECT_EQ(*sum(2, 4), 6);
  EXPECT_EQ(sum(-1, 4).error().code, Code::out_of_range);
  EXPECT_EQ(sum(-1, 4).error().message, "-1 is below 0");
  EXPECT_EQ(sum(2, 3).error().code, Code::invalid_argument);
}

TEST(Result, ReturnIfErrorEvaluatesOnce) {
  int calls = 0;
  const auto f = [&]() -> Result<> {
    FTH_RETURN_IF_ERROR((++calls, check_even(1)));
    return {};
  };
  EXPECT_FALSE(f());
  EXPECT_EQ(calls, 1);
}

TEST(Result, ContextIsPutInFront) {
  const Error e = Error{Code::data_loss, "short read"}.context("read experts.bin").context("load layer.3");
  EXPECT_EQ(e.message, "load layer.3: read experts.bin: short read");
  EXPECT_EQ(e.code, Code::data_loss);
}

TEST(Result, CodesAreTheBoundarys) {
  static_assert(static_cast<int>(Code::cancelled) == FTH_CANCELLED && static_cast<int>(Code::invalid_argument) == FTH_INVALID_ARGUMENT);
  static_assert(static_cast<int>(Code::not_found) == FTH_NOT_FOUND && static_cast<int>(Code::resource_exhausted) == FTH_RESOURCE_EXHAUSTED);
  static_assert(static_cast<int>(Code::failed_precondition) == FTH_FAILED_PRECONDITION &&
                static_cast<int>(Code::out_of_range) == FTH_OUT_OF_RANGE);
  static_assert(static_cast<int>(Code::unimplemented) == FTH_UNIMPLEMENTED && static_cast<int>(Code::internal) == FTH_INTERNAL);
  static_assert(static_cast<int>(Code::unavailable) == FTH_UNAVAILABLE && static_cast<int>(Code::data_loss) == FTH_DATA_LOSS);
  EXPECT_EQ(code_name(Code::data_loss), "data_loss");
  EXPECT_EQ(code_name(static_cast<Code>(99)), "unknown");
}

}  // namespace
}  // namespace fth
