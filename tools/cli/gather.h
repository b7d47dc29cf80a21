#pragma once
// From which share of live neurons on the cpu backend reads all up rows of an expert instead of the live ones: measured once for the machine, its kernels and a model's
// up matrices, kept in gather.json of the cache folder, given to the backend as its option gather_below. Bits do not depend on it.

#include <boost/json/object.hpp>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/model/config.h"

namespace fth::cli {

struct GatherCrossover {
  int64_t below = -1;  // percent: live up rows are gathered where fewer are alive. -1: not known, the backend has its own
  std::string note;    // "measured before", or why it is not known; empty where no expert has dead neurons
  std::string what;    // "q4_0, 768 x 2560"
};

// `asked` is --gather-below: auto, or a number from 0 to 101. Measures in a process of its own, for 30 ms and what starting it and filling its memory take, when nothing is kept;
// figures of a busy machine are measured again once it is quiet. threads 0: usable_cores(). From any thread.
GatherCrossover gather_crossover(const std::string& asked, const Model& model, uint32_t threads, const std::string& isa);
// "auto" or a percentage; invalid_argument else.
Result<> check_gather(const std::string& asked);
// "live up rows are gathered below 78 % of live neurons (q4_0, 768 x 2560; measured before)"; empty for a model without dead neurons.
std::string gather_line(const GatherCrossover& g);
// The same of everything that is kept for this machine and program.
std::vector<std::string> gather_lines(uint32_t threads);

// Where the times meet, from the largest share on; shares ascend. 101: gathering never loses; the first share: it always does.
int64_t gather_crossover_of(std::span<const int64_t> shares, std::span<const double> dense, std::span<const double> gathered);

// The other side: `forethought measure-gather`, which only ask_child() starts.
int measure_gather_main(const std::vector<std::string>& args);

}  // namespace fth::cli
