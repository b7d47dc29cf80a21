#pragma once
// A profile as text, as JSON, and as a self-contained HTML page.

#include <boost/json/object.hpp>
#include <string>
#include <vector>

#include "tools/cli/profile_measure.h"

namespace fth::cli {

struct Unprofiled {
  std::string subject, reason;  // "null:0", "runs no op"
};

struct Profile {
  std::string model, tokens;  // tokens: where the ids come from
  std::string cpu, isa;
  uint32_t threads = 0;
  int64_t n_ctx = 0, ubatch = 0, n_layer = 0, n_expert = 0;
  Roofline roofline;            // of the CPU
  std::vector<Column> columns;  // the CPU alone first
  std::vector<Unprofiled> unprofiled;
  double first_s = 0, last_s = 0;  // p50 of a decoded token in the first cell, and in the same cell at the end; 0: not repeated
  double drift() const { return first_s > 0 && last_s > 0 ? last_s / first_s - 1 : 0; }
};

std::string profile_text(const Profile& profile);
boost::json::object profile_json(const Profile& profile);
// Needs nothing from elsewhere: styles, script and data are in the page. It shows profile_json() and the median decoded token of every column.
std::string profile_html(const Profile& profile);

}  // namespace fth::cli
