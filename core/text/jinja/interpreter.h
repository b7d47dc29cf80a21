#pragma once
// Evaluates a parsed template.

#include <map>
#include <string>

#include "core/text/jinja/ast.h"

namespace fth::jinja {

using Variables = std::map<std::string, Value, std::less<>>;

// The output, or an error whose message names the line. `context` is fresh and outlives `variables`. Callable from any thread, each with its
// own context.
Result<std::string> render(const Body& body, Context& context, Variables variables);

}  // namespace fth::jinja
