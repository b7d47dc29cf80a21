// Entries are checked as any file's: a damaged one is measured again.

#include "tools/cli/head_cache.h"

#include <boost/json.hpp>
#include <cinttypes>
#include <cmath>
#include <string>

#include "tools/cli/cache_file.h"
#include "tools/cli/output.h"

namespace fth::cli {
namespace {

namespace json = boost::json;

constexpr std::string_view kFile = "head.json", kEntries = "heads";
constexpr int64_t kFormat = 1;  // of the plane
constexpr size_t kMost = 64;    // models

std::string key_of(const Engine& engine) { return text("%016" PRIx64, engine.fingerprint()); }

double number(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  json::error_code error;
  const double n = v == nullptr ? NAN : v->to_number<double>(error);
  return error ? NAN : n;
}

bool is_of(const json::value& entry, const std::string& key) {
  const json::object* o = entry.if_object();
  const json::value* model = o == nullptr ? nullptr : o->if_contains("model");
  return model != nullptr && model->is_string() && std::string_view(model->get_string()) == key;
}

}  // namespace

HeadCache::HeadCache(Engine& engine) : engine_(engine) {
  if (engine.options().head != HeadMode::screened) return;
  const std::string key = key_of(engine);
  for (const json::value& entry : read_entries(cache_file(kFile), kEntries)) {
    if (!is_of(entry, key)) continue;
    const json::object& o = entry.get_object();
    const double positions = number(o, "positions"), samples = number(o, "samples");
    const double sum = number(o, "sum"), squares = number(o, "squares"), largest = number(o, "largest");
    const bool plausible = positions >= 1 && positions <= 1e6 && samples >= positions && samples <= 1e9 &&
                           std::fabs(sum) <= 100 * samples && squares >= 0 && squares <= 1e4 * samples && largest >= 0 && largest <= 100;
    if (!plausible || number(o, "format") != static_cast<double>(kFormat)) continue;
    double checked = number(o, "checked"), same = number(o, "same");
    if (!(checked >= 0 && checked <= 1e15 && same >= 0 && same <= checked)) checked = same = 0;  // checked again
    engine.set_head_errors({static_cast<int64_t>(positions), static_cast<int64_t>(samples), sum, squares, largest,
                            static_cast<int64_t>(checked), static_cast<int64_t>(same)});
  }
  known_ = engine.head_errors();
}

HeadCache::~HeadCache() {
  const HeadErrors& e = engine_.head_errors();
  if (engine_.options().head != HeadMode::screened || e == known_ || !e.enough()) return;
  const std::string key = key_of(engine_);
  json::array kept;
  for (json::value& entry : read_entries(cache_file(kFile), kEntries))
    if (!is_of(entry, key) && kept.size() + 1 < kMost) kept.push_back(std::move(entry));
  kept.push_back({{"model", key},
                  {"format", kFormat},
                  {"positions", e.positions},
                  {"samples", e.samples},
                  {"sum", e.sum},
                  {"squares", e.squares},
                  {"largest", e.largest},
                  {"checked", e.checked},
                  {"same", e.same}});
  write_entries(cache_file(kFile), kEntries, kept);  // one that cannot be written is measured again
}

std::string head_line(const Engine& engine, const Stats& stats) {
  const std::string how = engine.screened_head();
  if (how.empty()) return {};
  std::string out = "LM head: " + (how.starts_with("exact") ? how : "screened, " + how);
  if (stats.head.all_rows > 0)
    out += text("; %.2f %% of the rows multiplied for %llu tokens",
                100 * static_cast<double>(stats.head.rows) / static_cast<double>(stats.head.all_rows),
                static_cast<unsigned long long>(stats.head.screened));
  if (stats.head.exact > 0) out += text("; exact for %llu", static_cast<unsigned long long>(stats.head.exact));
  if (stats.head.all_rows == 0 && stats.head.exact == 0) out += "; exact: these sampling options look at every logit (--top-k limits them)";
  return out;
}

}  // namespace fth::cli
