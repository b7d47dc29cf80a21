#pragma once
// The loop that the int8 multiply-add peak is measured with: nothing but the instructions that an exact dot product of bytes is made of, on registers.

#include <cstdint>
#include <string_view>

namespace fth::cli {

struct Int8Loop {
  std::string_view name;           // "avx2: vpmaddubsw, vpmaddwd, vpaddd"
  uint64_t ops_per_round;          // a multiplication and an addition are two
  int32_t (*run)(int64_t rounds);  // the result is worth nothing, but depends on all of it
};

// The fastest one that this CPU has.
const Int8Loop& int8_loop();

}  // namespace fth::cli
