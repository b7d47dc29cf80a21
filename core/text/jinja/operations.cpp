#include "core/text/jinja/operations.h"

#include <algorithm>
#include <cmath>

#include "core/text/jinja/builtins.h"
#include "core/text/jinja/utf8.h"

namespace fth::jinja {
namespace {

tl::unexpected<Error> no_operator(std::string_view symbol, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (value->undefined() != nullptr) return type_error(value->undefined()->reason);
  }
  return type_error("unsupported operand types for " + std::string(symbol) + ": '" + std::string(type_name(a)) + "' and '" +
                    std::string(type_name(b)) + "'");
}

tl::unexpected<Error> overflow() { return fail(Code::resource_exhausted, "an integer beyond 64 bits"); }

Result<Value> power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) return type_error("0 cannot be raised to a negative power");
    return Value{std::pow(static_cast<double>(base), static_cast<double>(exponent))};
  }
  int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0 && __builtin_mul_overflow(result, base, &result)) return overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) return overflow();
  }
  return Value{result};
}

Result<Value> integers(Op op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Op::add:
      if (__builtin_add_overflow(a, b, &result)) return overflow();
      return Value{result};
    case Op::subtract:
      if (__builtin_sub_overflow(a, b, &result)) return overflow();
      return Value{result};
    case Op::multiply:
      if (__builtin_mul_overflow(a, b, &result)) return overflow();
      return Value{result};
    case Op::power: return power(a, b);
    default: break;
  }
  if (b == 0) return type_error("division by zero");
  if (op == Op::divide) return Value{static_cast<double>(a) / static_cast<double>(b)};
  if (b == -1) {  // the one quotient that can overflow; as a division it traps
    if (op == Op::modulo) return Value{int64_t{0}};
    if (__builtin_sub_overflow(int64_t{0}, a, &result)) return overflow();
    return Value{result};
  }
  const bool down = a % b != 0 && (a < 0) != (b < 0);  // Python rounds towards minus infinity
  if (op == Op::floor_divide) return Value{a / b - (down ? 1 : 0)};
  return Value{a % b + (down ? b : 0)};
}

Result<Value> floats(Op op, double a, double b) {
  switch (op) {
    case Op::add: return Value{a + b};
    case Op::subtract: return Value{a - b};
    case Op::multiply: return Value{a * b};
    case Op::power:
      if (a == 0 && b < 0) return type_error("0 cannot be raised to a negative power");
      if (a < 0 && b != std::floor(b)) return type_error("a negative number to a fractional power");
      return Value{std::pow(a, b)};
    default: break;
  }
  if (b == 0) return type_error("division by zero");
  if (op == Op::divide) return Value{a / b};
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == Op::modulo) return Value{rest};
  return Value{std::floor((a - rest) / b + 0.5)};
}

Result<Value> repeat(Context& context, const Value& sequence, int64_t times) {
  times = std::max<int64_t>(times, 0);
  if (const std::string* text = sequence.text()) {
    std::string out;
    for (int64_t i = 0; i < times && !text->empty(); ++i) FTH_RETURN_IF_ERROR(context.append(out, *text));
    return context.text(std::move(out));
  }
  Values items;
  const List& list = *sequence.list();
  for (int64_t i = 0; i < times && !list.items.empty(); ++i) {
    FTH_RETURN_IF_ERROR(context.charge(list.items.size()));
    items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return context.list(std::move(items), list.is_tuple);
}

Result<Value> add(Context& context, const Value& a, const Value& b) {
  if (a.text() != nullptr && b.text() != nullptr) {
    std::string out;
    FTH_RETURN_IF_ERROR(context.append(out, *a.text()));
    FTH_RETURN_IF_ERROR(context.append(out, *b.text()));
    return context.text(std::move(out));
  }
  if (a.list() != nullptr && b.list() != nullptr && a.list()->is_tuple == b.list()->is_tuple) {
    FTH_RETURN_IF_ERROR(context.charge(a.list()->items.size() + b.list()->items.size()));
    Values items = a.list()->items;
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return context.list(std::move(items), a.list()->is_tuple);
  }
  return no_operator("+", a, b);
}

Value integer(size_t n) { return Value{static_cast<int64_t>(n)}; }

// undefined: no such field.
Value loop_field(const Loop& loop, std::string_view name) {
  const Values& items = loop.items->items;
  const auto i = static_cast<size_t>(loop.index0);
  if (name == "index") return integer(i + 1);
  if (name == "index0") return integer(i);
  if (name == "revindex") return integer(items.size() - i);
  if (name == "revindex0") return integer(items.size() - i - 1);
  if (name == "length") return integer(items.size());
  if (name == "first") return Value{i == 0};
  if (name == "last") return Value{i + 1 == items.size()};
  if (name == "depth") return integer(1);  // counts recursive loops, which there are none of
  if (name == "depth0") return integer(0);
  if (name == "previtem") return i > 0 ? items[i - 1] : undefined_value("there is no previous item");
  if (name == "nextitem") return i + 1 < items.size() ? items[i + 1] : undefined_value("there is no next item");
  return undefined_value("'loop' has no attribute '" + std::string(name) + "'", /*is_method=*/true);
}

// A slice bound as Python clamps it, for a positive or negative step.
Result<int64_t> slice_bound(const Value& value, int64_t absent, int64_t size, bool backwards) {
  if (value.is_none()) return absent;
  int64_t i = 0;
  if (!value.integer(i)) return type_error("slice indices must be integers, not '" + std::string(type_name(value)) + "'");
  if (i < 0) i = std::max<int64_t>(i, -size - 1) + size;
  return std::clamp<int64_t>(i, backwards ? -1 : 0, backwards ? size - 1 : size);
}

}  // namespace

