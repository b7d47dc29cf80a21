#pragma once
// What the program prints: standard output for results, standard error for everything else, tables, JSON, and text from files made harmless.
// Called from the main thread, except say().

#include <boost/json/value.hpp>
#include <cstdarg>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"

namespace fth::cli {

// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...);

// All of `bytes` to standard output. A closed pipe is cancelled with an empty message: the program then ends quietly. unavailable is never
// returned; a full disk is internal with the system's reason.
Result<> put(std::string_view bytes);
// One line to standard error; from any thread.
void say(std::string_view line);

bool is_terminal(int fd);
// Colours are asked for: `fd` is a terminal, NO_COLOR is not set, TERM is not dumb.
bool wants_colour(int fd);

// Valid UTF-8: what is not becomes U+FFFD.
std::string utf8_lossy(std::string_view bytes);
// utf8_lossy with control characters written as \n, \t, \x1b, and cut to `limit` bytes ("..." added): text from a file must not steer a terminal.
std::string printable(std::string_view bytes, size_t limit = SIZE_MAX);

// Pretty JSON with a final newline: arrays of scalars on one line, numbers in their shortest exact form, NaN and infinities as null.
std::string json_text(const boost::json::value& value);

// Columns: one letter each, 'l' or 'r'.
class Table {
 public:
  explicit Table(std::string columns, std::vector<std::string> header = {});
  void row(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  std::string plain(std::string_view indent = "") const;
  std::string markdown() const;
  std::string csv() const;

 private:
  std::string columns_;
  std::vector<std::string> header_;
  std::vector<std::vector<std::string>> rows_;
};

// "1.23 GB/s" from bytes per second.
std::string format_rate(double bytes_per_second);

}  // namespace fth::cli
