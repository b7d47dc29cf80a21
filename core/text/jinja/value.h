#pragma once
// The values of a template, with Python's meaning: what is true, equal, ordered, and how each one prints. Values are immutable except namespaces
// and the running loop, so only those can form a cycle; the Context ends it.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/base/result.h"

namespace fth::jinja {

// A string; counts itself among the live bytes of the Context that made it, which outlives it. No counter: a constant of the template.
struct Text {
  Text(std::string text, uint64_t* live_counter) : bytes(std::move(text)), live(live_counter) {
    if (live != nullptr) *live += bytes.size();
  }
  Text(const Text&) = delete;
  Text& operator=(const Text&) = delete;
  ~Text() {
    if (live != nullptr) *live -= bytes.size();
  }
  const std::string bytes;
  uint64_t* const live;
};

struct Undefined {
  std::string reason;      // "'x' is undefined"
  bool is_method = false;  // an attribute of a built-in type: calling it is an unsupported method
};

struct List;
struct Dict;
struct Namespace;
struct Loop;
struct Function;

// Values share what they refer to: a message's text stands in the list, in the loop variable and in a macro's argument at once.
struct Value {
  std::variant<std::monostate, bool, int64_t, double, std::shared_ptr<const Text>, std::shared_ptr<const List>, std::shared_ptr<const Dict>,
               std::shared_ptr<const Undefined>, std::shared_ptr<Namespace>, std::shared_ptr<Loop>, std::shared_ptr<const Function>>
      v;  // monostate: none

  bool is_none() const { return std::holds_alternative<std::monostate>(v); }
  bool is_bool() const { return std::holds_alternative<bool>(v); }
  bool is_float() const { return std::holds_alternative<double>(v); }
  const std::string* text() const {
    const auto* p = std::get_if<std::shared_ptr<const Text>>(&v);
    return p != nullptr ? &(*p)->bytes : nullptr;
  }
  // An int, or a bool as 0 or 1.
  bool integer(int64_t& out) const {
    if (const bool* b = std::get_if<bool>(&v)) return out = *b ? 1 : 0, true;
    if (const int64_t* i = std::get_if<int64_t>(&v)) return out = *i, true;
    return false;
  }
  // An int, a bool or a float.
  bool number(double& out) const {
    if (const double* d = std::get_if<double>(&v)) return out = *d, true;
    int64_t i = 0;
    return integer(i) && (out = static_cast<double>(i), true);
  }
  const List* list() const { return pointer<const List>(); }
  const Dict* dict() const { return pointer<const Dict>(); }
  const Undefined* undefined() const { return pointer<const Undefined>(); }
  Namespace* name_space() const { return pointer<Namespace>(); }
  Loop* loop() const { return pointer<Loop>(); }
  const Function* function() const { return pointer<const Function>(); }

 private:
  template <class T>
  T* pointer() const {
    const auto* p = std::get_if<std::shared_ptr<T>>(&v);
    return p != nullptr ? p->get() : nullptr;
  }
};

using Values = std::vector<Value>;

struct List {
  Values items;
  bool is_tuple = false;
  int depth = 1;  // of nested values, at most kMaxNesting
};

struct Dict {
  std::vector<std::pair<Value, Value>> entries;  // in order of insertion, as in Python
  int depth = 1;
};

struct Namespace {
  std::map<std::string, Value, std::less<>> slots;
};

// The state behind `loop`.
struct Loop {
  std::shared_ptr<const List> items;
  int64_t index0 = 0;
};

struct Builtin;
struct Scope;
struct Stmt;

// Something callable: a builtin with the value it belongs to, or a macro.
struct Function {
  std::string name;
  const Builtin* builtin = nullptr;
  Value self{};
  const Stmt* macro = nullptr;   // owned by the template
  std::weak_ptr<Scope> scope{};  // where the macro was defined; weak, because that scope holds the macro
};

// One rendering's bounds and its few inputs. Every value a rendering makes is made here. One thread at a time.
class Context {
 public:
  explicit Context(std::string date) : date_(std::move(date)) {}
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context();

  Result<> charge(uint64_t steps);
  Result<> charge_bytes(uint64_t bytes);
  // Appends to a string that will become a value or output; resource_exhausted past kMaxStringBytes.
  Result<> append(std::string& out, std::string_view text);

  Result<Value> text(std::string bytes);
  Result<Value> list(Values items, bool is_tuple = false);
  Result<Value> dict(std::vector<std::pair<Value, Value>> entries);
  Value new_namespace(std::map<std::string, Value, std::less<>> slots);

  const std::string& date() const { return date_; }

 private:
  uint64_t steps_ = 0, live_bytes_ = 0;
  std::string date_;
  std::vector<std::shared_ptr<Namespace>> namespaces_;  // emptied at the end, because a namespace may hold itself
};

Value undefined_value(std::string reason, bool is_method = false);
Value constant_text(std::string bytes);
tl::unexpected<Error> type_error(std::string what);

std::string_view type_name(const Value& value);  // as Python names it: "str", "dict"
int nesting(const Value& value);                 // 0 for scalars
Result<> check_nesting(const Value& value);      // resource_exhausted when nothing may hold this value
bool is_true(const Value& value);

Result<> append_str(Context& context, std::string& out, const Value& value);  // str(value)
Result<std::string> to_str(Context& context, const Value& value);

struct JsonStyle {
  bool ascii = false, sort_keys = false, pretty = false;
  std::string indent, item_separator = ", ", key_separator = ": ";
};
Result<> append_json(Context& context, std::string& out, const Value& value, const JsonStyle& style, int level = 0);

Result<bool> equal(Context& context, const Value& a, const Value& b);
inline constexpr int kUnordered = 2;                                    // NaN with anything
Result<int> compare(Context& context, const Value& a, const Value& b);  // -1, 0, 1, kUnordered; data_loss for values without an order
Result<const Value*> find(Context& context, const Dict& dict, const Value& key);  // null when absent
Result<bool> contains(Context& context, const Value& container, const Value& item);
Result<Values> iterate(Context& context, const Value& value);  // the items of a list, characters of a string, keys of a dict

}  // namespace fth::jinja
