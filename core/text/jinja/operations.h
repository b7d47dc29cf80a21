#pragma once
// Operators and element access. Attributes reach the keys of dicts, the slots of namespaces, the fields of `loop` and the methods in
// builtins.h; a name that starts with '_' is data_loss on anything but a dict or a namespace.

#include <string_view>

#include "core/text/jinja/ast.h"
#include "core/text/jinja/value.h"

namespace fth::jinja {

Result<Value> arithmetic(Context& context, Op op, const Value& a, const Value& b);
Result<bool> comparison(Context& context, Op op, const Value& a, const Value& b);
Result<Value> negative(const Value& value);
Result<Value> attribute(Context& context, const Value& value, const std::string& name);                               // value.name
Result<Value> subscript(Context& context, const Value& value, const Value& key);                                      // value[key]
Result<Value> slice(Context& context, const Value& value, const Value& start, const Value& stop, const Value& step);  // none: absent

}  // namespace fth::jinja
