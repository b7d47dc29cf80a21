#pragma once
// Which device multiplies the experts of a step: a decode step has a row or two for each expert, a prompt has dozens, and the device that is best for the one need
// not be best for the other. Decided for each bucket of tokens by the time that one of the model's own experts takes, once, when the engine opens.
//
// Candidates are devices that work in the host's memory and take every experts segment. The choice depends on the model's shapes, the device and its backend, never on
// where experts are: streamed and resident experts run on the same device, with the same bits.

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fth {

struct ExpertTimes {  // of one expert with so many rows, all threads
  int64_t rows = 0;
  std::vector<double> seconds;  // [candidate]
};

struct ExpertBucket {
  int64_t tokens = 0;
  double rows = 0;              // of an expert that is used, on average
  std::vector<double> seconds;  // [candidate], by the times above
  size_t chosen = 0;            // candidate
};

struct ExpertChoice {
  std::vector<size_t> candidates;  // indices into Registry::devices(), the placed one first; empty: there was nothing to choose
  std::vector<ExpertTimes> times;
  std::vector<ExpertBucket> buckets;
  std::string note;  // "measured now", "measured before", or why there was nothing to choose

  // Of the chosen device's time to the placed one's, for a step of so many tokens; 1 where nothing was chosen.
  double time_ratio(int64_t tokens) const;
};

inline constexpr int64_t kTimedRows[] = {1, 4, 8, 16, 32, 64};

// Where times are kept between runs; both may be empty. The key names machine, backends, threads and shape; values are in the order of kTimedRows, candidates inner.
struct KeptExpertTimes {
  std::function<std::vector<double>(const std::string& key)> load;  // empty when there are none
  std::function<void(const std::string& key, std::span<const double> seconds)> store;
};

// Rows of an expert that is used, when `tokens` tokens choose top_k of n_expert at random.
double rows_per_expert(int64_t tokens, int64_t n_expert, int64_t top_k);
// Between the measured numbers of rows on a line; beyond them in proportion to the last.
double seconds_for_rows(std::span<const ExpertTimes> times, size_t candidate, double rows);
// The quickest candidate; another than the first only where it brings 5 %.
size_t quickest(std::span<const double> seconds);

}  // namespace fth
