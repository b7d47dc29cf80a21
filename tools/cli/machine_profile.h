#pragma once
// What is measured once for this machine and kept: how fast all threads together read memory. Feeds the cost model, and the
// "share of the measured bandwidth" that every speed is shown with.

#include <cstdint>
#include <string>

namespace fth::cli {

struct MachineProfile {
  double bytes_per_second = 0;  // 0: not known
  std::string note;             // where the figure comes from, or why there is none
  std::string cpu;
  uint32_t threads = 0;
};

enum class Measure { once, anew };  // once: only when nothing is kept; anew: always, and kept

// From $XDG_CACHE_HOME (or ~/.cache) /forethought/machine.json, measured and stored there when it is not in it. Never fails: `note` says why
// the figure is missing. Measures in a forked child, so that this process's peak RSS stays its own: call it before any thread exists.
// n_threads 0: usable_cores().
MachineProfile machine_profile(uint32_t n_threads, Measure measure_when = Measure::once);

struct Int8Peak {
  double ops_per_second = 0;  // all threads together; a multiplication and an addition are two; 0: not known
  std::string how;            // the instructions, or why there is no figure
};
// How fast n threads (0: usable_cores()) multiply and add bytes that are in registers. 0.3 s in a child, kept nowhere; before any thread exists, as above.
Int8Peak int8_peak(uint32_t n_threads);

}  // namespace fth::cli
