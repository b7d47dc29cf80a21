#pragma once
// Builds small segments for tests, right or wrong.

#include <initializer_list>
#include <string>
#include <vector>

#include "plugins/abi/fth_backend.h"

namespace fth::test {

struct TestSegment {
  std::string name = "test";
  std::vector<fth_tensor> tensors;
  std::vector<fth_op> ops;
  uint32_t struct_size = sizeof(fth_segment), n_scalars = FTH_SCALAR_COUNT;

  uint16_t tensor(uint16_t role, std::initializer_list<int64_t> dims, uint16_t dtype = FTH_DTYPE_F32) {
    fth_tensor t{};
    t.role = role;
    t.dtype = dtype;
    for (const int64_t d : dims) t.dims[t.rank++] = d;
    tensors.push_back(t);
    return static_cast<uint16_t>(tensors.size() - 1);
  }
  fth_op& op(uint16_t kind, std::initializer_list<uint16_t> in, std::initializer_list<uint16_t> out) {
    fth_op o{};
    o.kind = kind;
    for (const uint16_t i : in) o.in[o.n_in++] = i;
    for (const uint16_t i : out) o.out[o.n_out++] = i;
    ops.push_back(o);
    return ops.back();
  }
  // Valid until the next change.
  fth_segment view() const {
    return {struct_size, static_cast<uint32_t>(tensors.size()), static_cast<uint32_t>(ops.size()), n_scalars, name.c_str(), tensors.data(),
            ops.data()};
  }

  // y = a + b, all [rows, width].
  static TestSegment add(int64_t rows, int64_t width) {
    TestSegment s;
    s.name = "test.add";
    const uint16_t a = s.tensor(FTH_ROLE_INPUT, {rows, width}), b = s.tensor(FTH_ROLE_INPUT, {rows, width});
    s.op(FTH_OP_ADD, {a, b}, {s.tensor(FTH_ROLE_OUTPUT, {rows, width})});
    return s;
  }
};

}  // namespace fth::test
