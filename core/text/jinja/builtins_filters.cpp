// Filters of lists, dicts and numbers. Where Jinja returns a generator these return a list.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "core/text/jinja/builtins.h"
#include "core/text/jinja/operations.h"
#include "core/text/jinja/utf8.h"

namespace fth::jinja {
namespace {

bool flag(const Call& call, size_t i) { return call.args[i] != nullptr && is_true(*call.args[i]); }

Result<Value> length(const Call& call) {
  const Value& self = call.self;
  size_t n = 0;
  if (const std::string* text = self.text()) {
    FTH_RETURN_IF_ERROR(call.context.charge_bytes(text->size()));
    n = count_code_points(*text);
  } else if (self.list() != nullptr) {
    n = self.list()->items.size();
  } else if (self.dict() != nullptr) {
    n = self.dict()->entries.size();
  } else if (self.loop() != nullptr) {
    n = self.loop()->items->items.size();
  } else if (self.undefined() == nullptr) {
    return type_error("object of type '" + std::string(type_name(self)) + "' has no len()");
  }
  return Value{static_cast<int64_t>(n)};
}

Result<Value> default_value(const Call& call) {
  if (call.self.undefined() == nullptr && !(flag(call, 1) && !is_true(call.self))) return call.self;
  return call.args[0] != nullptr ? *call.args[0] : call.context.text("");
}

Result<Value> first(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  return items.empty() ? undefined_value("no first item: the sequence is empty") : items.front();
}
Result<Value> last(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  return items.empty() ? undefined_value("no last item: the sequence is empty") : items.back();
}

Result<Value> tojson(const Call& call) {
  static constexpr std::string_view kOptions[] = {"ensure_ascii", "indent", "separators", "sort_keys"};
  JsonStyle style;
  const Arguments& given = call.arguments;
  const size_t n_positional = given.values.size() - given.keywords.size();
  bool own_separators = false;
  for (size_t i = 0; i < given.values.size(); ++i) {
    if (i < n_positional && i >= std::size(kOptions)) return type_error("tojson: too many arguments");
    const std::string_view option = i < n_positional ? kOptions[i] : std::string_view(given.keywords[i - n_positional]);
    const Value& value = given.values[i];
    int64_t width = 0;
    if (option == "ensure_ascii") {
      style.ascii = is_true(value);
    } else if (option == "sort_keys") {
      style.sort_keys = is_true(value);
    } else if (option == "indent") {
      if (value.is_none()) continue;
      style.pretty = true;
      if (value.text() != nullptr) {
        style.indent = *value.text();
      } else if (!value.integer(width) || width > 1000) {
        return type_error("tojson: indent is a str or an int up to 1000");
      }
      style.indent.append(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    } else if (option == "separators") {
      if (value.is_none()) continue;
      const List* pair = value.list();
      if (pair == nullptr || pair->items.size() != 2 || pair->items[0].text() == nullptr || pair->items[1].text() == nullptr) {
        return type_error("tojson: separators are a pair of str");
      }
      own_separators = true;
      style.item_separator = *pair->items[0].text();
      style.key_separator = *pair->items[1].text();
    } else {
      return type_error("tojson has no argument '" + std::string(option) + "'");
    }
  }
  if (style.pretty && !own_separators) style.item_separator = ",";
  std::string out;
  FTH_RETURN_IF_ERROR(append_json(call.context, out, call.self, style));
  return call.context.text(std::move(out));
}

// "a.b.0": keys and indices, one after the other.
Result<Value> path(Context& context, Value value, const Value& attribute_path) {
  if (attribute_path.text() == nullptr) return subscript(context, value, attribute_path);
  std::string_view rest = *attribute_path.text();
  while (true) {
    const std::string_view part = rest.substr(0, rest.find('.'));
    int64_t i = 0;
    const bool is_index = !part.empty() && std::all_of(part.begin(), part.end(), is_digit) &&
                          std::from_chars(part.data(), part.data() + part.size(), i).ec == std::errc();
    FTH_ASSIGN_OR_RETURN(value, subscript(context, value, is_index ? Value{i} : constant_text(std::string(part))));
    if (part.size() == rest.size()) return value;
    rest.remove_prefix(part.size() + 1);
  }
}

Result<Value> join(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0 && call.args[0] != nullptr) FTH_RETURN_IF_ERROR(append_str(call.context, out, *call.args[0]));
    Value item = items[i];
    if (call.args[1] != nullptr) {
      FTH_ASSIGN_OR_RETURN(item, path(call.context, item, *call.args[1]));
    }
    FTH_RETURN_IF_ERROR(append_str(call.context, out, item));
  }
  return call.context.text(std::move(out));
}

Result<Value> list(const Call& call) {
  FTH_ASSIGN_OR_RETURN(Values items, iterate(call.context, call.self));
  return call.context.list(std::move(items));
}

Result<Value> reverse(const Call& call) {
  FTH_ASSIGN_OR_RETURN(Values items, iterate(call.context, call.self));
  std::reverse(items.begin(), items.end());
  if (call.self.text() == nullptr) return call.context.list(std::move(items));
  std::string out;
  for (const Value& c : items) out += *c.text();
  return call.context.text(std::move(out));
}

Result<Value> items_of(const Call& call) {
  if (call.self.undefined() != nullptr) return call.context.list({});
  if (call.self.dict() == nullptr) return type_error("can only get item pairs from a mapping");
  return find_method(call.self, "items")->run(call);
}

// What a value is sorted and compared by: an attribute of it, without case unless asked.
Result<Value> sort_key(Context& context, const Value& value, const Value* attribute_path, bool case_sensitive) {
  Value key = value;
  if (attribute_path != nullptr && !attribute_path->is_none()) {
    FTH_ASSIGN_OR_RETURN(key, path(context, value, *attribute_path));
  }
  if (case_sensitive || key.text() == nullptr) return key;
  std::string folded = *key.text();
  std::transform(folded.begin(), folded.end(), folded.begin(), to_lower);
  return context.text(std::move(folded));
}

using Keyed = std::vector<std::pair<Value, Value>>;  // key, value

// A stable merge sort of our own: a comparison may fail, which std::stable_sort cannot pass on.
Result<> sort_keyed(Context& context, Keyed& items, bool descending) {
  Keyed merged(items.size());
  for (size_t width = 1; width < items.size(); width *= 2) {
    for (size_t begin = 0; begin < items.size(); begin += 2 * width) {
      const size_t middle = std::min(begin + width, items.size()), end = std::min(middle + width, items.size());
      for (size_t a = begin, b = middle, to = begin; to < end; ++to) {
        bool take_right = a == middle;
        if (a < middle && b < end) {
          FTH_ASSIGN_OR_RETURN(const int order, compare(context, items[b].first, items[a].first));
          take_right = order == (descending ? 1 : -1);
        }
        merged[to] = std::move(items[take_right ? b++ : a++]);
      }
    }
    items.swap(merged);
  }
  return {};
}

Result<Value> sort(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  Keyed keyed;
  for (const Value& item : items) {
    FTH_ASSIGN_OR_RETURN(Value key, sort_key(call.context, item, call.args[2], flag(call, 1)));
    keyed.emplace_back(std::move(key), item);
  }
  FTH_RETURN_IF_ERROR(sort_keyed(call.context, keyed, flag(call, 0)));
  Values sorted;
  for (auto& entry : keyed) sorted.push_back(std::move(entry.second));
  return call.context.list(std::move(sorted));
}

Result<Value> dictsort(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Value pairs, items_of(call));
  const bool by_value = call.args[1] != nullptr && call.args[1]->text() != nullptr && *call.args[1]->text() == "value";
  const Value position{int64_t{by_value}};
  Keyed keyed;
  for (const Value& pair : pairs.list()->items) {
    FTH_ASSIGN_OR_RETURN(Value key, sort_key(call.context, pair, &position, flag(call, 0)));
    keyed.emplace_back(std::move(key), pair);
  }
  FTH_RETURN_IF_ERROR(sort_keyed(call.context, keyed, flag(call, 2)));
  Values sorted;
  for (auto& entry : keyed) sorted.push_back(std::move(entry.second));
  return call.context.list(std::move(sorted));
}

