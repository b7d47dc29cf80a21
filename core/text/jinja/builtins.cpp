// Tests, functions, the methods of lists, dicts and `loop`, and how arguments find their parameters.
#include "core/text/jinja/builtins.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <span>

#include "core/text/jinja/limits.h"
#include "core/text/jinja/operations.h"
#include "core/text/jinja/utf8.h"

namespace fth::jinja {
namespace {

Result<Value> is_defined(const Call& c) { return Value{c.self.undefined() == nullptr}; }
Result<Value> is_undefined(const Call& c) { return Value{c.self.undefined() != nullptr}; }
Result<Value> is_none(const Call& c) { return Value{c.self.is_none()}; }
Result<Value> is_string(const Call& c) { return Value{c.self.text() != nullptr}; }
Result<Value> is_boolean(const Call& c) { return Value{c.self.is_bool()}; }
Result<Value> is_true_test(const Call& c) { return Value{c.self.is_bool() && is_true(c.self)}; }
Result<Value> is_false_test(const Call& c) { return Value{c.self.is_bool() && !is_true(c.self)}; }
Result<Value> is_float(const Call& c) { return Value{c.self.is_float()}; }
Result<Value> is_mapping(const Call& c) { return Value{c.self.dict() != nullptr}; }
Result<Value> is_callable(const Call& c) { return Value{c.self.function() != nullptr}; }
Result<Value> is_integer(const Call& c) {
  int64_t i = 0;
  return Value{!c.self.is_bool() && c.self.integer(i)};
}
Result<Value> is_number(const Call& c) {
  double d = 0;
  return Value{c.self.number(d)};
}
Result<Value> is_sequence(const Call& c) {
  return Value{c.self.text() != nullptr || c.self.list() != nullptr || c.self.dict() != nullptr || c.self.undefined() != nullptr};
}
Result<Value> is_iterable(const Call& c) {
  return Value{c.self.text() != nullptr || c.self.list() != nullptr || c.self.dict() != nullptr || c.self.undefined() != nullptr ||
               c.self.loop() != nullptr};
}
template <char (*Same)(char)>
Result<Value> has_case(const Call& c) {
  FTH_ASSIGN_OR_RETURN(const std::string text, to_str(c.context, c.self));
  const bool letters = std::any_of(text.begin(), text.end(), is_alpha);
  return Value{letters && std::all_of(text.begin(), text.end(), [](char x) { return Same(x) == x; })};
}
Result<bool> divides(const Call& c, const Value& by, int64_t rest) {
  FTH_ASSIGN_OR_RETURN(const Value modulo, arithmetic(c.context, Op::modulo, c.self, by));
  return equal(c.context, modulo, Value{rest});
}
Result<Value> is_odd(const Call& c) {
  FTH_ASSIGN_OR_RETURN(const bool odd, divides(c, Value{int64_t{2}}, 1));
  return Value{odd};
}
Result<Value> is_even(const Call& c) {
  FTH_ASSIGN_OR_RETURN(const bool even, divides(c, Value{int64_t{2}}, 0));
  return Value{even};
}
Result<Value> is_divisible(const Call& c) {
  FTH_ASSIGN_OR_RETURN(const bool divisible, divides(c, *c.args[0], 0));
  return Value{divisible};
}
Result<Value> is_same(const Call& c) {
  const Value &a = c.self, &b = *c.args[0];
  return Value{a.v.index() == b.v.index() && a.v == b.v};
}
template <Op Operator>
Result<Value> compares(const Call& c) {
  FTH_ASSIGN_OR_RETURN(const bool holds, comparison(c.context, Operator, c.self, *c.args[0]));
  return Value{holds};
}

constexpr Builtin kTests[] = {
    {"!=", "!other", compares<Op::ne>},
    {"<", "!other", compares<Op::lt>},
    {"<=", "!other", compares<Op::le>},
    {"==", "!other", compares<Op::eq>},
    {">", "!other", compares<Op::gt>},
    {">=", "!other", compares<Op::ge>},
    {"boolean", "", is_boolean},
    {"callable", "", is_callable},
    {"defined", "", is_defined},
    {"divisibleby", "!num", is_divisible},
    {"eq", "!other", compares<Op::eq>},
    {"equalto", "!other", compares<Op::eq>},
    {"even", "", is_even},
    {"false", "", is_false_test},
    {"float", "", is_float},
    {"ge", "!other", compares<Op::ge>},
    {"greaterthan", "!other", compares<Op::gt>},
    {"gt", "!other", compares<Op::gt>},
    {"in", "!seq", compares<Op::in>},
    {"integer", "", is_integer},
    {"iterable", "", is_iterable},
    {"le", "!other", compares<Op::le>},
    {"lessthan", "!other", compares<Op::lt>},
    {"lower", "", has_case<to_lower>},
    {"lt", "!other", compares<Op::lt>},
    {"mapping", "", is_mapping},
    {"ne", "!other", compares<Op::ne>},
    {"none", "", is_none},
    {"number", "", is_number},
    {"odd", "", is_odd},
    {"sameas", "!other", is_same},
    {"sequence", "", is_sequence},
    {"string", "", is_string},
    {"true", "", is_true_test},
    {"undefined", "", is_undefined},
    {"upper", "", has_case<to_upper>},
};

// --- functions

Result<Value> range(const Call& call) {
  const Values& given = call.arguments.values;
  std::array<int64_t, 3> bounds = {0, 0, 1};  // start, stop, step
  if (given.empty() || given.size() > 3 || !call.arguments.keywords.empty()) return type_error("range takes one to three integers");
  for (size_t i = 0; i < given.size(); ++i) {
    if (!given[i].integer(bounds[given.size() == 1 ? 1 : i])) {
      return type_error("range: '" + std::string(type_name(given[i])) + "' is no integer");
    }
  }
  const auto [start, stop, step] = bounds;
  if (step == 0) return type_error("range: the step is zero");
  const auto too_long = [] { return fail(Code::resource_exhausted, "range: more than " + std::to_string(kMaxRange) + " numbers"); };
  int64_t distance = 0;
  if (__builtin_sub_overflow(stop, start, &distance)) return too_long();
  if (step == INT64_MIN) return fail(Code::resource_exhausted, "range: a step beyond 63 bits");
  const int64_t n = distance == 0 || (distance < 0) != (step < 0) ? 0 : (distance - (distance < 0 ? -1 : 1)) / step + 1;
  if (n > kMaxRange) return too_long();
  Values items;
  for (int64_t i = 0; i < n; ++i) items.push_back(Value{start + i * step});
  return call.context.list(std::move(items));
}

// Entries from one mapping and from named arguments: what dict() and namespace() take.
Result<std::vector<std::pair<Value, Value>>> entries_of(const Call& call) {
  const Arguments& given = call.arguments;
  const size_t n_positional = given.values.size() - given.keywords.size();
  std::vector<std::pair<Value, Value>> entries;
  if (n_positional > 1) return type_error("expected one mapping and named arguments");
  if (n_positional == 1) {
    if (given.values[0].dict() == nullptr) return type_error("expected a mapping, not '" + std::string(type_name(given.values[0])) + "'");
    entries = given.values[0].dict()->entries;
  }
  for (size_t i = 0; i < given.keywords.size(); ++i) {
    entries.emplace_back(constant_text(given.keywords[i]), given.values[n_positional + i]);
  }
  return entries;
}

Result<Value> dict(const Call& call) {
  FTH_ASSIGN_OR_RETURN(auto entries, entries_of(call));
  return call.context.dict(std::move(entries));
}

Result<Value> name_space(const Call& call) {
  FTH_ASSIGN_OR_RETURN(auto entries, entries_of(call));
  FTH_RETURN_IF_ERROR(call.context.charge(1 + entries.size()));
  std::map<std::string, Value, std::less<>> slots;
  for (auto& [key, value] : entries) {
    if (key.text() == nullptr) return type_error("namespace: keys are str, not '" + std::string(type_name(key)) + "'");
    slots.insert_or_assign(*key.text(), std::move(value));
  }
  return call.context.new_namespace(std::move(slots));
}

Result<Value> raise_exception(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const std::string message, to_str(call.context, *call.args[0]));
  return fail(Code::invalid_argument, "the template refuses this conversation: " + message.substr(0, 1000));
}

// The context's date at midnight, in the C locale.
Result<Value> strftime_now(const Call& call) {
  const std::string& date = call.context.date();
  int year = 0;
  unsigned month = 0, day = 0;
  const char *begin = date.data(), *end = begin + date.size();
  const bool shaped = date.size() == 10 && date[4] == '-' && date[7] == '-' && std::from_chars(begin, begin + 4, year).ptr == begin + 4 &&
                      std::from_chars(begin + 5, begin + 7, month).ptr == begin + 7 && std::from_chars(begin + 8, end, day).ptr == end;
  const std::chrono::year_month_day ymd{std::chrono::year(year), std::chrono::month(month), std::chrono::day(day)};
  if (!shaped || !ymd.ok()) return fail(Code::invalid_argument, "the date '" + date + "' is no YYYY-MM-DD");
  if (call.args[0]->text() == nullptr) return type_error("strftime_now: the format is a str");
  static constexpr std::string_view kMonths[] = {"January", "February", "March",     "April",   "May",      "June",
                                                 "July",    "August",   "September", "October", "November", "December"};
  static constexpr std::string_view kDays[] = {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};
  const std::string_view month_name = kMonths[month - 1], day_name = kDays[std::chrono::weekday(ymd).c_encoding()];
  const auto padded = [](int64_t n, size_t width) {
    const std::string digits = std::to_string(n);
    return std::string(width - std::min(width, digits.size()), '0') + digits;
  };
  const auto day_of_year = (std::chrono::sys_days(ymd) - std::chrono::sys_days(ymd.year() / 1 / 1)).count() + 1;
  std::string out;
  const std::string& format = *call.args[0]->text();
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out.push_back(format[i]);
      continue;
    }
    bool pad = true;
    if (format[++i] == '-' && i + 1 < format.size()) {  // the C library's extension for "no leading zero"
      pad = false;
      ++i;
    }
    switch (format[i]) {
      case 'Y': out += padded(year, pad ? 4 : 1); break;
      case 'y': out += padded(year % 100, pad ? 2 : 1); break;
      case 'm': out += padded(month, pad ? 2 : 1); break;
      case 'd': out += padded(day, pad ? 2 : 1); break;
      case 'j': out += padded(day_of_year, pad ? 3 : 1); break;
      case 'B': out += month_name; break;
      case 'b': out += month_name.substr(0, 3); break;
      case 'A': out += day_name; break;
      case 'a': out += day_name.substr(0, 3); break;
      case 'F': out += date; break;
      case 'H':
      case 'M':
      case 'S': out += pad ? "00" : "0"; break;
      case 'I': out += "12"; break;
      case 'p': out += "AM"; break;
      case '%': out += '%'; break;
      default: return fail(Code::unimplemented, std::string("strftime_now: '%") + format[i] + "' is not supported");
    }
  }
  return call.context.text(std::move(out));
}