Result<Value> arithmetic(Context& context, Op op, const Value& a, const Value& b) {
  int64_t i = 0, j = 0;
  const bool a_is_integer = a.integer(i), b_is_integer = b.integer(j);
  if (a_is_integer && b_is_integer) return integers(op, i, j);
  double x = 0, y = 0;
  if (a.number(x) && b.number(y)) return floats(op, x, y);
  if (op == Op::add) return add(context, a, b);
  if (op == Op::multiply) {
    if ((a.text() != nullptr || a.list() != nullptr) && b_is_integer) return repeat(context, a, j);
    if (a_is_integer && (b.text() != nullptr || b.list() != nullptr)) return repeat(context, b, i);
  }
  if (op == Op::modulo && a.text() != nullptr) return fail(Code::unimplemented, "'%' as string formatting is not supported; use '~'");
  static constexpr std::array<std::string_view, 7> kSymbols = {"+", "-", "*", "/", "//", "%", "**"};
  return no_operator(kSymbols[static_cast<size_t>(op)], a, b);
}

Result<bool> comparison(Context& context, Op op, const Value& a, const Value& b) {
  if (op == Op::eq || op == Op::ne) {
    FTH_ASSIGN_OR_RETURN(const bool same, equal(context, a, b));
    return same == (op == Op::eq);
  }
  if (op == Op::in || op == Op::not_in) {
    FTH_ASSIGN_OR_RETURN(const bool found, contains(context, b, a));
    return found == (op == Op::in);
  }
  FTH_ASSIGN_OR_RETURN(const int order, compare(context, a, b));
  switch (op) {
    case Op::lt: return order == -1;
    case Op::le: return order == -1 || order == 0;
    case Op::gt: return order == 1;
    default: return order == 1 || order == 0;
  }
}

Result<Value> negative(const Value& value) {
  if (int64_t i = 0; value.integer(i)) return integers(Op::subtract, 0, i);
  if (double d = 0; value.number(d)) return Value{-d};
  if (value.undefined() != nullptr) return type_error(value.undefined()->reason);
  return type_error("a sign before '" + std::string(type_name(value)) + "'");
}

Result<Value> attribute(Context& context, const Value& value, const std::string& name) {
  FTH_RETURN_IF_ERROR(context.charge(1));
  if (const Undefined* undefined = value.undefined()) return type_error(undefined->reason);
  if (const Namespace* space = value.name_space()) {
    const auto slot = space->slots.find(name);
    return slot != space->slots.end() ? slot->second : undefined_value("the namespace has no '" + name + "'");
  }
  if (const Builtin* method = find_method(value, name)) {
    FTH_RETURN_IF_ERROR(check_nesting(value));
    return Value{std::make_shared<const Function>(Function{.name = name, .builtin = method, .self = value})};
  }
  const std::string reason = "'" + std::string(type_name(value)) + " object' has no attribute '" + name + "'";
  if (const Dict* dict = value.dict()) {
    FTH_RETURN_IF_ERROR(context.charge(dict->entries.size() / 8));
    for (const auto& [key, item] : dict->entries) {
      if (key.text() != nullptr && *key.text() == name) return item;
    }
    return undefined_value(reason);
  }
  if (name.starts_with('_')) return type_error(reason + ": names with a leading underscore are out of reach");
  return value.loop() != nullptr ? loop_field(*value.loop(), name) : undefined_value(reason, /*is_method=*/true);
}

