#pragma once
// Whether a device computes what the built-in CPU computes, and how fast it is: a handful of small segments, a few timings. Takes a tenth of a second on a
// fast device; a driver may need seconds to compile. Run it in a process of its own where the driver is not trusted to survive.

#include <cstdint>
#include <string>

#include "core/device/device.h"

namespace fth {

// Seconds are of the fastest of several runs; 0 where the device does not run such a segment or was not timed.
struct DeviceTimes {
  double launch_s = 0;                // of a segment with next to no work
  double decode_s = 0;                // MATMUL of 1 row with a q4_0 matrix of 2048 x 2048, none of it in a cache
  double batch_s = 0;                 // of 32 rows with it
  double write_bytes_per_second = 0;  // host to device, pieces of 8 MiB
  double read_bytes_per_second = 0;
};

struct SelfTest {
  int64_t n_cases = 0, n_run = 0;  // of the cases; those that the device runs
  std::string failure;             // the case, what was expected and what came; empty: every case was right
  DeviceTimes times, cpu;          // cpu: of the reference, measured in turn with the device
};

// Never fails: what went wrong is `failure`. Uses both devices.
SelfTest self_test(const Device& device, const Device& reference);

// Why a device that computes right must not be chosen for its speed; empty when it may be. Slower is a quarter slower both for one row and for many: less is within what
// timings are off on a busy machine, and the planner weighs it segment by segment.
std::string too_slow(const DeviceTimes& device, const DeviceTimes& cpu);

}  // namespace fth