// Jinja has these; naming them tells more than "undefined".
Result<Value> unsupported(const Call&) { return fail(Code::unimplemented, "cycler, joiner and lipsum are not supported"); }

constexpr Builtin kFunctions[] = {
    {"cycler", "*", unsupported},   {"dict", "*", dict},
    {"joiner", "*", unsupported},   {"lipsum", "*", unsupported},
    {"namespace", "*", name_space}, {"raise_exception", "!message", raise_exception},
    {"range", "*", range},          {"strftime_now", "!format", strftime_now},
};

// --- methods

Result<Value> dict_list(const Call& call, bool keys, bool values) {
  Values items;
  for (const auto& [key, value] : call.self.dict()->entries) {
    if (keys && values) {
      FTH_ASSIGN_OR_RETURN(Value pair, call.context.list({key, value}, /*is_tuple=*/true));
      items.push_back(std::move(pair));
    } else {
      items.push_back(keys ? key : value);
    }
  }
  return call.context.list(std::move(items));
}
Result<Value> dict_items(const Call& call) { return dict_list(call, true, true); }
Result<Value> dict_keys(const Call& call) { return dict_list(call, true, false); }
Result<Value> dict_values(const Call& call) { return dict_list(call, false, true); }

Result<Value> dict_get(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Value* found, find(call.context, *call.self.dict(), *call.args[0]));
  return found != nullptr ? *found : call.args[1] != nullptr ? *call.args[1] : Value{};
}

