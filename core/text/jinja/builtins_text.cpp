// Methods and filters of strings. Positions and lengths are in code points; upper, lower, title and capitalize map ASCII letters only.
#include <algorithm>
#include <cstring>

#include "core/text/jinja/builtins.h"
#include "core/text/jinja/utf8.h"

namespace fth::jinja {
namespace {

constexpr size_t kNone = std::string_view::npos;

// memmem is linear in the worst case too; std::string::find is not.
size_t find_bytes(std::string_view text, std::string_view what, size_t from = 0) {
  if (from > text.size()) return kNone;
  const void* hit = memmem(text.data() + from, text.size() - from, what.data(), what.size());
  return hit == nullptr ? kNone : static_cast<size_t>(static_cast<const char*>(hit) - text.data());
}

// What is printed of self; a filter takes any value, a method a string.
Result<std::string> self_text(const Call& call) { return to_str(call.context, call.self); }

Result<std::string> text_arg(const Call& call, size_t i, std::string absent) {
  if (call.args[i] == nullptr || call.args[i]->is_none()) return absent;
  if (call.args[i]->text() == nullptr) return type_error("expected a str, not '" + std::string(type_name(*call.args[i])) + "'");
  return *call.args[i]->text();
}

Result<int64_t> integer_arg(const Call& call, size_t i, int64_t absent) {
  if (call.args[i] == nullptr || call.args[i]->is_none()) return absent;
  int64_t value = 0;
  if (!call.args[i]->integer(value)) return type_error("expected an int, not '" + std::string(type_name(*call.args[i])) + "'");
  return value;
}

template <class Map>
Result<Value> mapped(const Call& call, Map map) {
  FTH_ASSIGN_OR_RETURN(std::string text, self_text(call));
  map(text);
  return call.context.text(std::move(text));
}

Result<Value> upper(const Call& call) {
  return mapped(call, [](std::string& s) { std::transform(s.begin(), s.end(), s.begin(), to_upper); });
}
Result<Value> lower(const Call& call) {
  return mapped(call, [](std::string& s) { std::transform(s.begin(), s.end(), s.begin(), to_lower); });
}
Result<Value> capitalize(const Call& call) {
  return mapped(call, [](std::string& s) {
    std::transform(s.begin(), s.end(), s.begin(), to_lower);
    if (!s.empty()) s[0] = to_upper(s[0]);
  });
}
// str.title: a letter after anything but a letter starts a word.
Result<Value> title(const Call& call) {
  return mapped(call, [](std::string& s) {
    bool within = false;
    for (char& c : s) {
      c = within ? to_lower(c) : to_upper(c);
      within = is_alpha(c) || static_cast<unsigned char>(c) >= 0x80;
    }
  });
}
// The filter: words start after white space, '-' and opening brackets, so "it's" stays one word.
Result<Value> title_filter(const Call& call) {
  return mapped(call, [](std::string& s) {
    bool within = false;
    for (size_t i = 0; i < s.size();) {
      const CodePoint c = decode(s, i);
      if (c.value < 0x80) s[i] = within ? to_lower(s[i]) : to_upper(s[i]);
      within = !is_space(c.value) && (c.value >= 0x80 || std::string_view("-({[<").find(s[i]) == kNone);
      i += c.bytes;
    }
  });
}

Result<Value> stripped(const Call& call, bool left, bool right) {
  FTH_ASSIGN_OR_RETURN(const std::string owner, self_text(call));
  const bool blanks = call.args[0] == nullptr || call.args[0]->is_none();
  FTH_ASSIGN_OR_RETURN(const std::string set, text_arg(call, 0, ""));
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(set.size()));
  std::u32string characters;
  for (size_t i = 0; i < set.size(); i += decode(set, i).bytes) characters.push_back(decode(set, i).value);
  std::sort(characters.begin(), characters.end());
  const auto goes = [&](char32_t c) { return blanks ? is_space(c) : std::binary_search(characters.begin(), characters.end(), c); };
  std::string_view text = owner;
  while (left && !text.empty() && goes(decode(text, 0).value)) text.remove_prefix(decode(text, 0).bytes);
  while (right && !text.empty() && goes(decode_before(text, text.size()).value)) text.remove_suffix(decode_before(text, text.size()).bytes);
  return call.context.text(std::string(text));
}
Result<Value> strip(const Call& call) { return stripped(call, true, true); }
Result<Value> lstrip(const Call& call) { return stripped(call, true, false); }
Result<Value> rstrip(const Call& call) { return stripped(call, false, true); }

Result<Value> starts_or_ends(const Call& call, bool starts) {
  const std::string_view text = *call.self.text();
  const List* several = call.args[0]->list();
  const Values one = {*call.args[0]};
  for (const Value& affix : several != nullptr && several->is_tuple ? several->items : one) {
    if (affix.text() == nullptr) return type_error("expected a str or a tuple of str, not '" + std::string(type_name(affix)) + "'");
    FTH_RETURN_IF_ERROR(call.context.charge_bytes(affix.text()->size()));
    if (starts ? text.starts_with(*affix.text()) : text.ends_with(*affix.text())) return Value{true};
  }
  return Value{false};
}
Result<Value> startswith(const Call& call) { return starts_or_ends(call, true); }
Result<Value> endswith(const Call& call) { return starts_or_ends(call, false); }

Result<Value> without_affix(const Call& call, bool prefix) {
  std::string_view text = *call.self.text();
  FTH_ASSIGN_OR_RETURN(const std::string affix, text_arg(call, 0, ""));
  if (prefix && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!prefix && text.ends_with(affix)) text.remove_suffix(affix.size());
  return call.context.text(std::string(text));
}
Result<Value> removeprefix(const Call& call) { return without_affix(call, true); }
Result<Value> removesuffix(const Call& call) { return without_affix(call, false); }

Result<> push_text(const Call& call, Values& items, std::string_view text) {
  FTH_RETURN_IF_ERROR(call.context.charge(1));
  FTH_ASSIGN_OR_RETURN(Value value, call.context.text(std::string(text)));
  items.push_back(std::move(value));
  return {};
}

Result<Value> split(const Call& call) {
  const std::string& text = *call.self.text();
  FTH_ASSIGN_OR_RETURN(const std::string separator, text_arg(call, 0, ""));
  FTH_ASSIGN_OR_RETURN(int64_t left, integer_arg(call, 1, -1));
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(text.size()));
  const bool blanks = call.args[0] == nullptr || call.args[0]->is_none();
  if (!blanks && separator.empty()) return type_error("split: empty separator");
  Values items;
  size_t begin = blanks ? skip_space(text, 0) : 0;
  while (left != 0) {
    size_t end = begin, next = kNone;
    if (blanks) {
      while (end < text.size() && !is_space(decode(text, end).value)) end += decode(text, end).bytes;
      if (end < text.size()) next = skip_space(text, end);
    } else if ((end = find_bytes(text, separator, begin)) != kNone) {
      next = end + separator.size();
    }
    if (next == kNone) break;
    FTH_RETURN_IF_ERROR(push_text(call, items, std::string_view(text).substr(begin, end - begin)));
    begin = next;
    left -= left > 0 ? 1 : 0;
  }
  if (!blanks || begin < text.size()) FTH_RETURN_IF_ERROR(push_text(call, items, std::string_view(text).substr(begin)));
  return call.context.list(std::move(items));
}

