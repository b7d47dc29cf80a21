#pragma once
// Runs a segment on weights and inputs that are made up from a seed: to compare devices and to time them. Values are of the size that models have, so
// that nothing overflows; the same seed gives the same bytes on every device. One thread at a time; must not outlive its device.

#include <cstdint>
#include <vector>

#include "core/base/result.h"
#include "core/device/device.h"

namespace fth {

class ScratchRun {
 public:
  // With spread_bytes the segment is compiled several times, each with weights of its own, until they are that many bytes (16 times at most): runs in turn then find
  // no weight in a cache, as decoding does not. Errors: the device's; unimplemented for a segment whose experts or pages are bound at submit.
  static Result<ScratchRun> make(const Device& device, const fth_segment& segment, uint64_t seed, uint64_t spread_bytes = 0);

  // One run of n_tokens rows from position pos, waited for.
  Result<> run(int64_t n_tokens, int64_t pos);
  // Seconds of the fastest run: at least 3, more until `seconds` have passed. The first run is not counted.
  Result<double> fastest(int64_t n_tokens, int64_t pos, double seconds);
  // The first `rows` rows of every OUTPUT tensor, one after the other.
  Result<std::vector<float>> outputs(int64_t rows) const;

 private:
  struct Output {
    size_t binding;
    int64_t width;
  };
  ScratchRun() = default;
  std::vector<Buffer> buffers_;  // before what is bound to them
  std::vector<Buffer> bound_;
  std::vector<fth_binding> bindings_;
  std::vector<Output> outputs_;
  std::vector<Executable> copies_;
  size_t next_ = 0;
};

}  // namespace fth
