#pragma once
// The loop that the memory bandwidth is measured with, in a file of its own because it is compiled with -O3.

#include <cstdint>
#include <span>

namespace fth::cli {

// Sum of all words: touches every byte once, as decoding does.
uint64_t sum_words(std::span<const uint64_t> words);

}  // namespace fth::cli
