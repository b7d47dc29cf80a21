// Meanings are those of CPython 3 and of Jinja's default Undefined: it prints as nothing, is false and empty, and fails in any other use.
#include "core/text/jinja/value.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "core/text/jinja/limits.h"
#include "core/text/jinja/utf8.h"

namespace fth::jinja {
namespace {

Result<> append_quoted(Context& context, std::string& out, std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string quoted(1, quote);
  for (const char c : text) {
    if (c == quote || c == '\\') {
      quoted += {'\\', c};
    } else if (c == '\n' || c == '\r' || c == '\t') {
      quoted += {'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'};
    } else if ((c >= 0 && c < ' ') || c == 0x7F) {
      quoted += {'\\', 'x', "0123456789abcdef"[c >> 4], "0123456789abcdef"[c & 15]};
    } else {
      quoted.push_back(c);
    }
  }
  quoted.push_back(quote);
  return context.append(out, quoted);
}

// The shortest digits that read back as the same number, laid out as Python's repr: 1.0, 1e-05, 1e+16.
std::string float_text(double d, bool json) {
  if (std::isnan(d)) return json ? "NaN" : "nan";
  if (std::isinf(d)) return std::string(d < 0 ? "-" : "") + (json ? "Infinity" : "inf");
  const double magnitude = std::abs(d);
  const bool scientific = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  std::array<char, 64> buffer;
  const auto end =
      std::to_chars(buffer.data(), buffer.data() + buffer.size(), d, scientific ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(buffer.data(), end.ptr);
  if (!scientific && text.find('.') == std::string::npos) text += ".0";
  return text;
}

Result<> append_repr(Context& context, std::string& out, const Value& value);

Result<> append_items(Context& context, std::string& out, const List& list) {
  FTH_RETURN_IF_ERROR(context.append(out, list.is_tuple ? "(" : "["));
  for (size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) FTH_RETURN_IF_ERROR(context.append(out, ", "));
    FTH_RETURN_IF_ERROR(append_repr(context, out, list.items[i]));
  }
  return context.append(out, !list.is_tuple ? "]" : list.items.size() == 1 ? ",)" : ")");
}

Result<> append_repr(Context& context, std::string& out, const Value& value) {
  if (const std::string* text = value.text()) return append_quoted(context, out, *text);
  if (const Undefined* undefined = value.undefined(); undefined != nullptr) return context.append(out, "Undefined");
  if (const List* list = value.list()) return append_items(context, out, *list);
  const Dict* dict = value.dict();
  if (dict == nullptr) return append_str(context, out, value);
  FTH_RETURN_IF_ERROR(context.append(out, "{"));
  for (size_t i = 0; i < dict->entries.size(); ++i) {
    if (i > 0) FTH_RETURN_IF_ERROR(context.append(out, ", "));
    FTH_RETURN_IF_ERROR(append_repr(context, out, dict->entries[i].first));
    FTH_RETURN_IF_ERROR(context.append(out, ": "));
    FTH_RETURN_IF_ERROR(append_repr(context, out, dict->entries[i].second));
  }
  return context.append(out, "}");
}

void append_hex(std::string& out, char32_t unit) {
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out.push_back("0123456789abcdef"[(unit >> shift) & 15]);
}

Result<> append_json_text(Context& context, std::string& out, std::string_view text, bool ascii) {
  std::string quoted = "\"";
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = decode(text, i);
    if (const size_t k = std::string_view("\"\\\n\r\t\b\f").find(static_cast<char>(c.value));
        c.value < 0x80 && k != std::string_view::npos) {
      quoted += {'\\', "\"\\nrtbf"[k]};
    } else if (c.value < ' ') {
      append_hex(quoted, c.value);
    } else if (c.bytes == 1 || !ascii) {
      quoted.append(text.substr(i, c.bytes));
    } else if (c.value < 0x10000) {
      append_hex(quoted, c.value);
    } else {
      append_hex(quoted, 0xD800 + ((c.value - 0x10000) >> 10));
      append_hex(quoted, 0xDC00 + ((c.value - 0x10000) & 0x3FF));
    }
    i += c.bytes;
  }
  quoted.push_back('"');
  return context.append(out, quoted);
}

Result<> append_json_break(Context& context, std::string& out, const JsonStyle& style, int level) {
  if (!style.pretty) return {};
  FTH_RETURN_IF_ERROR(context.append(out, "\n"));
  for (int i = 0; i < level; ++i) FTH_RETURN_IF_ERROR(context.append(out, style.indent));
  return {};
}

Result<> append_json_dict(Context& context, std::string& out, const Dict& dict, const JsonStyle& style, int level) {
  if (dict.entries.empty()) return context.append(out, "{}");
  std::vector<const std::pair<Value, Value>*> entries;
  for (const auto& entry : dict.entries) entries.push_back(&entry);
  if (style.sort_keys) {
    for (const auto* entry : entries) {
      if (entry->first.text() == nullptr) return type_error("tojson(sort_keys) sorts str keys only");
    }
    FTH_RETURN_IF_ERROR(context.charge(entries.size() * 16));
    std::stable_sort(entries.begin(), entries.end(), [](const auto* a, const auto* b) { return *a->first.text() < *b->first.text(); });
  }
  for (size_t i = 0; i < entries.size(); ++i) {
    FTH_RETURN_IF_ERROR(context.append(out, i == 0 ? "{" : style.item_separator));
    FTH_RETURN_IF_ERROR(append_json_break(context, out, style, level + 1));
    const Value& key = entries[i]->first;
    if (const std::string* text = key.text()) {
      FTH_RETURN_IF_ERROR(append_json_text(context, out, *text, style.ascii));
    } else if (key.list() != nullptr) {
      return type_error("tojson: a tuple is no JSON key");
    } else {
      FTH_RETURN_IF_ERROR(context.append(out, "\""));
      FTH_RETURN_IF_ERROR(append_json(context, out, key, style));
      FTH_RETURN_IF_ERROR(context.append(out, "\""));
    }
    FTH_RETURN_IF_ERROR(context.append(out, style.key_separator));
    FTH_RETURN_IF_ERROR(append_json(context, out, entries[i]->second, style, level + 1));
  }
  FTH_RETURN_IF_ERROR(append_json_break(context, out, style, level));
  return context.append(out, "}");
}

int sign(auto a, auto b) { return a < b ? -1 : b < a ? 1 : a == b ? 0 : kUnordered; }

}  // namespace

