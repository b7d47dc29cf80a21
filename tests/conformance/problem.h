#pragma once
// A case made concrete: a segment, the bytes of everything that is bound to it, and the scalars of its submit. The same problem goes to the
// reference and to a backend. All data is drawn from a generator seeded by the case's text: the same line, the same bytes.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plugins/abi/fth_backend.h"
#include "tests/conformance/case.h"

namespace fth::conformance {

struct Tensor {
  fth_tensor desc{};
  std::string name;
  std::vector<std::byte> data;  // as bound; all slots one after another; empty for TEMP, and for OUTPUT until a backend ran
  int64_t rows_per_token = 0;   // dims[0] is N times this; 0: does not grow with the tokens
};

struct Problem {
  std::string name;
  std::vector<Tensor> tensors;
  std::vector<fth_op> ops;
  std::array<int64_t, FTH_SCALAR_COUNT> scalars{};  // tokens, position, slots
  int64_t bucket = 1;                               // N
  double weight_bytes = 0, flops = 0;               // of one run, what mode perf divides by: weights, slots and cells that must be read

  // A view for the boundary, valid while the problem lives and is not changed.
  struct Segment {
    std::vector<fth_tensor> tensors;
    fth_segment segment{};
  };
  Segment segment() const;
};

// Builds the case. invalid_argument for a line that makes no sense.
Result<Problem> build(const Case& c);

// The same problem for token `t` alone (bucket 1), with the state as `state_of` has it; routing tables hold only that token's rows.
Problem slice_token(const Problem& all, const Problem& state_of, int64_t t);
// The same problem with only the slots [begin, end) in use, moved to the front.
Problem slice_slots(const Problem& all, int64_t begin, int64_t end);

// The same problem with every interleaved matrix made row-major; with every neuron-major down as well.
Problem with_row_major_rows(const Problem& all);
Problem with_row_major(const Problem& all);

uint64_t tensor_bytes(const fth_tensor& t);  // of all slots
uint64_t slot_bytes(const fth_tensor& t);    // of one slot; of the tensor when it has none

}  // namespace fth::conformance
