// Shortest path over (segment, device) under memory limits, and the accounts that explain it.
#include "core/plan/plan.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "core/base/bytes.h"

namespace fth {

bool matches_pattern(std::string_view pattern, std::string_view text) {
  // Iterative wildcard match: back up to the last '*' on a mismatch, so the time is bounded by the product of the lengths.
  size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::string known_devices(const std::vector<PlanDevice>& devices) {
  std::string s;
  for (const PlanDevice& d : devices) s += (s.empty() ? "" : ", ") + d.name;
  return s;
}

class Planner {
 public:
  Planner(std::vector<PlanDevice> devices, std::vector<PlanSegment> segments, const PlanOptions& options)
      : devices_(std::move(devices)), segments_(std::move(segments)), options_(options) {}

  Result<> restrict_choices() {
    const size_t n_devices = devices_.size();
    allowed_.assign(segments_.size(), std::vector<char>(n_devices, 1));
    size_t only = n_devices;
    if (!options_.device.empty()) {
      FTH_ASSIGN_OR_RETURN(only, device_index(options_.device));
      // Naming a device overrules the reason for which it would not be chosen by itself.
      if (!devices_[only].refusal.empty())
        refusals_.push_back({devices_[only].name, "used because it was named, although: " + devices_[only].refusal});
      devices_[only].refusal.clear();
    }
    for (size_t d = 0; d < n_devices; ++d) {
      std::string reason = devices_[d].refusal;
      if (reason.empty() && options_.cpu_only && d != 0) reason = "--cpu-only";
      if (reason.empty() && only < n_devices && d != only && d != 0) reason = "--device " + options_.device;
      if (reason.empty()) continue;
      refusals_.push_back({devices_[d].name, reason});
      for (auto& row : allowed_) row[d] = 0;
    }
    std::set<std::pair<size_t, std::string>> said;
    for (size_t s = 0; s < segments_.size(); ++s) {
      const PlanSegment& segment = segments_[s];
      for (size_t d = 0; d < n_devices; ++d) {
        if (!allowed_[s][d]) continue;
        std::string reason;
        if (!segment.cost[d].supported)
          reason = segment.cost[d].reason;
        else if (segment.host_only && d != 0)
          continue;  // by design, not a refusal worth a line per device
        if (reason.empty()) continue;
        allowed_[s][d] = 0;
        std::string alike(name(segment.kind));  // layers differ in their names only: one line for all
        alike += reason;
        for (size_t at = alike.find(segment.name); at != std::string::npos; at = alike.find(segment.name))
          alike.erase(at, segment.name.size());
        if (said.insert({d, alike}).second) refusals_.push_back({devices_[d].name + ": " + segment.name, reason});
      }
      if (segment.host_only)
        for (size_t d = 1; d < n_devices; ++d) allowed_[s][d] = 0;
      // A named device takes every segment that it can run.
      if (only < n_devices && allowed_[s][only])
        for (size_t d = 0; d < n_devices; ++d) allowed_[s][d] = d == only;
    }
    for (const PlacementRule& rule : options_.rules) FTH_RETURN_IF_ERROR(apply(rule));
    for (size_t s = 0; s < segments_.size(); ++s)
      if (std::none_of(allowed_[s].begin(), allowed_[s].end(), [](char a) { return a != 0; }))
        return fail(Code::unimplemented, segments_[s].name + " runs on no device: " + devices_[0].name + ": " +
                                             (segments_[s].cost[0].supported ? "not allowed by the options" : segments_[s].cost[0].reason));
    return {};
  }

  // Drops the last segments from a device whose own memory is too small, until the rest fits.
  void place() {
    for (;;) {
      shortest_path();
      const size_t over = device_over_budget();
      if (over == devices_.size()) return;
      const uint64_t limit = device_limit(over);
      for (size_t s = segments_.size(); s-- > 0;) {
        if (choice_[s] != over || std::count(allowed_[s].begin(), allowed_[s].end(), 1) < 2) continue;
        allowed_[s][over] = 0;
        refusals_.push_back({devices_[over].name + ": " + segments_[s].name,
                             "its memory is full: " + format_bytes(device_bytes(over)) + " wanted, " + format_bytes(limit) + " allowed"});
        break;
      }
    }
  }

  Result<Plan> account(const std::vector<Arena>& fixed, uint64_t bytes_per_token) {
    Plan plan;
    plan.arenas = fixed;
    for (size_t d = 0; d < devices_.size(); ++d) {
      const std::string where = devices_[d].host_memory ? "ram" : devices_[d].name;
      uint64_t weights = 0, kv = 0, resident = 0, workspace = 0, activations = 0;
      for (size_t s = 0; s < segments_.size(); ++s) {
        if (choice_[s] != d) continue;
        activations = devices_[d].host_memory ? 0 : devices_[d].fixed_bytes;
        const SegmentCost& cost = segments_[s].cost[d];
        weights += segments_[s].weight_bytes;
        kv += segments_[s].state_bytes;
        resident += cost.resident_bytes;
        workspace = std::max(workspace, cost.workspace_bytes);
      }
      const auto add = [&](const char* what, uint64_t bytes) {
        if (bytes > 0) plan.arenas.push_back({std::string(what) + (d == 0 ? "" : " (" + devices_[d].name + ")"), where, bytes});
      };
      add("dense weights", weights);
      add("kv cache", kv);
      add("baked weights", resident);
      add("workspace", workspace);
      add("activations", activations);
      const uint64_t all = weights + kv + resident + workspace + activations;
      if (!devices_[d].host_memory && all > device_limit(d))
        return fail(Code::resource_exhausted, devices_[d].name + " needs " + format_bytes(all) + ", allowed are " +
                                                  format_bytes(device_limit(d)) + "; raise --vram, or place fewer segments there");
    }
    for (const Arena& a : plan.arenas)
      if (a.device == "ram") plan.ram_bytes += a.bytes;
    plan.ram_limit = options_.ram_budget != 0 ? options_.ram_budget : options_.ram_available;
    if (plan.ram_limit != 0 && plan.ram_bytes > plan.ram_limit) {
      std::string parts;
      for (const Arena& a : plan.arenas)
        if (a.device == "ram") parts += (parts.empty() ? "" : ", ") + a.name + " " + format_bytes(a.bytes);
      const uint64_t mib = (plan.ram_bytes + kMiB - 1) / kMiB;
      const std::string limit = format_bytes(plan.ram_limit);
      return fail(Code::resource_exhausted, "does not fit: " + format_bytes(plan.ram_bytes) + " of RAM needed (" + parts + "), " +
                                                (options_.ram_budget != 0 ? "--ram allows " + limit : limit + " are available") +
                                                "; the smallest budget that works is --ram " + std::to_string(mib) +
                                                "MiB; a smaller --ctx (now " + std::to_string(options_.n_ctx) + ") or --ubatch (now " +
                                                std::to_string(options_.ubatch) + ") lowers it");
    }
    for (size_t s = 0; s < segments_.size(); ++s) {
      Placement p;
      p.segment = segments_[s].name;
      p.kind = segments_[s].kind;
      p.layer = segments_[s].layer;
      p.device = choice_[s];
      p.seconds = segments_[s].cost[choice_[s]].seconds;
      p.step_seconds = segments_[s].cost[choice_[s]].step_seconds;
      p.measured = segments_[s].cost[choice_[s]].measured;
      p.by_profile = segments_[s].cost[choice_[s]].by_profile;
      p.runner_up = p.device;
      p.runner_up_seconds = p.seconds;
      double best = kInfinity;
      for (size_t d = 0; d < devices_.size(); ++d) {
        if (d == p.device || !allowed_[s][d]) continue;
        const size_t before = s == 0 ? 0 : choice_[s - 1];
        const bool last = s + 1 == segments_.size();
        const double weighed = job_seconds(before, s, d) + (last ? 0 : job_copy_seconds(d, s + 1, choice_[s + 1]));
        if (weighed < best) {
          best = weighed;
          p.runner_up = d;
          p.runner_up_seconds = token_seconds(before, s, d) + (last ? 0 : copy_seconds(d, s + 1, choice_[s + 1]));
        }
      }
      const size_t from = s == 0 ? 0 : choice_[s - 1];
      plan.seconds_per_token += token_seconds(from, s, choice_[s]);
      plan.step_seconds += step_seconds(from, s, choice_[s], false);
      if (options_.overlap) plan.overlap_seconds += step_seconds(from, s, choice_[s], true);
      plan.placements.push_back(std::move(p));
    }
    plan.bytes_per_token = bytes_per_token;
    plan.ubatch = options_.ubatch;
    plan.overlap = options_.overlap;
    plan.refusals = std::move(refusals_);
    plan.devices = std::move(devices_);
    return plan;
  }

 private:
  Result<size_t> device_index(const std::string& wanted) const {
    for (size_t d = 0; d < devices_.size(); ++d) {
      if (devices_[d].name != wanted) continue;
      if (devices_[d].wrong) return fail(Code::unavailable, wanted + " must not be used: " + devices_[d].refusal);
      return d;
    }
    return fail(Code::invalid_argument, "no device named \"" + wanted + "\"; there are: " + known_devices(devices_));
  }

  Result<> apply(const PlacementRule& rule) {
    FTH_ASSIGN_OR_RETURN(const size_t d, device_index(rule.device));
    size_t hits = 0;
    for (size_t s = 0; s < segments_.size(); ++s) {
      if (!matches_pattern(rule.pattern, segments_[s].name)) continue;
      ++hits;
      if (options_.cpu_only && d != 0)
        return fail(Code::invalid_argument, "--place " + rule.pattern + "=" + rule.device + " contradicts --cpu-only");
      const bool experts_beside = segments_[s].kind == SegmentKind::experts && devices_[d].host_memory;
      if (segments_[s].host_only && d != 0 && !experts_beside)
        return fail(Code::invalid_argument, "--place " + rule.pattern + "=" + rule.device + ": " + segments_[s].name + " runs on " +
                                                devices_[0].name + " only, the host needs its result at once");
      if (!segments_[s].cost[d].supported)
        return fail(Code::invalid_argument,
                    "--place " + rule.pattern + "=" + rule.device + ": " + segments_[s].name + ": " + segments_[s].cost[d].reason);
      for (size_t other = 0; other < devices_.size(); ++other) allowed_[s][other] = other == d;
    }
    if (hits == 0)
      return fail(Code::invalid_argument, "--place " + rule.pattern + ": no segment has such a name; names are like " +
                                              (segments_.size() > 1 ? segments_[1].name : segments_[0].name) + ", layer.*.attention, head");
    return {};
  }

  // What entering segment s on device `to` costs when the stream lies where `from` left it.
  double copy_seconds(size_t from, size_t s, size_t to) const {
    const auto crossing = [&](size_t d) {
      return devices_[d].host_memory || devices_[d].copy_bytes_per_second <= 0
                 ? 0.0
                 : static_cast<double>(segments_[s].in_bytes) / devices_[d].copy_bytes_per_second;
    };
    if (from == to || (devices_[from].host_memory && devices_[to].host_memory)) return 0;
    return crossing(from) + crossing(to);
  }
  double token_seconds(size_t from, size_t s, size_t to) const { return copy_seconds(from, s, to) + segments_[s].cost[to].seconds; }
  // Of a prefill step; `both`: one of two at once.
  double step_seconds(size_t from, size_t s, size_t to, bool both) const {
    const double run = segments_[s].cost[to].step_seconds, hidden = both && devices_[to].beside_cpu ? segments_[s].hides_seconds : 0;
    return copy_seconds(from, s, to) * static_cast<double>(options_.ubatch) + std::max(0.0, run - hidden);
  }
  // What placements are compared by.
  double job_seconds(size_t from, size_t s, size_t to) const {
    const double pairs = options_.overlap ? options_.share_of_pairs : 0;
    const double step = pairs * step_seconds(from, s, to, true) + (1 - pairs) * step_seconds(from, s, to, false);
    return token_seconds(from, s, to) + options_.steps_per_token * step;
  }
  double job_copy_seconds(size_t from, size_t s, size_t to) const {
    return copy_seconds(from, s, to) * (1 + options_.steps_per_token * static_cast<double>(options_.ubatch));
  }

  void shortest_path() {
    const size_t n = segments_.size(), m = devices_.size();
    std::vector<std::vector<double>> best(n, std::vector<double>(m, kInfinity));
    std::vector<std::vector<size_t>> from(n, std::vector<size_t>(m, 0));
    for (size_t s = 0; s < n; ++s)
      for (size_t d = 0; d < m; ++d) {
        if (!allowed_[s][d]) continue;
        if (s == 0) {
          best[s][d] = job_seconds(0, s, d);
          continue;
        }
        for (size_t p = 0; p < m; ++p) {  // ascending with a strict comparison: the lower index wins ties
          const double cost = best[s - 1][p] + job_seconds(p, s, d);
          if (cost < best[s][d]) best[s][d] = cost, from[s][d] = p;
        }
      }
    choice_.assign(n, 0);
    size_t d = 0;
    for (size_t i = 1; i < m; ++i)
      if (best[n - 1][i] < best[n - 1][d]) d = i;
    for (size_t s = n; s-- > 0; d = from[s][d]) choice_[s] = d;
  }

  uint64_t device_limit(size_t d) const {
    if (options_.vram_budget == 0) return devices_[d].memory_bytes;
    return devices_[d].memory_bytes == 0 ? options_.vram_budget : std::min(options_.vram_budget, devices_[d].memory_bytes);
  }
  uint64_t device_bytes(size_t d) const {
    uint64_t sum = 0, workspace = 0, fixed = 0;
    for (size_t s = 0; s < segments_.size(); ++s) {
      if (choice_[s] != d) continue;
      const SegmentCost& c = segments_[s].cost[d];
      sum += segments_[s].weight_bytes + segments_[s].state_bytes + c.resident_bytes;
      workspace = std::max(workspace, c.workspace_bytes);
      fixed = devices_[d].fixed_bytes;
    }
    return sum + workspace + fixed;
  }
  size_t device_over_budget() const {
    for (size_t d = 0; d < devices_.size(); ++d)
      if (!devices_[d].host_memory && device_bytes(d) > device_limit(d) && can_leave(d)) return d;
    return devices_.size();
  }
  bool can_leave(size_t d) const {
    for (size_t s = 0; s < segments_.size(); ++s)
      if (choice_[s] == d && std::count(allowed_[s].begin(), allowed_[s].end(), 1) >= 2) return true;
    return false;
  }

  std::vector<PlanDevice> devices_;
  std::vector<PlanSegment> segments_;
  const PlanOptions& options_;
  std::vector<std::vector<char>> allowed_;  // [segment][device]
  std::vector<size_t> choice_;              // [segment]
  std::vector<Refusal> refusals_;
};

}  // namespace

Result<Plan> make_plan(std::vector<PlanDevice> devices, std::vector<PlanSegment> segments, const std::vector<Arena>& fixed,
                       uint64_t bytes_per_token, const PlanOptions& options) {
  if (devices.empty() || segments.empty()) return fail(Code::invalid_argument, "a plan needs a device and a segment");
  for (const PlanSegment& s : segments)
    if (s.cost.size() != devices.size()) return fail(Code::internal, s.name + ": one cost per device is needed");
  Planner planner(std::move(devices), std::move(segments), options);
  FTH_RETURN_IF_ERROR(planner.restrict_choices());
  planner.place();
  return planner.account(fixed, bytes_per_token);
}

}  // namespace fth
