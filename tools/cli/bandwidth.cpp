// Sixteen independent sums: the compiler turns them into vector registers, and the loads stay ahead of the adds.

#include "tools/cli/bandwidth.h"

#include <array>

namespace fth::cli {

uint64_t sum_words(std::span<const uint64_t> words) {
  std::array<uint64_t, 16> sums{};
  const size_t whole = words.size() / sums.size() * sums.size();
  for (size_t i = 0; i < whole; i += sums.size())
    for (size_t j = 0; j < sums.size(); ++j) sums[j] += words[i + j];
  uint64_t total = 0;
  for (const uint64_t sum : sums) total += sum;
  for (size_t i = whole; i < words.size(); ++i) total += words[i];
  return total;
}

}  // namespace fth::cli
