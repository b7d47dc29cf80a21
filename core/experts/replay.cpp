// The store's choice of who goes, on bare keys.
#include "core/experts/replay.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

namespace fth {
namespace {

constexpr size_t kNone = std::numeric_limits<size_t>::max();

size_t key_of(const ExpertTrace& t, const ExpertTrace::Row& row, int32_t expert) {
  return static_cast<size_t>(row.layer) * static_cast<size_t>(t.n_expert) + static_cast<size_t>(expert);
}

Result<> check(const ExpertTrace& t, int64_t n_slots, int64_t warmup) {
  if (n_slots < t.top_k)
    return fail(Code::invalid_argument,
                "replay: " + std::to_string(n_slots) + " slots, and a token uses " + std::to_string(t.top_k) + " experts per layer");
  if (warmup < 0 || warmup >= t.n_tokens)
    return fail(Code::invalid_argument,
                "replay: a warmup of " + std::to_string(warmup) + " tokens leaves none of " + std::to_string(t.n_tokens));
  return {};
}

// Counts requests, then turns them into shares.
class Counter {
 public:
  Counter(const ExpertTrace& t, int64_t warmup) : t_(t), warmup_(warmup) {
    out_.tokens = t.n_tokens - warmup;
    out_.miss_shares.resize(static_cast<size_t>(t.n_layer));
  }
  void count(const ExpertTrace::Row& row, size_t misses) {
    if (row.token < warmup_) return;
    out_.requested += row.experts.size();
    out_.misses += misses;
    auto& shares = out_.miss_shares[static_cast<size_t>(row.layer)];
    if (shares.empty()) shares.resize(static_cast<size_t>(t_.top_k) + 1);
    ++shares[misses];
  }
  Replay take() {
    for (auto& shares : out_.miss_shares) {
      double all = 0;
      for (const double s : shares) all += s;
      for (double& s : shares) s /= all;
    }
    return std::move(out_);
  }

