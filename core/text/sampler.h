#pragma once
// Picks the next token. Order: repetition penalty, then (temperature 0: the largest logit, lowest id on ties) top-k, top-p, min-p, temperature, draw.
// Reproducible: the same seed, logits and history give the same ids on every machine (own generator, no library distribution).

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/base/result.h"

namespace fth {

struct SamplerOptions {
  float temperature = 0;     // 0 = greedy
  int32_t top_k = 0;         // 0 = off
  float top_p = 1;           // 1 = off
  float min_p = 0;           // 0 = off
  float repeat_penalty = 1;  // 1 = off; divides positive logits, multiplies negative ones, of the last repeat_last ids
  int32_t repeat_last = 64;
  uint64_t seed = 0;
};

class Sampler {
 public:
  // invalid_argument that names the option and its range.
  static Result<Sampler> make(const SamplerOptions& options);
  // logits: [n_vocab]. NaN or +inf logits: data_loss (the weights or a device are broken). All -inf: data_loss.
  Result<int32_t> sample(std::span<const float> logits);
  // The largest logits that decide every sample: others may be -inf. 0: all of them.
  int64_t wanted_logits() const;
  void accept(int32_t id);  // adds to the history that the penalty looks at (prompt ids too)

 private:
  explicit Sampler(const SamplerOptions& options);
  SamplerOptions options_;
  uint64_t state_[4];
  std::vector<int32_t> history_;
  std::vector<std::pair<float, int32_t>> work_;
};

}  // namespace fth