Result<Value> list_count(const Call& call) {
  int64_t n = 0;
  for (const Value& item : call.self.list()->items) {
    FTH_ASSIGN_OR_RETURN(const bool same, equal(call.context, item, *call.args[0]));
    n += same ? 1 : 0;
  }
  return Value{n};
}

Result<Value> list_index(const Call& call) {
  const Values& items = call.self.list()->items;
  for (size_t i = 0; i < items.size(); ++i) {
    FTH_ASSIGN_OR_RETURN(const bool same, equal(call.context, items[i], *call.args[0]));
    if (same) return Value{static_cast<int64_t>(i)};
  }
  return type_error("index: the value is not in the list");
}

Result<Value> loop_cycle(const Call& call) {
  const Values& given = call.arguments.values;
  if (given.empty()) return type_error("loop.cycle: no items");
  return given[static_cast<size_t>(call.self.loop()->index0) % given.size()];
}

constexpr Builtin kDictMethods[] = {
    {"get", "!key default", dict_get}, {"items", "", dict_items}, {"keys", "", dict_keys}, {"values", "", dict_values}};
constexpr Builtin kListMethods[] = {{"count", "!value", list_count}, {"index", "!value", list_index}};
constexpr Builtin kLoopMethods[] = {{"cycle", "*", loop_cycle}};