 private:
  const ExpertTrace& t_;
  int64_t warmup_;
  Replay out_;
};

// Share of all experts in slots, share of uses that hit: replays of 512 tokens, 32 layers of 32 experts (top 4) and 52 layers of 64 (top 6), which differ by 2 points at most.
constexpr std::pair<double, double> kAssumedHits[] = {{0.0, 0.0},  {0.06, 0.29}, {0.12, 0.51}, {0.16, 0.64}, {0.2, 0.73}, {0.25, 0.79},
                                                      {0.4, 0.85}, {0.5, 0.88},  {0.6, 0.91},  {0.75, 0.95}, {0.9, 0.98}, {1.0, 1.0}};

}  // namespace

double assumed_hit_rate(double share) {
  if (!(share > 0)) return 0;
  for (size_t i = 1; i < std::size(kAssumedHits); ++i) {
    const auto [x0, y0] = kAssumedHits[i - 1];
    const auto [x1, y1] = kAssumedHits[i];
    if (share <= x1) return y0 + (y1 - y0) * (share - x0) / (x1 - x0);
  }
  return 1;
}

std::vector<double> assumed_popularity(int64_t n_expert, int64_t top_k) {
  const SyntheticTrace report;
  const auto n = static_cast<double>(n_expert), uses = static_cast<double>(top_k);
  const double hot = std::clamp(std::round(report.hot_experts * n), 1.0, n);
  std::vector<double> out(static_cast<size_t>(n_expert), hot < n ? (1 - report.hot_uses) * uses / (n - hot) : 0);
  double left = 0;  // no expert is used more than once by a token: what is too much for the hot ones goes to the others
  for (size_t e = 0; e < static_cast<size_t>(hot); ++e) {
    out[e] = report.hot_uses * uses / hot;
    left += std::max(out[e] - 1, 0.0);
    out[e] = std::min(out[e], 1.0);
  }
  for (size_t e = static_cast<size_t>(hot); e < out.size(); ++e) out[e] = std::min(out[e] + left / (n - hot), 1.0);
  return out;
}

Result<Replay> replay(const ExpertTrace& t, Policy policy, int64_t n_slots, int64_t warmup) {
  FTH_RETURN_IF_ERROR(check(t, n_slots, warmup));
  const int64_t n_sparse = std::count(t.sparse.begin(), t.sparse.end(), true);
  Usage usage(policy, t.n_layer, t.n_expert, n_sparse);
  const size_t most = std::min(static_cast<size_t>(n_slots), static_cast<size_t>(t.n_layer * t.n_expert));
  std::vector<size_t> slots, slot_of(usage.keys(), kNone), missed;  // [slot] -> key, [key] -> slot
  std::vector<bool> pinned(most);
  std::vector<std::pair<double, size_t>> leavers;  // worth, slot: the store takes the least, of equals the first
  Counter counter(t, warmup);
  for (const auto& row : t.rows) {
    usage.begin(row.layer);
    missed.clear();
    for (const int32_t e : row.experts) {
      const size_t key = key_of(t, row, e);
      usage.used(key);
      if (slot_of[key] == kNone) {
        missed.push_back(key);
      } else {
        pinned[slot_of[key]] = true;
      }
    }
    const size_t free = std::min(missed.size(), most - slots.size());
    for (size_t i = 0; i < free; ++i) {
      slot_of[missed[i]] = slots.size();
      pinned[slots.size()] = true;
      slots.push_back(missed[i]);
    }
    if (const size_t more = missed.size() - free; more > 0) {
      leavers.clear();
      for (size_t s = 0; s < slots.size(); ++s)
        if (!pinned[s]) leavers.emplace_back(usage.worth(slots[s]), s);
      std::partial_sort(leavers.begin(), leavers.begin() + static_cast<std::ptrdiff_t>(more), leavers.end());
      for (size_t i = 0; i < more; ++i) {
        size_t& slot = slots[leavers[i].second];
        slot_of[slot] = kNone;
        slot = missed[free + i];
        slot_of[slot] = leavers[i].second;
      }
    }
    for (const int32_t e : row.experts) pinned[slot_of[key_of(t, row, e)]] = false;
    counter.count(row, missed.size());
  }
  return counter.take();
}

Result<Replay> replay_optimum(const ExpertTrace& t, int64_t n_slots, int64_t warmup) {
  FTH_RETURN_IF_ERROR(check(t, n_slots, warmup));
  const size_t n_keys = static_cast<size_t>(t.n_layer * t.n_expert);
  std::vector<std::vector<size_t>> next(t.rows.size());  // the row that uses it again
  std::vector<size_t> seen(n_keys, kNone);
  for (size_t i = t.rows.size(); i-- > 0;) {
    for (const int32_t e : t.rows[i].experts) {
      next[i].push_back(seen[key_of(t, t.rows[i], e)]);
      seen[key_of(t, t.rows[i], e)] = i;
    }
  }
  std::vector<std::pair<size_t, size_t>> slots;  // key, next use
  std::vector<size_t> slot_of(n_keys, kNone), keys;
  Counter counter(t, warmup);
  for (size_t i = 0; i < t.rows.size(); ++i) {
    const auto& row = t.rows[i];
    keys.clear();
    for (const int32_t e : row.experts) keys.push_back(key_of(t, row, e));
    size_t misses = 0;
    for (size_t k = 0; k < keys.size(); ++k) {
      if (slot_of[keys[k]] != kNone) {
        slots[slot_of[keys[k]]].second = next[i][k];
        continue;
      }
      ++misses;
      size_t place = slots.size();
      if (slots.size() < static_cast<size_t>(n_slots)) {
        slots.emplace_back();
      } else {
        for (size_t s = 0; s < slots.size(); ++s)
          if (std::find(keys.begin(), keys.end(), slots[s].first) == keys.end() &&
              (place == slots.size() || slots[s].second > slots[place].second))
            place = s;
        slot_of[slots[place].first] = kNone;
      }
      slots[place] = {keys[k], next[i][k]};
      slot_of[keys[k]] = place;
    }
    counter.count(row, misses);
  }
  return counter.take();
}

}  // namespace fth