Result<Value> unique(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  Values seen, kept;
  for (const Value& item : items) {
    FTH_ASSIGN_OR_RETURN(Value key, sort_key(call.context, item, call.args[1], flag(call, 0)));
    bool known = false;
    for (size_t i = 0; i < seen.size() && !known; ++i) {
      FTH_ASSIGN_OR_RETURN(known, equal(call.context, seen[i], key));
    }
    if (known) continue;
    seen.push_back(std::move(key));
    kept.push_back(item);
  }
  return call.context.list(std::move(kept));
}

Result<Value> extreme(const Call& call, int wanted) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  if (items.empty()) return undefined_value("no item: the sequence is empty");
  size_t best = 0;
  Value best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    FTH_ASSIGN_OR_RETURN(Value key, sort_key(call.context, items[i], call.args[1], flag(call, 0)));
    if (i > 0) {
      FTH_ASSIGN_OR_RETURN(const int order, compare(call.context, key, best_key));
      if (order != wanted) continue;
    }
    best = i;
    best_key = std::move(key);
  }
  return items[best];
}
Result<Value> min(const Call& call) { return extreme(call, -1); }
Result<Value> max(const Call& call) { return extreme(call, 1); }

Result<Value> sum(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  Value total = call.args[1] != nullptr ? *call.args[1] : Value{int64_t{0}};
  for (Value item : items) {
    if (call.args[0] != nullptr && !call.args[0]->is_none()) {
      FTH_ASSIGN_OR_RETURN(item, path(call.context, item, *call.args[0]));
    }
    FTH_ASSIGN_OR_RETURN(total, arithmetic(call.context, Op::add, total, item));
  }
  return total;
}

