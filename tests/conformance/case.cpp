// Case lines and the files that hold them.

#include "tests/conformance/case.h"

#include <charconv>
#include <fstream>
#include <sstream>
#include <stdexcept>

namespace fth::conformance {
namespace {

[[noreturn]] void bad(std::string_view key, std::string_view value) {
  throw std::invalid_argument(std::string(key) + "=" + std::string(value) + " does not parse");
}

template <class T>
T parse_number(std::string_view key, std::string_view value) {
  T out{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
  if (error != std::errc{} || end != value.data() + value.size()) bad(key, value);
  return out;
}

std::vector<std::string> lines_of(std::ifstream& file) {
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    std::string clean;
    for (std::string word; words >> word;) clean += (clean.empty() ? "" : " ") + word;
    if (!clean.empty()) lines.push_back(clean);
  }
  return lines;
}

}  // namespace

std::string Case::word(std::string_view key, std::string_view otherwise) const {
  used[std::string(key)] = true;
  const auto it = values.find(key);
  return it == values.end() ? std::string(otherwise) : it->second;
}
int64_t Case::integer(std::string_view key, int64_t otherwise) const {
  const std::string value = word(key, "");
  return value.empty() ? otherwise : parse_number<int64_t>(key, value);
}
double Case::number(std::string_view key, double otherwise) const {
  const std::string value = word(key, "");
  return value.empty() ? otherwise : parse_number<double>(key, value);
}
DType Case::dtype(std::string_view key, DType otherwise) const {
  const std::string value = word(key, "");
  if (value.empty()) return otherwise;
  const std::optional<DType> type = dtype_from_name(value);
  if (!type) bad(key, value);
  return *type;
}
std::vector<std::string> Case::list(std::string_view key) const {
  std::vector<std::string> items;
  std::istringstream rest(word(key, ""));
  for (std::string item; std::getline(rest, item, ',');) items.push_back(item);
  return items;
}
void Case::check_all_used() const {
  for (const auto& [key, value] : values)
    if (!used.contains(key)) throw std::invalid_argument(kind + " has no parameter " + key);
}

Result<Case> parse_case(std::string_view line) {
  Case c;
  c.text = line;
  std::istringstream words{c.text};
  words >> c.kind;
  for (std::string word; words >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos || equals == 0) return fail(Code::invalid_argument, c.text + ": '" + word + "' is no key=value");
    if (!c.values.emplace(word.substr(0, equals), word.substr(equals + 1)).second)
      return fail(Code::invalid_argument, c.text + ": " + word.substr(0, equals) + " is given twice");
  }
  return c;
}

Result<std::vector<Case>> read_cases(const std::string& path) {
  std::ifstream file(path);
  if (!file) return fail(Code::not_found, path + ": cannot open");
  std::vector<Case> cases;
  for (const std::string& line : lines_of(file)) {
    FTH_ASSIGN_OR_RETURN(Case c, parse_case(line));
    cases.push_back(std::move(c));
  }
  return cases;
}

bool glob_match(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

Result<Expectations> read_expectations(const std::string& path) {
  std::ifstream file(path);
  if (!file) return fail(Code::not_found, path + ": cannot open");
  Expectations e;
  for (const std::string& line : lines_of(file)) {
    const size_t blank = line.find(' ');
    const std::string_view word = std::string_view(line).substr(0, blank);
    std::vector<std::string>* const list = word == "unsupported"        ? &e.unsupported
                                           : word == "expected_failure" ? &e.expected_failures
                                           : word == "inexact"          ? &e.inexact
                                                                        : nullptr;
    if (blank == std::string::npos || list == nullptr)
      return fail(Code::invalid_argument, path + ": '" + line + "': need `unsupported GLOB`, `expected_failure GLOB` or `inexact GLOB`");
    list->push_back(line.substr(blank + 1));
  }
  return e;
}

bool any_match(const std::vector<std::string>& patterns, std::string_view text) {
  for (const std::string& p : patterns)
    if (glob_match(p, text)) return true;
  return false;
}

}  // namespace fth::conformance