Context::~Context() {
  for (const auto& space : namespaces_) space->slots.clear();
}

Result<> Context::charge(uint64_t steps) {
  steps_ += std::min(steps, kMaxSteps + 1);
  if (steps_ > kMaxSteps) return fail(Code::resource_exhausted, "more than " + std::to_string(kMaxSteps) + " evaluation steps");
  return {};
}

Result<> Context::charge_bytes(uint64_t bytes) { return charge(bytes / kBytesPerStep + (bytes % kBytesPerStep + 255) / 256); }

Result<> Context::append(std::string& out, std::string_view text) {
  if (text.size() > kMaxStringBytes - std::min<uint64_t>(out.size(), kMaxStringBytes)) {
    return fail(Code::resource_exhausted, "a string of more than " + std::to_string(kMaxStringBytes) + " bytes");
  }
  FTH_RETURN_IF_ERROR(charge_bytes(text.size()));
  out.append(text);
  return {};
}

Result<Value> Context::text(std::string bytes) {
  if (bytes.size() > kMaxStringBytes - std::min(live_bytes_, kMaxStringBytes)) {
    return fail(Code::resource_exhausted, "the template's strings take more than " + std::to_string(kMaxStringBytes) + " bytes");
  }
  FTH_RETURN_IF_ERROR(charge_bytes(bytes.size()));
  return Value{std::make_shared<const Text>(std::move(bytes), &live_bytes_)};
}

Result<Value> Context::list(Values items, bool is_tuple) {
  FTH_RETURN_IF_ERROR(charge(items.size()));
  int depth = 1;
  for (const Value& item : items) {
    FTH_RETURN_IF_ERROR(check_nesting(item));
    depth = std::max(depth, nesting(item) + 1);
  }
  return Value{std::make_shared<const List>(List{std::move(items), is_tuple, depth})};
}

Result<Value> Context::dict(std::vector<std::pair<Value, Value>> entries) {
  FTH_RETURN_IF_ERROR(charge(entries.size()));
  Dict dict;
  auto taken = std::move(entries);
  for (auto& [key, value] : taken) {
    if (key.dict() != nullptr || (key.list() != nullptr && !key.list()->is_tuple)) {
      return type_error("unhashable type: '" + std::string(type_name(key)) + "'");
    }
    for (const Value* part : {&key, &value}) {
      FTH_RETURN_IF_ERROR(check_nesting(*part));
      dict.depth = std::max(dict.depth, nesting(*part) + 1);
    }
    FTH_ASSIGN_OR_RETURN(const Value* known, find(*this, dict, key));
    if (known != nullptr) {
      dict.entries[static_cast<size_t>(
                       std::find_if(dict.entries.begin(), dict.entries.end(), [&](const auto& e) { return &e.second == known; }) -
                       dict.entries.begin())]
          .second = std::move(value);
    } else {
      dict.entries.emplace_back(std::move(key), std::move(value));
    }
  }
  return Value{std::make_shared<const Dict>(std::move(dict))};
}