Result<Value> rsplit(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const int64_t left, integer_arg(call, 1, -1));
  if (left < 0) return split(call);
  FTH_ASSIGN_OR_RETURN(const std::string separator, text_arg(call, 0, ""));
  if (separator.empty()) return fail(Code::unimplemented, "rsplit with a limit needs a separator");
  std::string_view text = *call.self.text();
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(text.size() * (1 + separator.size() / 16)));  // rfind may compare all of both
  std::vector<size_t> cuts;                                                                   // found from the right
  for (size_t at = text.rfind(separator); at != kNone && static_cast<int64_t>(cuts.size()) < left;
       at = at < separator.size() ? kNone : text.rfind(separator, at - separator.size())) {
    FTH_RETURN_IF_ERROR(call.context.charge(1));
    cuts.push_back(at);
  }
  Values items;
  size_t begin = 0;
  for (auto cut = cuts.rbegin(); cut != cuts.rend(); ++cut) {
    FTH_RETURN_IF_ERROR(push_text(call, items, text.substr(begin, *cut - begin)));
    begin = *cut + separator.size();
  }
  FTH_RETURN_IF_ERROR(push_text(call, items, text.substr(begin)));
  return call.context.list(std::move(items));
}

// Lines without their \n, \r\n or \r.
std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of("\n\r"), text.size());
    lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(text.size(), end + (text.substr(end).starts_with("\r\n") ? 2 : 1)));
  }
  return lines;
}