Result<Value> absolute(const Call& call) {
  if (double d = 0; call.self.number(d) && d >= 0) return call.self.is_bool() ? Value{int64_t{is_true(call.self)}} : call.self;
  return negative(call.self);
}

// The number that a text is, as float() reads it.
bool parse_float(std::string_view text, double& out) {
  text = trim_end(text.substr(skip_space(text, 0)));
  if (text.starts_with('+')) text.remove_prefix(1);
  if (text.starts_with('+') || text.empty()) return false;
  const auto end = std::from_chars(text.data(), text.data() + text.size(), out);
  return end.ec == std::errc() && end.ptr == text.data() + text.size();
}

Result<Value> to_int(const Call& call) {
  if (call.args[1] != nullptr) return fail(Code::unimplemented, "int: another base than 10 is not supported");
  const Value fallback = call.args[0] != nullptr ? *call.args[0] : Value{int64_t{0}};
  if (int64_t i = 0; call.self.integer(i)) return Value{i};
  double d = 0;
  if (const std::string* text = call.self.text()) {
    std::string_view digits = trim_end(std::string_view(*text).substr(skip_space(*text, 0)));
    if (digits.size() > 1 && digits[0] == '+' && is_digit(digits[1])) digits.remove_prefix(1);
    int64_t i = 0;
    const auto end = std::from_chars(digits.data(), digits.data() + digits.size(), i);
    if (end.ec == std::errc() && end.ptr == digits.data() + digits.size()) return Value{i};
    if (!parse_float(*text, d)) return fallback;
  } else if (!call.self.number(d)) {
    return fallback;
  }
  if (!std::isfinite(d)) return fallback;
  if (std::abs(d) >= 9.2e18) return fail(Code::resource_exhausted, "an integer beyond 64 bits");
  return Value{static_cast<int64_t>(d)};
}

// Halves go to the even neighbour, as Python rounds; the result is a float.
Result<Value> round_to(const Call& call) {
  double d = 0;
  int64_t digits = 0;
  if (!call.self.number(d)) return type_error("round: a " + std::string(type_name(call.self)) + " is no number");
  if (call.args[0] != nullptr && (!call.args[0]->integer(digits) || digits < 0 || digits > 15)) {
    return fail(Code::unimplemented, "round: a precision outside 0 to 15 is not supported");
  }
  const std::string method = call.args[1] != nullptr && call.args[1]->text() != nullptr ? *call.args[1]->text() : "common";
  if (int64_t i = 0; method == "common" && call.self.integer(i)) return Value{i};
  const double scale = std::pow(10.0, static_cast<double>(digits));
  if (method == "ceil") return Value{std::ceil(d * scale) / scale};
  if (method == "floor") return Value{std::floor(d * scale) / scale};
  if (method != "common") return type_error("round: the method is 'common', 'ceil' or 'floor'");
  if (!std::isfinite(d) || std::abs(d) > 1e300) return Value{d};
  std::array<char, 400> text;  // printing rounds the exact binary value, which multiplying by the scale does not
  const auto printed = std::to_chars(text.data(), text.data() + text.size(), d, std::chars_format::fixed, static_cast<int>(digits));
  double rounded = d;
  std::from_chars(text.data(), printed.ptr, rounded);
  return Value{rounded};
}

Result<Value> to_float(const Call& call) {
  double d = 0;
  if (call.self.number(d) || (call.self.text() != nullptr && parse_float(*call.self.text(), d))) return Value{d};
  return call.args[0] != nullptr ? *call.args[0] : Value{0.0};
}

