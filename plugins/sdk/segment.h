#pragma once
// A checked view of a segment that came over the boundary. A SegmentView that exists is safe to walk: struct sizes, counts, ranks, dims, dtypes,
// tensor indices and byte sizes are in range, and nothing is read before it is written. What an op wants of its own tensors is the backend's check.

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/bytes.h"
#include "core/base/dtype.h"
#include "core/base/result.h"
#include "plugins/abi/fth_backend.h"

#pragma GCC visibility push(hidden)
namespace fth::sdk {

// "matmul"; "unknown" for a number that fth_ops.def does not have.
constexpr std::string_view op_name(uint16_t kind) {
  switch (kind) {
#define FTH_OP(number, NAME, text) \
  case number:                     \
    return text;
#include "plugins/abi/fth_ops.def"
#undef FTH_OP
    default: return "unknown";
  }
}

constexpr std::string_view role_name(uint16_t role) {
  constexpr std::array<std::string_view, 6> kNames{"input", "output", "weight", "state", "temp", "slots"};
  return role < kNames.size() ? kNames[role] : "unknown";
}

inline DType dtype(const fth_tensor& t) { return static_cast<DType>(t.dtype); }
inline std::span<const int64_t> dims(const fth_tensor& t) { return {t.dims, t.rank}; }

// "q4_0 [768, 2560]", for refusals.
inline std::string describe(const fth_tensor& t) {
  std::string text(t.dtype < kDTypeCount ? name(dtype(t)) : "unknown dtype");
  for (uint32_t i = 0; i < t.rank && i < 4; ++i) text += (i == 0 ? " [" : ", ") + std::to_string(t.dims[i]);
  return text + "]";
}

// Bytes of the dims from `first` on. Empty if they overflow, a dim is below 1, or the last one is no multiple of the dtype's block.
inline std::optional<uint64_t> dims_bytes(const fth_tensor& t, uint32_t first) {
  if (t.dtype >= kDTypeCount || t.rank > 4 || first >= t.rank) return std::nullopt;
  const DTypeTraits& type = traits(dtype(t));
  const int64_t last = t.dims[t.rank - 1];
  if (last < 1 || last % type.block != 0) return std::nullopt;
  std::optional<uint64_t> bytes = checked_mul(static_cast<uint64_t>(last) / type.block, type.block_bytes);
  for (uint32_t i = first; bytes && i + 1 < t.rank; ++i)
    bytes = t.dims[i] < 1 ? std::nullopt : checked_mul(*bytes, static_cast<uint64_t>(t.dims[i]));
  return bytes;
}
inline std::optional<uint64_t> tensor_bytes(const fth_tensor& t) { return dims_bytes(t, 0); }
// Bytes that one binding of the tensor must have: of the whole tensor, or of one slot.
inline std::optional<uint64_t> binding_bytes(const fth_tensor& t) { return dims_bytes(t, t.role == FTH_ROLE_SLOTS ? 1 : 0); }

// Borrowed: the fth_segment outlives the view. SegmentCopy keeps one for an executable.
class SegmentView {
 public:
  // Segments are small (a layer has about 20 ops): larger ones are refused before anything is allocated for them.
  static constexpr uint32_t kMaxTensors = 4096, kMaxOps = 4096;

  // invalid_argument when the segment contradicts itself, unimplemented when it uses a dtype, role, layout or op that this version does not know.
  static Result<SegmentView> make(const fth_segment* s) {
    if (s == nullptr) return fail(Code::invalid_argument, "segment: null");
    if (s->struct_size < sizeof(fth_segment))
      return fail(Code::invalid_argument,
                  "segment: struct_size " + std::to_string(s->struct_size) + ", need " + std::to_string(sizeof(fth_segment)));
    const std::string_view title = s->name ? s->name : "segment";
    const auto bad = [&](Code code, const std::string& what) { return fail(code, std::string(title) + ": " + what); };
    if (s->n_tensors > kMaxTensors || s->n_ops > kMaxOps)
      return bad(Code::invalid_argument, std::to_string(s->n_tensors) + " tensors and " + std::to_string(s->n_ops) + " ops: the most are " +
                                             std::to_string(kMaxTensors) + " and " + std::to_string(kMaxOps));
    if ((s->n_tensors > 0 && !s->tensors) || (s->n_ops > 0 && !s->ops)) return bad(Code::invalid_argument, "null tensors or ops");
    if (s->n_scalars < FTH_SCALAR_COUNT)
      return bad(Code::invalid_argument, "n_scalars is " + std::to_string(s->n_scalars) + ", need " + std::to_string(FTH_SCALAR_COUNT));
    SegmentView view;
    view.name_ = title;
    view.tensors_ = {s->tensors, s->n_tensors};
    view.ops_ = {s->ops, s->n_ops};
    view.n_scalars_ = s->n_scalars;
    for (uint32_t i = 0; i < s->n_tensors; ++i)
      if (Result<> r = view.count(s->tensors[i]); !r) return bad(r.error().code, "tensor " + std::to_string(i) + ": " + r.error().message);
    std::vector<bool> written(s->n_tensors);
    for (uint32_t i = 0; i < s->n_ops; ++i)
      if (Result<> r = view.check(s->ops[i], written); !r)
        return bad(r.error().code, "op " + std::to_string(i) + " (" + std::string(op_name(s->ops[i].kind)) + "): " + r.error().message);
    return view;
  }