Result<Value> subscript(Context& context, const Value& value, const Value& key) {
  FTH_RETURN_IF_ERROR(context.charge(1));
  if (const Undefined* undefined = value.undefined()) return type_error(undefined->reason);
  int64_t i = 0;
  const bool is_index = key.integer(i);
  if (const List* list = value.list(); list != nullptr && is_index) {
    const auto size = static_cast<int64_t>(list->items.size());
    if (i < 0) i += size;
    if (i >= 0 && i < size) return list->items[static_cast<size_t>(i)];
    return undefined_value("the " + std::string(type_name(value)) + " has no element " + std::to_string(i));
  }
  if (value.text() != nullptr && is_index) {
    if (i == INT64_MIN || i == INT64_MAX) return undefined_value("the str has no such element");
    FTH_ASSIGN_OR_RETURN(Value found, slice(context, value, Value{i}, i == -1 ? Value{} : Value{i + 1}, Value{}));
    if (found.text()->empty()) return undefined_value("the str has no element " + std::to_string(i));
    return found;
  }
  if (const Dict* dict = value.dict()) {
    FTH_ASSIGN_OR_RETURN(const Value* found, find(context, *dict, key));
    if (found != nullptr) return *found;
  }
  if (key.text() != nullptr) {
    FTH_RETURN_IF_ERROR(context.charge_bytes(key.text()->size()));
    return attribute(context, value, *key.text());
  }
  FTH_ASSIGN_OR_RETURN(const std::string name, to_str(context, key));
  return undefined_value("the " + std::string(type_name(value)) + " has no element " + name.substr(0, 80));
}

Result<Value> slice(Context& context, const Value& value, const Value& start, const Value& stop, const Value& step) {
  if (const Undefined* undefined = value.undefined()) return type_error(undefined->reason);
  const std::string* text = value.text();
  const List* list = value.list();
  if (text == nullptr && list == nullptr) return type_error("'" + std::string(type_name(value)) + "' object cannot be sliced");
  int64_t by = 1;
  if (!step.is_none() && !step.integer(by)) return type_error("slice indices must be integers");
  if (by == 0) return type_error("slice step cannot be zero");
  if (text != nullptr) FTH_RETURN_IF_ERROR(context.charge_bytes(text->size()));
  const auto size = static_cast<int64_t>(text != nullptr ? count_code_points(*text) : list->items.size());
  by = std::clamp(by, -size - 1, size + 1);
  FTH_ASSIGN_OR_RETURN(const int64_t from, slice_bound(start, by < 0 ? size - 1 : 0, size, by < 0));
  FTH_ASSIGN_OR_RETURN(const int64_t to, slice_bound(stop, by < 0 ? -1 : size, size, by < 0));
  if (text != nullptr && by == 1) {
    size_t begin = 0;
    for (int64_t i = 0; i < from; ++i) begin += decode(*text, begin).bytes;
    size_t end = begin;
    for (int64_t i = from; i < to; ++i) end += decode(*text, end).bytes;
    return context.text(text->substr(begin, end - begin));
  }
  std::vector<size_t> offsets;  // of the code points
  if (text != nullptr) {
    FTH_RETURN_IF_ERROR(context.charge(static_cast<uint64_t>(size)));
    for (size_t i = 0; i < text->size(); i += decode(*text, i).bytes) offsets.push_back(i);
  }
  std::string out;
  Values items;
  for (int64_t i = from; by > 0 ? i < to : i > to; i += by) {
    FTH_RETURN_IF_ERROR(context.charge(1));
    const auto k = static_cast<size_t>(i);
    if (list != nullptr) {
      items.push_back(list->items[k]);
    } else {
      out.append(*text, offsets[k], decode(*text, offsets[k]).bytes);
    }
  }
  if (list == nullptr) return context.text(std::move(out));
  return context.list(std::move(items), list->is_tuple);
}

}  // namespace fth::jinja