const Builtin* row(std::span<const Builtin> table, std::string_view name) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const Builtin& b) { return b.name == name; });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace

const Builtin* find_test(std::string_view name) { return row(kTests, name); }
const Builtin* find_function(std::string_view name) { return row(kFunctions, name); }
const Builtin* find_method(const Value& self, std::string_view name) {
  if (self.text() != nullptr) return find_text_method(name);
  if (self.dict() != nullptr) return row(kDictMethods, name);
  if (self.list() != nullptr) return row(kListMethods, name);
  return self.loop() != nullptr ? row(kLoopMethods, name) : nullptr;
}

Result<Value> run_builtin(Context& context, const Builtin& builtin, const Value& self, const Arguments& arguments) {
  FTH_RETURN_IF_ERROR(context.charge(1));
  Call call{context, self, arguments, {}};
  if (builtin.params == "*") return builtin.run(call);
  const size_t n_positional = arguments.values.size() - arguments.keywords.size();
  std::string_view rest = builtin.params;
  size_t n_params = 0, n_used = 0;
  while (!rest.empty()) {
    std::string_view name = rest.substr(0, rest.find(' '));
    rest.remove_prefix(std::min(rest.size(), name.size() + 1));
    const bool required = name.starts_with('!');
    if (required) name.remove_prefix(1);
    const Value*& slot = call.args[n_params];
    if (n_params < n_positional) {
      slot = &arguments.values[n_params];
      ++n_used;
    }
    for (size_t i = 0; i < arguments.keywords.size(); ++i) {
      if (arguments.keywords[i] != name) continue;
      if (slot != nullptr) return type_error("'" + std::string(builtin.name) + "' got '" + std::string(name) + "' twice");
      slot = &arguments.values[n_positional + i];
      ++n_used;
    }
    if (required && slot == nullptr)
      return type_error("'" + std::string(builtin.name) + "' needs the argument '" + std::string(name) + "'");
    ++n_params;
  }
  if (n_used != arguments.values.size()) {
    return type_error("'" + std::string(builtin.name) + "' takes at most " + std::to_string(n_params) +
                      " arguments: " + (builtin.params.empty() ? "none" : std::string(builtin.params)));
  }
  return builtin.run(call);
}

}  // namespace fth::jinja