  std::string_view name() const { return name_; }
  std::span<const fth_tensor> tensors() const { return tensors_; }
  std::span<const fth_op> ops() const { return ops_; }
  const fth_tensor& tensor(uint16_t i) const { return tensors_[i]; }
  // Null for an optional input that is absent.
  const fth_tensor* in(const fth_op& op, uint32_t i) const {
    return i < op.n_in && op.in[i] != FTH_NO_TENSOR ? &tensors_[op.in[i]] : nullptr;
  }
  const fth_tensor& out(const fth_op& op, uint32_t i) const { return tensors_[op.out[i]]; }
  uint32_t n_scalars() const { return n_scalars_; }
  uint32_t n_weights() const { return n_weights_; }    // bindings at compile, in tensor order
  uint32_t n_bindings() const { return n_bindings_; }  // bindings at submit, in tensor order, without the workspace

 private:
  Result<> count(const fth_tensor& t) {
    if (t.dtype >= kDTypeCount) return fail(Code::unimplemented, "dtype " + std::to_string(t.dtype) + " is not known");
    if (t.role > FTH_ROLE_SLOTS) return fail(Code::unimplemented, "role " + std::to_string(t.role) + " is not known");
    if (t.layout != 0) return fail(Code::unimplemented, "layout " + std::to_string(t.layout) + ": only 0 (row-major) is defined");
    const uint32_t min_rank = t.role == FTH_ROLE_SLOTS ? 2 : 1;
    if (t.rank < min_rank || t.rank > 4)
      return fail(Code::invalid_argument, "rank " + std::to_string(t.rank) + " for role " + std::string(role_name(t.role)) + ", need " +
                                              std::to_string(min_rank) + " to 4");
    if (!tensor_bytes(t))
      return fail(Code::invalid_argument, describe(t) + ": a dim is below 1, no multiple of the block, or the bytes overflow");
    if (t.role == FTH_ROLE_WEIGHT) ++n_weights_;
    if (t.role == FTH_ROLE_INPUT || t.role == FTH_ROLE_OUTPUT || t.role == FTH_ROLE_STATE) ++n_bindings_;
    if (t.role == FTH_ROLE_SLOTS) {
      constexpr int64_t kMaxSlots = 65536;
      if (t.dims[0] > kMaxSlots)
        return fail(Code::invalid_argument, std::to_string(t.dims[0]) + " slots: the most are " + std::to_string(kMaxSlots));
      n_bindings_ += static_cast<uint32_t>(t.dims[0]);
    }
    return {};
  }

  Result<> check(const fth_op& op, std::vector<bool>& written) const {
    if (op_name(op.kind) == "unknown") return fail(Code::unimplemented, "kind " + std::to_string(op.kind) + " is not known");
    if (op.n_in > FTH_MAX_OP_IN || op.n_out > FTH_MAX_OP_OUT || op.n_out == 0)
      return fail(Code::invalid_argument, std::to_string(op.n_in) + " inputs and " + std::to_string(op.n_out) + " outputs: the most are " +
                                              std::to_string(FTH_MAX_OP_IN) + " and " + std::to_string(FTH_MAX_OP_OUT) +
                                              ", and one output the least");
    for (uint32_t i = 0; i < op.n_in; ++i) {
      const uint16_t t = op.in[i];
      if (t == FTH_NO_TENSOR) continue;
      if (t >= tensors_.size()) return fail(Code::invalid_argument, out_of_range("input", i, t));
      const uint16_t role = tensors_[t].role;
      if ((role == FTH_ROLE_TEMP || role == FTH_ROLE_OUTPUT) && !written[t])
        return fail(Code::invalid_argument,
                    "reads tensor " + std::to_string(t) + " (" + std::string(role_name(role)) + ") before any op wrote it");
    }
    for (uint32_t i = 0; i < op.n_out; ++i) {
      const uint16_t t = op.out[i];
      if (t >= tensors_.size()) return fail(Code::invalid_argument, out_of_range("output", i, t));
      const uint16_t role = tensors_[t].role;
      if (role != FTH_ROLE_TEMP && role != FTH_ROLE_OUTPUT)
        return fail(Code::invalid_argument, "writes tensor " + std::to_string(t) + ", whose role is " + std::string(role_name(role)));
      written[t] = true;
    }
    return {};
  }
  std::string out_of_range(const char* what, uint32_t i, uint16_t t) const {
    return std::string(what) + " " + std::to_string(i) + " is tensor " + std::to_string(t) + " of " + std::to_string(tensors_.size());
  }

  std::string_view name_;
  std::span<const fth_tensor> tensors_;
  std::span<const fth_op> ops_;
  uint32_t n_scalars_ = 0, n_weights_ = 0, n_bindings_ = 0;
};

// What an executable keeps of its segment, which need not outlive compile.
struct SegmentCopy {
  explicit SegmentCopy(const SegmentView& v)
      : name(v.name()), tensors(v.tensors().begin(), v.tensors().end()), ops(v.ops().begin(), v.ops().end()), n_scalars(v.n_scalars()) {}
  std::string name;
  std::vector<fth_tensor> tensors;
  std::vector<fth_op> ops;
  uint32_t n_scalars;
};

}  // namespace fth::sdk
#pragma GCC visibility pop