Result<Value> splitlines(const Call& call) {
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(call.self.text()->size()));
  Values items;
  for (const std::string_view line : lines_of(*call.self.text())) FTH_RETURN_IF_ERROR(push_text(call, items, line));
  return call.context.list(std::move(items));
}

Result<Value> indent(const Call& call) {
  if (call.self.text() == nullptr) return type_error("indent: expected a str, not '" + std::string(type_name(call.self)) + "'");
  std::string text = *call.self.text();
  text += '\n';  // makes an empty last line count
  std::string margin(4, ' ');
  if (call.args[0] != nullptr && call.args[0]->text() != nullptr) {
    margin = *call.args[0]->text();
  } else {
    FTH_ASSIGN_OR_RETURN(const int64_t width, integer_arg(call, 0, 4));
    if (width > 1000) return fail(Code::resource_exhausted, "indent: a width of " + std::to_string(width) + "; at most 1000");
    margin.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  const bool first = call.args[1] != nullptr && is_true(*call.args[1]), blank = call.args[2] != nullptr && is_true(*call.args[2]);
  std::string out;
  bool at_first = true;
  for (const std::string_view line : lines_of(text)) {
    if (!at_first) FTH_RETURN_IF_ERROR(call.context.append(out, "\n"));
    if (at_first ? first : blank || !line.empty()) FTH_RETURN_IF_ERROR(call.context.append(out, margin));
    FTH_RETURN_IF_ERROR(call.context.append(out, line));
    at_first = false;
  }
  return call.context.text(std::move(out));
}

Result<Value> replace(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const std::string text, self_text(call));
  FTH_ASSIGN_OR_RETURN(const std::string from, to_str(call.context, *call.args[0]));
  FTH_ASSIGN_OR_RETURN(const std::string to, to_str(call.context, *call.args[1]));
  FTH_ASSIGN_OR_RETURN(int64_t left, integer_arg(call, 2, -1));
  std::string out;
  size_t begin = 0;
  for (size_t at = 0; left != 0; left -= left > 0 ? 1 : 0) {
    at = find_bytes(text, from, at);
    if (at == kNone) break;
    FTH_RETURN_IF_ERROR(call.context.charge(1));
    FTH_RETURN_IF_ERROR(call.context.append(out, std::string_view(text).substr(begin, at - begin)));
    FTH_RETURN_IF_ERROR(call.context.append(out, to));
    begin = at + from.size();
    at = begin;
    if (from.empty()) at = at < text.size() ? at + decode(text, at).bytes : kNone;  // between all characters and at both ends
  }
  FTH_RETURN_IF_ERROR(call.context.append(out, std::string_view(text).substr(begin)));
  return call.context.text(std::move(out));
}

Result<Value> find_first(const Call& call) {
  const std::string& text = *call.self.text();
  FTH_ASSIGN_OR_RETURN(const std::string what, text_arg(call, 0, ""));
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(text.size()));
  const size_t at = find_bytes(text, what);
  return Value{at == kNone ? int64_t{-1} : static_cast<int64_t>(count_code_points(std::string_view(text).substr(0, at)))};
}

Result<Value> count(const Call& call) {
  const std::string& text = *call.self.text();
  FTH_ASSIGN_OR_RETURN(const std::string what, text_arg(call, 0, ""));
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(text.size()));
  if (what.empty()) return Value{static_cast<int64_t>(count_code_points(text)) + 1};
  int64_t n = 0;
  for (size_t at = find_bytes(text, what); at != kNone; at = find_bytes(text, what, at + what.size())) ++n;
  return Value{n};
}

Result<Value> join_method(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const Values items, iterate(call.context, *call.args[0]));
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].text() == nullptr)
      return type_error("join: item " + std::to_string(i) + " is no str but a " + std::string(type_name(items[i])));
    if (i > 0) FTH_RETURN_IF_ERROR(call.context.append(out, *call.self.text()));
    FTH_RETURN_IF_ERROR(call.context.append(out, *items[i].text()));
  }
  return call.context.text(std::move(out));
}

template <bool (*Is)(char)>
Result<Value> all_are(const Call& call) {
  const std::string& text = *call.self.text();
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(text.size()));
  return Value{!text.empty() && std::all_of(text.begin(), text.end(), Is)};
}

Result<Value> isspace(const Call& call) {
  const std::string& text = *call.self.text();
  FTH_RETURN_IF_ERROR(call.context.charge_bytes(text.size()));
  return Value{!text.empty() && skip_space(text, 0) == text.size()};
}

