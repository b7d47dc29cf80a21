// Sampling; see sampler.h. Everything that decides an id is done in a fixed order with operations that are the same on every machine: hence
// the exponential below instead of the library's, whose last bit differs between C libraries.

#include "core/text/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

#include "core/model/message.h"

namespace fth {
namespace {

using Candidate = std::pair<float, int32_t>;  // logit, id

constexpr uint64_t splitmix64(uint64_t& state) {
  uint64_t z = state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// xoshiro256** 1.0 (Blackman and Vigna 2018, section 4).
constexpr uint64_t next(uint64_t (&s)[4]) {
  const uint64_t result = std::rotl(s[1] * 5, 7) * 9, shifted = s[1] << 17;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= shifted;
  s[3] = std::rotl(s[3], 45);
  return result;
}

// 1/0!, 1/1! ... 1/13!
constexpr std::array<double, 14> kInverseFactorials = [] {
  std::array<double, 14> table{1};
  double factorial = 1;
  for (size_t n = 1; n < table.size(); ++n) table[n] = 1 / (factorial *= static_cast<double>(n));
  return table;
}();

// e^x for x <= 0, to about 1e-15 relative: x = k ln 2 + r, and the Taylor series of e^r for |r| <= ln 2 / 2.
double exp_of(double x) {
  if (!(x > -700)) return 0;
  const double k = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double sum = kInverseFactorials.back();
  for (size_t n = kInverseFactorials.size() - 1; n-- > 0;) sum = sum * r + kInverseFactorials[n];
  return sum * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52);  // k > -1011: no subnormal
}

// The order of candidates: larger logit first, lower id on ties. Total, so any algorithm gives the same sequence.
bool better(const Candidate& a, const Candidate& b) { return a.first > b.first || (a.first == b.first && a.second < b.second); }

// Repeated ids become less likely; finite logits stay finite.
float penalised(float logit, float penalty) {
  if (!std::isfinite(logit)) return logit;
  return std::clamp(logit > 0 ? logit / penalty : logit * penalty, -FLT_MAX, FLT_MAX);
}

// Sorts all of `work` from `sorted` on that is needed to have the best `count` in order.
void sort_best(std::vector<Candidate>& work, size_t sorted, size_t count) {
  const auto from = work.begin() + static_cast<std::ptrdiff_t>(sorted), to = work.begin() + static_cast<std::ptrdiff_t>(count);
  // A heap of the few best is the quickest for a usual top_k; it grows with count * log(count) where a partition does not.
  if (to - from <= 256) return std::partial_sort(from, to, work.end(), better);
  if (to != work.end()) std::nth_element(from, to, work.end(), better);
  std::sort(from, to, better);
}

// Leaves the smallest number of best candidates whose probabilities reach top_p. 256 are enough but for flat distributions; sorting all of a
// vocabulary of 151936 would take longer than a layer.
void keep_top_p(std::vector<Candidate>& work, double top_p, bool is_sorted) {
  float best = -std::numeric_limits<float>::infinity();
  double total = 0;
  for (const Candidate& c : work) best = std::max(best, c.first);
  for (const Candidate& c : work) total += exp_of(static_cast<double>(c.first) - best);
  double sum = 0;
  for (size_t i = 0, sorted = is_sorted ? work.size() : 0; i < work.size(); ++i) {
    if (i == sorted) {
      const size_t more = std::min(work.size(), std::max<size_t>(256, 4 * sorted));
      sort_best(work, sorted, more);
      sorted = more;
    }
    sum += exp_of(static_cast<double>(work[i].first) - best);
    if (sum >= top_p * total) {
      work.resize(i + 1);
      return;
    }
  }
}

}  // namespace

Result<Sampler> Sampler::make(const SamplerOptions& o) {
  const auto refuse = [](std::string_view name, auto value, std::string_view range) {
    return fail(Code::invalid_argument, message(name, " is ", value, "; it must be ", range));
  };
  if (!(o.temperature >= 0) || !std::isfinite(o.temperature)) return refuse("temperature", double{o.temperature}, "finite and at least 0");
  if (o.top_k < 0) return refuse("top_k", o.top_k, "at least 0 (0: off)");
  if (!(o.top_p > 0 && o.top_p <= 1)) return refuse("top_p", double{o.top_p}, "above 0 and at most 1 (1: off)");
  if (!(o.min_p >= 0 && o.min_p < 1)) return refuse("min_p", double{o.min_p}, "at least 0 (0: off) and below 1");
  if (!(o.repeat_penalty > 0) || !std::isfinite(o.repeat_penalty))
    return refuse("repeat_penalty", double{o.repeat_penalty}, "finite and above 0 (1: off)");
  if (o.repeat_last < 0) return refuse("repeat_last", o.repeat_last, "at least 0");
  return Sampler(o);
}

Sampler::Sampler(const SamplerOptions& options) : options_(options) {
  uint64_t seed = options.seed;
  for (uint64_t& word : state_) word = splitmix64(seed);
}

int64_t Sampler::wanted_logits() const {
  // A penalty takes logits down, at most those of the ids that it looks at: so many more have to be known. One below 1 takes any of them up.
  const bool penalises = options_.repeat_penalty != 1 && options_.repeat_last > 0;
  if (penalises && options_.repeat_penalty < 1) return 0;
  const int64_t spare = penalises ? options_.repeat_last : 0;
  if (options_.temperature == 0) return 1 + spare;
  return options_.top_k > 0 ? options_.top_k + spare : 0;
}

void Sampler::accept(int32_t id) {
  const auto window = static_cast<size_t>(options_.repeat_last);
  if (options_.repeat_penalty == 1 || window == 0) return;
  if (history_.size() >= 2 * window) history_.erase(history_.begin(), history_.end() - options_.repeat_last);
  history_.push_back(id);
}

Result<int32_t> Sampler::sample(std::span<const float> logits) {
  if (logits.empty()) return fail(Code::invalid_argument, "sampler: no logits");
  if (logits.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max()))
    return fail(Code::invalid_argument, message("sampler: ", logits.size(), " logits; ids are 32-bit"));
  work_.resize(logits.size());
  size_t possible = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    const float logit = logits[id];
    if (!(logit < std::numeric_limits<float>::infinity()))
      return fail(Code::data_loss, message("logit ", id, " of ", logits.size(), " is ", std::isnan(logit) ? "NaN" : "infinite",
                                           "; the weights are corrupt or a device computes wrongly"));
    work_[id] = {logit, static_cast<int32_t>(id)};
    if (logit >= -FLT_MAX) ++possible;
  }
  if (possible == 0) return fail(Code::data_loss, message("all ", logits.size(), " logits are -inf; no token is possible"));

  // From the original logit each time, so an id that occurs twice is penalised once.
  const size_t seen = std::min(history_.size(), static_cast<size_t>(options_.repeat_last));
  for (const int32_t id : std::span(history_).last(seen))
    if (id >= 0 && static_cast<size_t>(id) < logits.size())
      work_[static_cast<size_t>(id)].first = penalised(logits[static_cast<size_t>(id)], options_.repeat_penalty);

  if (options_.temperature == 0) return std::min_element(work_.begin(), work_.end(), better)->second;

  const bool cut = options_.top_k > 0 && static_cast<size_t>(options_.top_k) < work_.size();
  if (cut) {
    sort_best(work_, 0, static_cast<size_t>(options_.top_k));
    work_.resize(static_cast<size_t>(options_.top_k));
  }
  if (options_.top_p < 1) keep_top_p(work_, options_.top_p, cut);
  double best = -std::numeric_limits<double>::infinity();
  for (const Candidate& c : work_) best = std::max(best, double{c.first});
  if (options_.min_p > 0) std::erase_if(work_, [&](const Candidate& c) { return exp_of(c.first - best) < double{options_.min_p}; });

  const auto weight = [&](const Candidate& c) { return exp_of((c.first - best) / options_.temperature); };
  double total = 0;
  for (const Candidate& c : work_) total += weight(c);
  // 53 random bits make a double in [0, 1).
  const double wanted = static_cast<double>(next(state_) >> 11) * 0x1p-53 * total;
  double sum = 0;
  int32_t chosen = work_.front().second;
  for (const Candidate& c : work_) {
    const double w = weight(c);
    if (w == 0) continue;
    chosen = c.second;  // also what rounding at the end of the sum leaves
    sum += w;
    if (sum > wanted) break;
  }
  return chosen;
}

}  // namespace fth
