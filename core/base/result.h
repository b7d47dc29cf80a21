#pragma once
// Errors as values. Every fallible function returns Result<T>; exceptions end at the plugin guard (plugins/sdk/backend.h).
// Messages name the thing and the numbers and, where there is one, the next step:
// "expert_cache: 3 slots, top_k is 6; raise --ram to at least 38 MiB".

#include <cstdint>
#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace fth {

// The canonical (absl) status codes; the same numbers cross the plugin boundary as fth_code.
enum class Code : int32_t {
  cancelled = 1,            // the caller asked to stop
  invalid_argument = 3,     // the caller's request is wrong, whatever the state
  not_found = 5,            // a file, key, device or tensor that does not exist
  resource_exhausted = 8,   // does not fit a budget, or out of memory
  failed_precondition = 9,  // right request, wrong state
  out_of_range = 11,        // past the context's end, past the vocabulary
  unimplemented = 12,       // understood, not supported; the message says what is
  internal = 13,            // a bug
  unavailable = 14,         // a device or plugin failed
  data_loss = 15,           // a file is malformed, truncated or corrupt
};

// "data_loss", for messages and JSON.
constexpr std::string_view code_name(Code c) {
  switch (c) {
    case Code::cancelled: return "cancelled";
    case Code::invalid_argument: return "invalid_argument";
    case Code::not_found: return "not_found";
    case Code::resource_exhausted: return "resource_exhausted";
    case Code::failed_precondition: return "failed_precondition";
    case Code::out_of_range: return "out_of_range";
    case Code::unimplemented: return "unimplemented";
    case Code::internal: return "internal";
    case Code::unavailable: return "unavailable";
    case Code::data_loss: return "data_loss";
  }
  return "unknown";
}

struct Error {
  Code code = Code::internal;
  std::string message;

  // Adds what the caller was doing: "load layer.3: read experts.bin: short read".
  Error context(std::string_view what) && {
    message.insert(0, std::string(what) + ": ");
    return std::move(*this);
  }
};

// A value or an Error. Dropping one is a compile-time warning, hence an error here.
template <class T = void>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using value_type = T;
  using tl::expected<T, Error>::expected;
};

inline tl::unexpected<Error> fail(Code code, std::string message) { return tl::unexpected<Error>(Error{code, std::move(message)}); }

}  // namespace fth

#define FTH_CAT_(a, b) a##b
#define FTH_CAT(a, b) FTH_CAT_(a, b)

// Returns the error of `expr`, if it has one, from the enclosing function.
#define FTH_RETURN_IF_ERROR(expr)                                                                                     \
  do {                                                                                                                \
    if (auto fth_result_ = (expr); !fth_result_) return tl::unexpected<::fth::Error>(std::move(fth_result_).error()); \
  } while (0)

// FTH_ASSIGN_OR_RETURN(auto file, open(path));
#define FTH_ASSIGN_OR_RETURN(decl, expr) FTH_ASSIGN_OR_RETURN_(FTH_CAT(fth_result_, __LINE__), decl, expr)
#define FTH_ASSIGN_OR_RETURN_(result, decl, expr)                              \
  auto result = (expr);                                                        \
  if (!result) return tl::unexpected<::fth::Error>(std::move(result).error()); \
  decl = *std::move(result)