// "{}", "{0}" and "{name}", without conversions or format specifications.
Result<Value> format(const Call& call) {
  const std::string& text = *call.self.text();
  const Arguments& given = call.arguments;
  const size_t n_positional = given.values.size() - given.keywords.size();
  std::string out;
  size_t automatic = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if ((c == '{' || c == '}') && i + 1 < text.size() && text[i + 1] == c)
      ++i;
    else if (c == '}')
      return type_error("format: a single '}'");
    else if (c == '{') {
      const size_t close = text.find('}', i);
      if (close == kNone) return type_error("format: a single '{'");
      const std::string field = text.substr(i + 1, close - i - 1);
      size_t k = given.values.size();
      if (field.empty()) {
        if (automatic < n_positional) k = automatic++;
      } else if (field.size() < 4 && std::all_of(field.begin(), field.end(), is_digit)) {
        k = std::min(k, static_cast<size_t>(std::stoi(field)));
        if (k >= n_positional) k = given.values.size();
      } else {
        if (field.find_first_of(".[!:") != kNone) return fail(Code::unimplemented, "format: the field '{" + field + "}' is not supported");
        const auto keyword = std::find(given.keywords.begin(), given.keywords.end(), field);
        if (keyword != given.keywords.end()) k = n_positional + static_cast<size_t>(keyword - given.keywords.begin());
      }
      if (k >= given.values.size()) return type_error("format: no argument for '{" + field + "}'");
      FTH_RETURN_IF_ERROR(append_str(call.context, out, given.values[k]));
      i = close;
      continue;
    }
    FTH_RETURN_IF_ERROR(call.context.append(out, std::string_view(&c, 1)));
  }
  return call.context.text(std::move(out));
}

Result<Value> as_text(const Call& call) {
  FTH_ASSIGN_OR_RETURN(std::string text, self_text(call));
  return call.context.text(std::move(text));
}

Result<Value> escape(const Call& call) {
  FTH_ASSIGN_OR_RETURN(const std::string text, self_text(call));
  std::string out;
  for (const char c : text) {
    const std::string_view entity = c == '&'    ? "&amp;"
                                    : c == '<'  ? "&lt;"
                                    : c == '>'  ? "&gt;"
                                    : c == '"'  ? "&#34;"
                                    : c == '\'' ? "&#39;"
                                                : "";
    out.append(entity.empty() ? std::string_view(&c, 1) : entity);
  }
  return call.context.text(std::move(out));
}

constexpr Builtin kMethods[] = {
    {"capitalize", "", capitalize},
    {"count", "!sub", count},
    {"endswith", "!suffix", endswith},
    {"find", "!sub", find_first},
    {"format", "*", format},
    {"isalpha", "", all_are<is_alpha>},
    {"isdigit", "", all_are<is_digit>},
    {"isspace", "", isspace},
    {"join", "!iterable", join_method},
    {"lower", "", lower},
    {"lstrip", "chars", lstrip},
    {"removeprefix", "!prefix", removeprefix},
    {"removesuffix", "!suffix", removesuffix},
    {"replace", "!old !new count", replace},
    {"rsplit", "sep maxsplit", rsplit},
    {"rstrip", "chars", rstrip},
    {"split", "sep maxsplit", split},
    {"splitlines", "", splitlines},
    {"startswith", "!prefix", startswith},
    {"strip", "chars", strip},
    {"title", "", title},
    {"upper", "", upper},
};

constexpr Builtin kFilters[] = {
    {"capitalize", "", capitalize}, {"e", "", escape},
    {"escape", "", escape},         {"indent", "width first blank", indent},
    {"lower", "", lower},           {"replace", "!old !new count", replace},
    {"safe", "", as_text},          {"string", "", as_text},
    {"title", "", title_filter},    {"trim", "chars", strip},
    {"upper", "", upper},
};

template <size_t N>
const Builtin* row(const Builtin (&table)[N], std::string_view name) {
  const auto* found = std::find_if(std::begin(table), std::end(table), [&](const Builtin& b) { return b.name == name; });
  return found == std::end(table) ? nullptr : found;
}

}  // namespace

const Builtin* find_text_method(std::string_view name) { return row(kMethods, name); }
const Builtin* find_text_filter(std::string_view name) { return row(kFilters, name); }

}  // namespace fth::jinja
