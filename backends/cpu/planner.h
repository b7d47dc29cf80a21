#pragma once
// The state of plan_segment() and the checks that the ops share. Each op's plan_* function stands beside its run_step, in ops/.
// A SegmentView is well formed already (plugins/sdk/segment.h): indices, roles, counts and sizes. What is checked here is what an op wants of
// its own tensors, and that each tensor has one writer: steps may then be moved forward to share a loop, and values may share memory.

#include <cstring>
#include <initializer_list>
#include <string_view>

#include "backends/cpu/segment.h"

namespace fth::cpu {

struct Planner {
  const sdk::SegmentView& segment;
  const KernelTable& kernels;
  SegmentPlan plan;
  std::vector<ValueId> q8_rows, fine_q8_rows;  // by tensor: its Q8 rows, once a step makes them
  std::vector<bool> written;                   // by tensor

  // The op being planned.
  uint32_t op_index = 0;
  const fth_op* op = nullptr;

  uint32_t step() const { return static_cast<uint32_t>(plan.steps.size()); }  // the index that the next step gets
  tl::unexpected<Error> invalid(std::string_view what) const { return problem(Code::invalid_argument, what); }
  tl::unexpected<Error> unsupported(std::string_view what) const { return problem(Code::unimplemented, what); }

  // A dimension by its letter: size -1 until some tensor says what it is, then every other must agree.
  struct Dim {
    const char* letter;
    int64_t* size;
  };
  Result<> arity(uint32_t min_in, uint32_t max_in, uint32_t n_out) const;
  bool has_input(uint32_t i) const { return segment.in(*op, i) != nullptr; }
  const fth_tensor& tensor(ValueId v) const { return segment.tensors()[v]; }
  DType dtype(ValueId v) const { return sdk::dtype(tensor(v)); }
  // The tensor, its shape checked and its use by the next step noted.
  Result<ValueId> input(uint32_t i, std::string_view what, std::initializer_list<Dim> dims);
  Result<ValueId> input(uint32_t i, std::string_view what, DType type, std::initializer_list<Dim> dims);
  Result<ValueId> output(uint32_t i, std::string_view what, std::initializer_list<Dim> dims);  // f32
  // A matrix of rows of k values that the kernels can multiply by.
  Result<> check_weight(std::string_view what, ValueId v) const;
  // attr[i], whether that matrix is interleaved; whether the kernels can multiply by it then.
  Result<bool> interleaved(uint32_t i, std::string_view what, ValueId v) const;
  // attr[i], as an integer in [min, max], or finite.
  Result<int64_t> integer(uint32_t i, std::string_view what, int64_t min, int64_t max) const;
  Result<double> finite(uint32_t i, std::string_view what) const;

  ValueId scratch(uint64_t bytes);
  void touch(ValueId v, uint32_t at_step);             // v is used by that step
  ValueId quantized(ValueId x, int64_t k, bool fine);  // the Q8 rows of x: those there are, or a new step that makes them

 private:
  tl::unexpected<Error> problem(Code code, std::string_view what) const;
  std::string describe(std::string_view what, ValueId v) const;  // "weight (tensor 5, q4_0 [512, 256])"
  Result<> check_shape(std::string_view what, ValueId v, std::initializer_list<Dim> dims) const;
};

// Products with these take Q8 rows; with the others f32 rows.
constexpr bool is_quantized(DType t) { return t >= DType::q8_0 && t <= DType::q4_k; }

// A Q8 row of k values is q[k], d[k/32], s[k/32] and its blocks are independent: n values from `at` on, whole blocks quantised by themselves into
// `piece`, go to their three places in `row`.
inline void place_q8(int64_t k, int64_t at, int64_t n, const std::byte* piece, std::byte* row) {
  const auto width = static_cast<size_t>(k), begin = static_cast<size_t>(at), count = static_cast<size_t>(n), scales = count / 8;
  std::memcpy(row + begin, piece, count);
  std::memcpy(row + width + begin / 8, piece + count, scales);
  std::memcpy(row + width + width / 8 + begin / 8, piece + count + scales, scales);
}

Result<> plan_embed(Planner&);
Result<> plan_norm(Planner&);
Result<> plan_matmul(Planner&);
Result<> plan_rope(Planner&);
Result<> plan_attention(Planner&);
Result<> plan_add(Planner&);
Result<> plan_glu(Planner&);
Result<> plan_experts(Planner&);
Result<> plan_expert_gates(Planner&);
Result<> plan_combine(Planner&);
Result<> plan_head_screened(Planner&);

}  // namespace fth::cpu
