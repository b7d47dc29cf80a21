// Output: writes that survive a closed pipe, tables, and JSON that people can read.

#include "tools/cli/output.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace fth::cli {

std::string text(const char* format, ...) {
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  const int length = std::vsnprintf(nullptr, 0, format, args);
  std::string out(length > 0 ? static_cast<size_t>(length) : 0, '\0');
  std::vsnprintf(out.data(), out.size() + 1, format, again);
  va_end(again);
  va_end(args);
  return out;
}

Result<> put(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (n >= 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EPIPE) {
      return fail(Code::cancelled, "");
    } else if (errno != EINTR) {
      return fail(Code::internal, text("standard output: %s", std::strerror(errno)));
    }
  }
  return {};
}

void say(std::string_view line) {
  std::string whole(line);
  whole += '\n';
  std::fwrite(whole.data(), 1, whole.size(), stderr);  // one call: lines of different threads stay whole
}

bool is_terminal(int fd) { return ::isatty(fd) == 1; }

bool wants_colour(int fd) {
  const char* none = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return is_terminal(fd) && (none == nullptr || *none == '\0') && term != nullptr && std::strcmp(term, "dumb") != 0;
}

namespace {

// Bytes of the well-formed UTF-8 sequence at the front (RFC 3629: no overlongs, no surrogates), 0 when there is none.
size_t utf8_length(std::string_view s) {
  const auto byte = [&](size_t i) { return i < s.size() ? static_cast<unsigned char>(s[i]) : 0u; };
  const auto tail = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return tail(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const unsigned low = first == 0xe0 ? 0xa0 : 0x80, high = first == 0xed ? 0x9f : 0xbf;
    return byte(1) >= low && byte(1) <= high && tail(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const unsigned low = first == 0xf0 ? 0x90 : 0x80, high = first == 0xf4 ? 0x8f : 0xbf;
    return byte(1) >= low && byte(1) <= high && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

size_t columns_of(std::string_view s) {  // code points; wide characters do not occur in our tables' own words
  return static_cast<size_t>(std::count_if(s.begin(), s.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0u) != 0x80u; }));
}

std::string padded(const std::string& cell, size_t width, bool right) {
  const size_t columns = columns_of(cell);
  const std::string space(width > columns ? width - columns : 0, ' ');
  return right ? space + cell : cell + space;
}

bool is_scalar(const boost::json::value& v) { return !v.is_array() && !v.is_object(); }

void append_json(std::string& out, const boost::json::value& v, size_t depth) {
  const std::string indent(2 * (depth + 1), ' ');
  switch (v.kind()) {
    case boost::json::kind::double_: {
      const double d = v.get_double();
      if (!std::isfinite(d)) {
        out += "null";
        return;
      }
      std::array<char, 32> digits;
      out.append(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), d).ptr);
      return;
    }
    case boost::json::kind::array: {
      const auto& items = v.get_array();
      const bool flat = std::all_of(items.begin(), items.end(), is_scalar);
      out += '[';
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) out += flat ? ", " : ",";
        if (!flat) out += '\n' + indent;
        append_json(out, items[i], depth + 1);
      }
      if (!flat) out += '\n' + std::string(2 * depth, ' ');
      out += ']';
      return;
    }
    case boost::json::kind::object: {
      const auto& members = v.get_object();
      out += '{';
      bool first = true;
      for (const auto& member : members) {
        if (!first) out += ',';
        first = false;
        out += '\n' + indent + boost::json::serialize(boost::json::string(member.key())) + ": ";
        append_json(out, member.value(), depth + 1);
      }
      if (!first) out += '\n' + std::string(2 * depth, ' ');
      out += '}';
      return;
    }
    default: out += boost::json::serialize(v);
  }
}

}  // namespace

std::string utf8_lossy(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const size_t n = utf8_length(bytes);
    if (n == 0) {
      out += "\xef\xbf\xbd";
      bytes.remove_prefix(1);
    } else {
      out += bytes.substr(0, n);
      bytes.remove_prefix(n);
    }
  }
  return out;
}

std::string printable(std::string_view bytes, size_t limit) {
  std::string out;
  while (!bytes.empty()) {
    if (out.size() >= limit) return out + "...";
    const auto c = static_cast<unsigned char>(bytes.front());
    const size_t n = utf8_length(bytes);
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || c == 0x7f) {
      out += text("\\x%02x", static_cast<unsigned>(c));
    } else if (n == 2 && c == 0xc2 && static_cast<unsigned char>(bytes[1]) < 0xa0) {  // C1 controls steer terminals too
      out += text("\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(bytes[1])));
    } else {
      out += n == 0 ? "\xef\xbf\xbd" : bytes.substr(0, n);
    }
    bytes.remove_prefix(std::max<size_t>(n, 1));
  }
  return out;
}

std::string json_text(const boost::json::value& value) {
  std::string out;
  append_json(out, value, 0);
  return out + '\n';
}

Table::Table(std::string columns, std::vector<std::string> header) : columns_(std::move(columns)), header_(std::move(header)) {}

void Table::row(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::plain(std::string_view indent) const {
  std::vector<size_t> widths(columns_.size(), 0);
  const auto measure = [&](const std::vector<std::string>& cells) {
    for (size_t c = 0; c < cells.size(); ++c) widths[c] = std::max(widths[c], columns_of(cells[c]));
  };
  measure(header_);
  for (const auto& cells : rows_) measure(cells);
  std::string out;
  const auto print = [&](const std::vector<std::string>& cells) {
    std::string line(indent);
    for (size_t c = 0; c < cells.size(); ++c) {
      if (c > 0) line += "  ";
      line += padded(cells[c], widths[c], columns_[c] == 'r');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + '\n';
  };
  if (!header_.empty()) print(header_);
  for (const auto& cells : rows_) print(cells);
  return out;
}

std::string Table::markdown() const {
  std::string out;
  const auto print = [&](const std::vector<std::string>& cells) {
    for (const auto& cell : cells) out += "| " + cell + ' ';
    out += "|\n";
  };
  print(header_);
  for (const char c : columns_) out += c == 'r' ? "| --: " : "| --- ";
  out += "|\n";
  for (const auto& cells : rows_) print(cells);
  return out;
}

std::string Table::csv() const {
  std::string out;
  const auto print = [&](const std::vector<std::string>& cells) {
    for (size_t c = 0; c < cells.size(); ++c) {
      if (c > 0) out += ',';
      if (cells[c].find_first_of(",\"\n") == std::string::npos) {
        out += cells[c];
        continue;
      }
      out += '"';
      for (const char letter : cells[c]) out += letter == '"' ? "\"\"" : std::string(1, letter);
      out += '"';
    }
    out += '\n';
  };
  print(header_);
  for (const auto& cells : rows_) print(cells);
  return out;
}

std::string format_rate(double bytes_per_second) { return text("%.2f GB/s", bytes_per_second / 1e9); }

}  // namespace fth::cli