// Picks items by a named test, of themselves or of one attribute: select, reject, selectattr, rejectattr.
Result<Value> pick(const Call& call, bool by_attribute, bool wanted) {
  const Arguments& given = call.arguments;
  if (!given.keywords.empty()) return type_error("this filter takes no named arguments");
  const size_t at = by_attribute ? 1 : 0;
  if (given.values.size() < at) return type_error("missing the name of an attribute");
  const Builtin* test = nullptr;
  if (given.values.size() > at) {
    const std::string* name = given.values[at].text();
    test = name != nullptr ? find_test(*name) : nullptr;
    if (test == nullptr) return fail(Code::unimplemented, "the test '" + (name != nullptr ? *name : "") + "' is not supported");
  }
  Arguments rest;
  for (size_t i = at + 1; i < given.values.size(); ++i) rest.values.push_back(given.values[i]);
  if (!is_true(call.self)) return call.context.list({});  // none too: templates select from tools that are not there
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  Values kept;
  for (const Value& item : items) {
    Value subject = item;
    if (by_attribute) {
      FTH_ASSIGN_OR_RETURN(subject, path(call.context, item, given.values[0]));
    }
    if (test != nullptr) {
      FTH_ASSIGN_OR_RETURN(subject, run_builtin(call.context, *test, subject, rest));
    }
    if (is_true(subject) == wanted) kept.push_back(item);
  }
  return call.context.list(std::move(kept));
}
Result<Value> select(const Call& call) { return pick(call, false, true); }
Result<Value> reject(const Call& call) { return pick(call, false, false); }
Result<Value> selectattr(const Call& call) { return pick(call, true, true); }
Result<Value> rejectattr(const Call& call) { return pick(call, true, false); }

// map('upper') or map(attribute='content', default='').
Result<Value> map(const Call& call) {
  const Arguments& given = call.arguments;
  const Value *attribute_path = nullptr, *fallback = nullptr;
  const Builtin* filter = nullptr;
  Arguments rest;
  if (given.values.size() > given.keywords.size()) {
    const std::string* name = given.values[0].text();
    filter = name != nullptr ? find_filter(*name) : nullptr;
    if (filter == nullptr) return fail(Code::unimplemented, "the filter '" + (name != nullptr ? *name : "") + "' is not supported");
    rest.values.assign(given.values.begin() + 1, given.values.end());
    rest.keywords = given.keywords;
  } else {
    for (size_t i = 0; i < given.keywords.size(); ++i) {
      if (given.keywords[i] == "attribute") attribute_path = &given.values[i];
      if (given.keywords[i] == "default") fallback = &given.values[i];
    }
    if (attribute_path == nullptr) return type_error("map needs the name of a filter or attribute=");
  }
  if (!is_true(call.self)) return call.context.list({});
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, call.self));
  Values mapped;
  for (const Value& item : items) {
    FTH_ASSIGN_OR_RETURN(Value result,
                         filter != nullptr ? run_builtin(call.context, *filter, item, rest) : path(call.context, item, *attribute_path));
    if (fallback != nullptr && result.undefined() != nullptr) result = *fallback;
    mapped.push_back(std::move(result));
  }
  return call.context.list(std::move(mapped));
}

constexpr Builtin kFilters[] = {
    {"abs", "", absolute},
    {"count", "", length},
    {"d", "default_value boolean", default_value},
    {"default", "default_value boolean", default_value},
    {"dictsort", "case_sensitive by reverse", dictsort},
    {"first", "", first},
    {"float", "default", to_float},
    {"int", "default base", to_int},
    {"items", "", items_of},
    {"join", "d attribute", join},
    {"last", "", last},
    {"length", "", length},
    {"list", "", list},
    {"map", "*", map},
    {"max", "case_sensitive attribute", max},
    {"min", "case_sensitive attribute", min},
    {"reject", "*", reject},
    {"rejectattr", "*", rejectattr},
    {"reverse", "", reverse},
    {"round", "precision method", round_to},
    {"select", "*", select},
    {"selectattr", "*", selectattr},
    {"sort", "reverse case_sensitive attribute", sort},
    {"sum", "attribute start", sum},
    {"tojson", "*", tojson},
    {"unique", "case_sensitive attribute", unique},
};

}  // namespace

const Builtin* find_filter(std::string_view name) {
  for (const Builtin& filter : kFilters) {
    if (filter.name == name) return &filter;
  }
  return find_text_filter(name);
}

}  // namespace fth::jinja