Value Context::new_namespace(std::map<std::string, Value, std::less<>> slots) {
  namespaces_.push_back(std::make_shared<Namespace>(Namespace{std::move(slots)}));
  return Value{namespaces_.back()};
}

Value undefined_value(std::string reason, bool is_method) {
  return Value{std::make_shared<const Undefined>(Undefined{std::move(reason), is_method})};
}

Value constant_text(std::string bytes) { return Value{std::make_shared<const Text>(std::move(bytes), nullptr)}; }

tl::unexpected<Error> type_error(std::string what) { return fail(Code::data_loss, std::move(what)); }

std::string_view type_name(const Value& value) {
  if (value.list() != nullptr && value.list()->is_tuple) return "tuple";
  static constexpr std::array<std::string_view, 11> kNames = {"NoneType", "bool",      "int",       "float",       "str",     "list",
                                                              "dict",     "Undefined", "Namespace", "LoopContext", "function"};
  return kNames[value.v.index()];
}

int nesting(const Value& value) {
  if (const List* list = value.list()) return list->depth;
  if (const Dict* dict = value.dict()) return dict->depth;
  if (const Loop* loop = value.loop()) return loop->items->depth + 1;
  if (const Function* function = value.function()) return nesting(function->self) + 1;
  return 0;
}

// Printing, comparing and freeing nested values recurse.
Result<> check_nesting(const Value& value) {
  if (nesting(value) < kMaxNesting) return {};
  return fail(Code::resource_exhausted, "values nest more than " + std::to_string(kMaxNesting) + " levels deep");
}

bool is_true(const Value& value) {
  if (const std::string* text = value.text()) return !text->empty();
  if (const List* list = value.list()) return !list->items.empty();
  if (const Dict* dict = value.dict()) return !dict->entries.empty();
  if (double d = 0; value.number(d)) return d != 0;
  return !value.is_none() && value.undefined() == nullptr;
}

Result<> append_str(Context& context, std::string& out, const Value& value) {
  if (const std::string* text = value.text()) return context.append(out, *text);
  if (value.undefined() != nullptr) return {};
  if (value.is_none()) return context.append(out, "None");
  if (value.is_bool()) return context.append(out, is_true(value) ? "True" : "False");
  if (int64_t i = 0; value.integer(i)) return context.append(out, std::to_string(i));
  if (double d = 0; value.number(d)) return context.append(out, float_text(d, false));
  if (value.list() != nullptr || value.dict() != nullptr) return append_repr(context, out, value);
  return type_error("a " + std::string(type_name(value)) + " has no text");
}

Result<std::string> to_str(Context& context, const Value& value) {
  std::string out;
  FTH_RETURN_IF_ERROR(append_str(context, out, value));
  return out;
}

Result<> append_json(Context& context, std::string& out, const Value& value, const JsonStyle& style, int level) {
  if (const std::string* text = value.text()) return append_json_text(context, out, *text, style.ascii);
  if (value.is_none()) return context.append(out, "null");
  if (value.is_bool()) return context.append(out, is_true(value) ? "true" : "false");
  if (int64_t i = 0; value.integer(i)) return context.append(out, std::to_string(i));
  if (double d = 0; value.number(d)) return context.append(out, float_text(d, true));
  if (const Dict* dict = value.dict()) return append_json_dict(context, out, *dict, style, level);
  const List* list = value.list();
  if (list == nullptr) return type_error("Object of type " + std::string(type_name(value)) + " is not JSON serializable");
  if (list->items.empty()) return context.append(out, "[]");
  for (size_t i = 0; i < list->items.size(); ++i) {
    FTH_RETURN_IF_ERROR(context.append(out, i == 0 ? "[" : style.item_separator));
    FTH_RETURN_IF_ERROR(append_json_break(context, out, style, level + 1));
    FTH_RETURN_IF_ERROR(append_json(context, out, list->items[i], style, level + 1));
  }
  FTH_RETURN_IF_ERROR(append_json_break(context, out, style, level));
  return context.append(out, "]");
}

