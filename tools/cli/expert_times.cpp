// Times of experts: the cache entry, the table, the JSON.

#include "tools/cli/expert_times.h"

#include <boost/json.hpp>

#include "tools/cli/cache_file.h"
#include "tools/cli/output.h"

namespace fth::cli {
namespace {

namespace json = boost::json;

constexpr size_t kMostEntries = 100;
struct Kept {
  std::string_view file, key;
  bool also_busy;  // times of a busy machine, too: whatever slows compiling down is a reason not to wait for it
};
constexpr Kept kExperts{"experts.json", "experts", false}, kCompile{"compile.json", "compile", true};

bool is_of(const json::value& entry, const std::string& key) {
  const json::object* const o = entry.if_object();
  const json::value* const k = o == nullptr ? nullptr : o->if_contains("key");
  return k != nullptr && k->is_string() && std::string_view(k->get_string()) == key;
}

std::vector<double> load(const Kept& kept, const std::string& key) {
  for (const json::value& entry : read_entries(cache_file(kept.file), kept.key)) {
    if (!is_of(entry, key)) continue;
    const json::value* const seconds = entry.get_object().if_contains("seconds");
    std::vector<double> out;
    if (seconds == nullptr || !seconds->is_array()) return out;
    for (const json::value& v : seconds->get_array()) out.push_back(v.is_double() ? v.get_double() : 0);
    return out;
  }
  return {};
}

// A busy machine's times of experts are not kept: the next start takes its own.
void store(const Kept& kept, const std::string& key, std::span<const double> seconds) {
  if (!kept.also_busy && machine_is_busy()) return;
  json::array entries = read_entries(cache_file(kept.file), kept.key);
  for (auto it = entries.begin(); it != entries.end();) it = is_of(*it, key) ? entries.erase(it) : it + 1;
  while (entries.size() >= kMostEntries) entries.erase(entries.begin());
  entries.push_back({{"key", key}, {"seconds", json::array(seconds.begin(), seconds.end())}});
  write_entries(cache_file(kept.file), kept.key, entries);
}

KeptExpertTimes kept_in(const Kept& kept) {
  return {[&kept](const std::string& key) { return load(kept, key); },
          [&kept](const std::string& key, std::span<const double> seconds) { store(kept, key, seconds); }};
}

std::string device_name(const Engine& engine, size_t candidate) {
  return engine.plan().devices[engine.expert_choice().candidates[candidate]].name;
}

}  // namespace

KeptExpertTimes kept_expert_times() { return kept_in(kExperts); }
KeptExpertTimes kept_compile_times() { return kept_in(kCompile); }

std::string expert_choice_text(const Engine& engine) {
  const ExpertChoice& choice = engine.expert_choice();
  if (choice.candidates.empty()) return choice.note.empty() ? "" : choice.note + "\n";
  const size_t n = choice.candidates.size();
  std::vector<std::string> head{"one expert, rows"};
  std::string aligned = "r";
  for (size_t c = 0; c < n; ++c) head.push_back(device_name(engine, c) + ", us"), aligned += 'r';
  Table times(aligned, head);
  for (const ExpertTimes& t : choice.times) {
    std::vector<std::string> row{std::to_string(t.rows)};
    for (const double s : t.seconds) row.push_back(text("%.0f", 1e6 * s));
    times.row(row);
  }
  std::string out = "experts by device (" + choice.note + "):\n" + times.plain();
  for (const ExpertBucket& b : choice.buckets)
    out +=
        text("  up to %lld tokens, %.1f rows an expert: ", static_cast<long long>(b.tokens), b.rows) + device_name(engine, b.chosen) + "\n";
  return out;
}

boost::json::object expert_choice_json(const Engine& engine) {
  const ExpertChoice& choice = engine.expert_choice();
  json::array devices, times, buckets;
  for (size_t c = 0; c < choice.candidates.size(); ++c) devices.push_back(json::string(device_name(engine, c)));
  for (const ExpertTimes& t : choice.times)
    times.push_back({{"rows", t.rows}, {"seconds", json::array(t.seconds.begin(), t.seconds.end())}});
  for (const ExpertBucket& b : choice.buckets)
    buckets.push_back({{"tokens", b.tokens},
                       {"rows", b.rows},
                       {"seconds", json::array(b.seconds.begin(), b.seconds.end())},
                       {"device", device_name(engine, b.chosen)}});
  return {{"note", choice.note}, {"devices", std::move(devices)}, {"times", std::move(times)}, {"buckets", std::move(buckets)}};
}

}  // namespace fth::cli
