#pragma once
// The filters, tests, methods and functions that a template may use, each a row of a table. Nothing outside these tables can be called.

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/jinja/value.h"

namespace fth::jinja {

struct Arguments {
  Values values;
  std::vector<std::string> keywords;  // of the last keywords.size() values
};

struct Call {
  Context& context;
  const Value& self;  // what is filtered, tested or called upon; none for a function
  const Arguments& arguments;
  std::array<const Value*, 3> args;  // by the order of Builtin::params; null where not given
};

struct Builtin {
  std::string_view name;
  std::string_view params;  // names separated by blanks, '!' before a required one; "*": run reads Call::arguments itself
  Result<Value> (*run)(const Call&);
};

const Builtin* find_filter(std::string_view name);
const Builtin* find_test(std::string_view name);
const Builtin* find_function(std::string_view name);
const Builtin* find_method(const Value& self, std::string_view name);
// The text methods, in builtins_text.cpp; many are filters too.
const Builtin* find_text_method(std::string_view name);
const Builtin* find_text_filter(std::string_view name);

// data_loss when the arguments do not fit.
Result<Value> run_builtin(Context& context, const Builtin& builtin, const Value& self, const Arguments& arguments);

}  // namespace fth::jinja