Result<bool> equal(Context& context, const Value& a, const Value& b) {
  FTH_RETURN_IF_ERROR(context.charge(1));
  int64_t i = 0, j = 0;
  if (a.integer(i) && b.integer(j)) return i == j;
  double x = 0, y = 0;
  if (a.number(x) && b.number(y)) return x == y;
  if (a.v.index() != b.v.index()) return false;
  if (const std::string* text = a.text()) {
    if (text->size() != b.text()->size()) return false;
    FTH_RETURN_IF_ERROR(context.charge_bytes(text->size()));
    return *text == *b.text();
  }
  if (const List* list = a.list()) {
    if (list->is_tuple != b.list()->is_tuple || list->items.size() != b.list()->items.size()) return false;
    for (size_t k = 0; k < list->items.size(); ++k) {
      FTH_ASSIGN_OR_RETURN(const bool same, equal(context, list->items[k], b.list()->items[k]));
      if (!same) return false;
    }
    return true;
  }
  if (const Dict* dict = a.dict()) {
    if (dict->entries.size() != b.dict()->entries.size()) return false;
    for (const auto& [key, value] : dict->entries) {
      FTH_ASSIGN_OR_RETURN(const Value* other, find(context, *b.dict(), key));
      if (other == nullptr) return false;
      FTH_ASSIGN_OR_RETURN(const bool same, equal(context, value, *other));
      if (!same) return false;
    }
    return true;
  }
  return a.undefined() != nullptr || a.v == b.v;
}

Result<int> compare(Context& context, const Value& a, const Value& b) {
  FTH_RETURN_IF_ERROR(context.charge(1));
  for (const Value* value : {&a, &b}) {
    if (value->undefined() != nullptr) return type_error(value->undefined()->reason);
  }
  int64_t i = 0, j = 0;
  if (a.integer(i) && b.integer(j)) return sign(i, j);
  double x = 0, y = 0;
  if (a.number(x) && b.number(y)) return sign(x, y);
  if (a.text() != nullptr && b.text() != nullptr) {
    FTH_RETURN_IF_ERROR(context.charge_bytes(std::min(a.text()->size(), b.text()->size())));
    return sign(a.text()->compare(*b.text()), 0);  // UTF-8 orders like its code points
  }
  if (a.list() != nullptr && b.list() != nullptr && a.list()->is_tuple == b.list()->is_tuple) {
    const Values &p = a.list()->items, &q = b.list()->items;
    for (size_t k = 0; k < std::min(p.size(), q.size()); ++k) {
      FTH_ASSIGN_OR_RETURN(const bool same, equal(context, p[k], q[k]));
      if (!same) return compare(context, p[k], q[k]);
    }
    return sign(p.size(), q.size());
  }
  return type_error("no order between '" + std::string(type_name(a)) + "' and '" + std::string(type_name(b)) + "'");
}

Result<const Value*> find(Context& context, const Dict& dict, const Value& key) {
  for (const auto& [candidate, value] : dict.entries) {
    FTH_ASSIGN_OR_RETURN(const bool same, equal(context, candidate, key));
    if (same) return &value;
  }
  return nullptr;
}

Result<bool> contains(Context& context, const Value& container, const Value& item) {
  if (const std::string* text = container.text()) {
    if (item.text() == nullptr) return type_error("'in <string>' requires a string, not '" + std::string(type_name(item)) + "'");
    FTH_RETURN_IF_ERROR(context.charge_bytes(text->size()));
    return memmem(text->data(), text->size(), item.text()->data(), item.text()->size()) != nullptr;
  }
  if (const Dict* dict = container.dict()) {
    FTH_ASSIGN_OR_RETURN(const Value* found, find(context, *dict, item));
    return found != nullptr;
  }
  if (const List* list = container.list()) {
    for (const Value& candidate : list->items) {
      FTH_ASSIGN_OR_RETURN(const bool same, equal(context, candidate, item));
      if (same) return true;
    }
    return false;
  }
  if (container.undefined() != nullptr) return false;
  return type_error("argument of type '" + std::string(type_name(container)) + "' is not iterable");
}

Result<Values> iterate(Context& context, const Value& value) {
  Values items;
  if (const List* list = value.list()) {
    FTH_RETURN_IF_ERROR(context.charge(list->items.size()));
    items = list->items;
  } else if (const Dict* dict = value.dict()) {
    FTH_RETURN_IF_ERROR(context.charge(dict->entries.size()));
    for (const auto& entry : dict->entries) items.push_back(entry.first);
  } else if (const std::string* text = value.text()) {
    for (size_t i = 0; i < text->size();) {
      const size_t bytes = decode(*text, i).bytes;
      FTH_ASSIGN_OR_RETURN(Value character, context.text(text->substr(i, bytes)));
      items.push_back(std::move(character));
      i += bytes;
    }
  } else if (value.undefined() == nullptr) {
    return type_error("'" + std::string(type_name(value)) + "' object is not iterable");
  }
  return items;
}

}  // namespace fth::jinja
