#pragma once
// Template source to tree.

#include <string_view>

#include "core/text/jinja/ast.h"

namespace fth::jinja {

// data_loss with line and column for a syntax error, resource_exhausted past kMaxSourceBytes or kMaxNesting, unimplemented for a tag, filter
// or test outside of the subset. Within an 'if' an unknown filter or test passes and fails where it is evaluated, as in Jinja: templates
// have branches for tools that use what other hosts add.
Result<Body> parse(std::string_view source);

}  // namespace fth::jinja
