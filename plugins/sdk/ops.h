#pragma once
// Ops of a segment, checked and unpacked: shapes agree, attributes are in range, inputs are there, every tensor has one writer. What is left to a
// backend is what it supports. For backends that run ops on f32 activations; each function answers for the op that next() is at.

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <vector>

#include "plugins/sdk/segment.h"
#include "plugins/sdk/text.h"

#pragma GCC visibility push(hidden)
namespace fth::sdk {

inline constexpr uint32_t kNoValue = 0xffffffffu;

// Tensors by their index in the segment. Letters as in plugins/abi/fth_ops.def.
struct EmbedOp {
  uint32_t ids, table, y;
  int64_t vocabulary, width;
};
struct RmsNormOp {
  uint32_t x, weight, y;
  int64_t width;
  double eps;
};
struct MatmulOp {
  uint32_t x, weight, bias, y;  // bias: kNoValue for none
  int64_t k, m;
  bool fine;  // x keeps about 16 bits wherever it is rounded
};
struct RopeOp {
  uint32_t x, factors, y;  // factors: kNoValue for none, else of the role weight
  int64_t heads, head_dim, half;
  bool adjacent;
  double base, scale;
};
struct AttentionOp {
  uint32_t q, k, v, k_cache, v_cache, y;
  int64_t heads, kv_heads, head_dim, window, cells;
  double scale;
  DType cache;  // one of those that the backend named
};
struct ElementwiseOp {
  enum class Kind { add, relu_glu, silu_glu } kind;
  uint32_t a, b, y;
  int64_t width;
};
struct CombineOp {
  uint32_t x, y, weights, result;
  int64_t width, top_k;
};
enum class DownOrder : uint8_t { row_major, row_per_neuron, neuron_major };  // attr[2] of EXPERTS
struct ExpertsOp {
  uint32_t x, slot_begin, rows, gate, up, down, gate_values, y;  // gate or gate_values is kNoValue
  int64_t slots, width, ff, top_k;
  bool silu;
  DownOrder order;
  bool gate_interleaved;  // of a checker that takes_interleaved_gates(); false without a gate
};
struct ExpertGatesOp {
  uint32_t x, slot_begin, rows, gate, y;
  int64_t slots, width, ff, top_k;
  bool gate_interleaved;
};

class OpChecker {
 public:
  explicit OpChecker(const SegmentView& segment) : segment_(segment), written_(segment.tensors().size(), false) {}

  // For backends that multiply by gates in panels of 16 rows (core/model/interleaved.h); others have them refused here.
  void takes_interleaved_gates() { interleaved_gates_ = true; }

  // The next op of the segment; null behind the last.
  const fth_op* next() {
    index_ = op_ ? index_ + 1 : 0;
    op_ = index_ < segment_.ops().size() ? &segment_.ops()[index_] : nullptr;
    return op_;
  }
  int64_t n_tokens() const { return n_tokens_; }  // the bucket; -1 until an op names it
  const fth_tensor& tensor(uint32_t v) const { return segment_.tensors()[v]; }
  DType type(uint32_t v) const { return dtype(tensor(v)); }
  std::string describe(std::string_view what, uint32_t v) const { return text(what, " (tensor ", v, ", ", sdk::describe(tensor(v)), ")"); }
  // Errors with the segment, the op and its index in front.
  tl::unexpected<Error> invalid(std::string_view what) const { return problem(Code::invalid_argument, what); }
  tl::unexpected<Error> unsupported(std::string_view what) const { return problem(Code::unimplemented, what); }

  Result<EmbedOp> embed() {
    FTH_RETURN_IF_ERROR(arity(2, 2));
    EmbedOp o{};
    o.vocabulary = o.width = -1;
    FTH_ASSIGN_OR_RETURN(o.ids, input_of(DType::i32, 0, "ids", {{"N", &n_tokens_}}));
    FTH_ASSIGN_OR_RETURN(o.table, matrix(1, "table", {{"V", &o.vocabulary}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N", &n_tokens_}, {"E", &o.width}}));
    return o;
  }

  Result<RmsNormOp> rms_norm() {
    FTH_RETURN_IF_ERROR(arity(2, 2));
    RmsNormOp o{};
    o.width = -1;
    FTH_ASSIGN_OR_RETURN(o.x, f32(0, "x", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.weight, f32(1, "weight", {{"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.eps, finite(0, "eps"));
    if (o.eps < 0) return invalid(text("attribute 0 (eps) is ", o.eps, ", need at least 0"));
    return o;
  }

  Result<MatmulOp> matmul() {
    FTH_RETURN_IF_ERROR(arity(2, 3));
    MatmulOp o{};
    o.k = o.m = -1;
    o.bias = kNoValue;
    FTH_ASSIGN_OR_RETURN(o.x, f32(0, "x", {{"N", &n_tokens_}, {"K", &o.k}}));
    FTH_ASSIGN_OR_RETURN(o.weight, matrix(1, "weight", {{"M", &o.m}, {"K", &o.k}}));
    if (segment_.in(*op_, 2)) {
      FTH_ASSIGN_OR_RETURN(o.bias, f32(2, "bias", {{"M", &o.m}}));
    }
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N", &n_tokens_}, {"M", &o.m}}));
    FTH_ASSIGN_OR_RETURN(const int64_t fine, integer(0, "fine", 0, 1));
    o.fine = fine != 0;
    FTH_RETURN_IF_ERROR(row_major(1, "weight"));
    return o;
  }

  Result<RopeOp> rope() {
    FTH_RETURN_IF_ERROR(arity(1, 2));
    RopeOp o{};
    o.factors = kNoValue;
    FTH_ASSIGN_OR_RETURN(o.heads, integer(0, "heads", 1, 1 << 20));
    FTH_ASSIGN_OR_RETURN(o.head_dim, integer(1, "D", 1, 1 << 20));
    FTH_ASSIGN_OR_RETURN(o.base, finite(2, "base"));
    FTH_ASSIGN_OR_RETURN(const int64_t rotated, integer(3, "R", 2, o.head_dim));
    FTH_ASSIGN_OR_RETURN(const int64_t pairing, integer(4, "pairing", 0, 1));
    FTH_ASSIGN_OR_RETURN(o.scale, finite(5, "position scale"));
    if (!(o.base > 0)) return invalid(text("attribute 2 (base) is ", o.base, ", need more than 0"));
    if (rotated % 2 != 0) return invalid(text("attribute 3 (R) is ", rotated, ", need an even number"));
    o.half = rotated / 2;
    o.adjacent = pairing == 1;
    int64_t width = o.heads * o.head_dim;
    FTH_ASSIGN_OR_RETURN(o.x, f32(0, "x", {{"N", &n_tokens_}, {"H*D", &width}}));
    if (segment_.in(*op_, 1)) {
      FTH_ASSIGN_OR_RETURN(o.factors, f32(1, "factors", {{"R/2", &o.half}}));
      if (tensor(o.factors).role != FTH_ROLE_WEIGHT)
        return unsupported(text(describe("factors", o.factors), ": only as a weight, known at compile"));
    }
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N", &n_tokens_}, {"H*D", &width}}));
    return o;
  }

  // caches: the dtypes that the backend's cells may have. Cells of q8_0 hold heads of whole blocks.
  Result<AttentionOp> attention(std::initializer_list<DType> caches = {DType::f32, DType::f16}) {
    FTH_RETURN_IF_ERROR(arity(5, 5));
    AttentionOp o{};
    FTH_ASSIGN_OR_RETURN(o.heads, integer(0, "H", 1, 1 << 20));
    FTH_ASSIGN_OR_RETURN(o.kv_heads, integer(1, "G", 1, o.heads));
    FTH_ASSIGN_OR_RETURN(o.head_dim, integer(2, "D", 1, 1 << 20));
    FTH_ASSIGN_OR_RETURN(o.window, integer(3, "window", 0, int64_t{1} << 40));
    FTH_ASSIGN_OR_RETURN(o.scale, finite(4, "score scale"));
    if (o.heads % o.kv_heads != 0) return invalid(text(o.heads, " query heads over ", o.kv_heads, " kv heads"));
    int64_t q_width = o.heads * o.head_dim, kv_width = o.kv_heads * o.head_dim, &n = n_tokens_;
    o.cells = -1;
    FTH_ASSIGN_OR_RETURN(o.q, f32(0, "q", {{"N", &n}, {"H*D", &q_width}}));
    FTH_ASSIGN_OR_RETURN(o.k, f32(1, "k", {{"N", &n}, {"G*D", &kv_width}}));
    FTH_ASSIGN_OR_RETURN(o.v, f32(2, "v", {{"N", &n}, {"G*D", &kv_width}}));
    if (const fth_tensor* cache = segment_.in(*op_, 3); cache != nullptr && cache->role == FTH_ROLE_SLOTS)
      return unsupported("a cache in pages, which come from storage into the host's memory");
    FTH_ASSIGN_OR_RETURN(o.k_cache, input(3, "k_cache", {{"C", &o.cells}, {"G*D", &kv_width}}));
    o.cache = type(o.k_cache);
    FTH_ASSIGN_OR_RETURN(o.v_cache, input_of(o.cache, 4, "v_cache", {{"C", &o.cells}, {"G*D", &kv_width}}));
    if (tensor(o.k_cache).role != FTH_ROLE_STATE || tensor(o.v_cache).role != FTH_ROLE_STATE || o.k_cache == o.v_cache)
      return invalid("k_cache and v_cache must be two tensors of the role state");
    if (std::find(caches.begin(), caches.end(), o.cache) == caches.end()) {
      std::string known;
      for (const DType t : caches) known += text(known.empty() ? "" : t == *(caches.end() - 1) ? " and " : ", ", name(t));
      return unsupported(text("a cache of ", name(o.cache), ": only ", known));
    }
    if (o.head_dim % traits(o.cache).block != 0)
      return unsupported(text("a cache of ", name(o.cache), " with heads of ", o.head_dim, ": need a multiple of ", traits(o.cache).block));
    const int64_t need = o.window > 0 ? o.window + n - 1 : n;
    if (o.cells < need) return invalid(text("a cache of ", o.cells, " cells for window ", o.window, " and ", n, " tokens, need ", need));
    if (o.cells >= int64_t{1} << 31) return unsupported(text("a cache of ", o.cells, " cells"));
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N", &n}, {"H*D", &q_width}}));
    return o;
  }

  // ADD and GLU.
  Result<ElementwiseOp> elementwise() {
    FTH_RETURN_IF_ERROR(arity(2, 2));
    const bool glu = op_->kind == FTH_OP_GLU;
    ElementwiseOp o{};
    o.width = -1;
    FTH_ASSIGN_OR_RETURN(o.a, f32(0, glu ? "gate" : "a", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.b, f32(1, glu ? "up" : "b", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N", &n_tokens_}, {"E", &o.width}}));
    o.kind = ElementwiseOp::Kind::add;
    if (glu) {
      FTH_ASSIGN_OR_RETURN(const int64_t activation, integer(0, "activation", 0, 1));
      o.kind = activation == 0 ? ElementwiseOp::Kind::relu_glu : ElementwiseOp::Kind::silu_glu;
    }
    return o;
  }

  Result<CombineOp> combine() {
    FTH_RETURN_IF_ERROR(arity(3, 3));
    CombineOp o{};
    o.width = o.top_k = -1;
    FTH_ASSIGN_OR_RETURN(o.x, f32(0, "x", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.weights, f32(2, "weights", {{"N", &n_tokens_}, {"K", &o.top_k}}));
    int64_t expert_rows = n_tokens_ * o.top_k;
    FTH_ASSIGN_OR_RETURN(o.y, f32(1, "y", {{"N*K", &expert_rows}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.result, output("out", {{"N", &n_tokens_}, {"E", &o.width}}));
    return o;
  }

  Result<ExpertsOp> experts() {
    FTH_RETURN_IF_ERROR(arity(6, 6));
    ExpertsOp o{};
    o.slots = o.width = o.ff = -1;
    o.gate = o.gate_values = kNoValue;
    FTH_ASSIGN_OR_RETURN(const int64_t activation, integer(0, "activation", 0, 1));
    FTH_ASSIGN_OR_RETURN(o.top_k, integer(1, "K", 1, 1 << 16));
    FTH_ASSIGN_OR_RETURN(const int64_t order, integer(2, "order of down", 0, 2));
    o.silu = activation == 1;
    o.order = static_cast<DownOrder>(order);
    FTH_ASSIGN_OR_RETURN(o.x, f32(0, "x", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(int64_t n_rows, expert_rows(o.top_k));
    if (tensor(op_->in[3]).role != FTH_ROLE_SLOTS) {
      FTH_ASSIGN_OR_RETURN(o.gate_values, f32(3, "gate values", {{"N*K", &n_rows}, {"F", &o.ff}}));
    } else {
      FTH_ASSIGN_OR_RETURN(o.gate, slots_input(3, "gate", {{"S", &o.slots}, {"F", &o.ff}, {"E", &o.width}}));
      FTH_ASSIGN_OR_RETURN(o.gate_interleaved, gate_order(3, o.gate, o.ff));
    }
    FTH_ASSIGN_OR_RETURN(o.up, slots_input(4, "up", {{"S", &o.slots}, {"F", &o.ff}, {"E", &o.width}}));
    const Dim f{"F", &o.ff}, e{"E", &o.width};
    const bool rows_of_neurons = o.order == DownOrder::row_per_neuron;
    FTH_ASSIGN_OR_RETURN(o.down, slots_input(5, "down", {{"S", &o.slots}, rows_of_neurons ? f : e, rows_of_neurons ? e : f}));
    if (o.order == DownOrder::neuron_major) {
      if (type(o.down) != DType::q4_0 && type(o.down) != DType::q8_0)
        return unsupported(text("down neuron-major of ", name(type(o.down)), ": q4_0 and q8_0 have that order"));
      if (o.width % 32 != 0) return invalid(text("down neuron-major with E ", o.width, ": need a multiple of 32"));
    }
    FTH_RETURN_IF_ERROR(expert_table(o.slots, n_rows, &o.slot_begin, &o.rows));
    FTH_ASSIGN_OR_RETURN(o.y, output("y", {{"N*K", &n_rows}, {"E", &o.width}}));
    return o;
  }

  Result<ExpertGatesOp> expert_gates() {
    FTH_RETURN_IF_ERROR(arity(4, 4));
    ExpertGatesOp o{};
    o.slots = o.width = o.ff = -1;
    FTH_ASSIGN_OR_RETURN(o.top_k, integer(0, "K", 1, 1 << 16));
    FTH_ASSIGN_OR_RETURN(o.x, f32(0, "x", {{"N", &n_tokens_}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(int64_t n_rows, expert_rows(o.top_k));
    FTH_ASSIGN_OR_RETURN(o.gate, slots_input(3, "gate", {{"S", &o.slots}, {"F", &o.ff}, {"E", &o.width}}));
    FTH_ASSIGN_OR_RETURN(o.gate_interleaved, gate_order(1, o.gate, o.ff));
    FTH_RETURN_IF_ERROR(expert_table(o.slots, n_rows, &o.slot_begin, &o.rows));
    FTH_ASSIGN_OR_RETURN(o.y, output("g", {{"N*K", &n_rows}, {"F", &o.ff}}));
    return o;
  }

 private:
  struct Dim {
    const char* letter;
    int64_t* size;  // -1 until some tensor says what it is, then every other must agree
  };

  tl::unexpected<Error> problem(Code code, std::string_view what) const {
    return fail(code, text(segment_.name(), ": op ", index_, " (", op_name(op_->kind), "): ", what));
  }
  Result<> arity(uint32_t min_in, uint32_t max_in) const {
    if (op_->n_in < min_in || op_->n_in > max_in || op_->n_out != 1)
      return invalid(text(op_->n_in, " inputs and ", op_->n_out, " outputs, need ", min_in,
                          min_in == max_in ? std::string() : text(" to ", max_in), " and 1"));
    for (uint32_t i = 0; i < min_in; ++i)
      if (!segment_.in(*op_, i)) return invalid(text("input ", i, " is absent"));
    return {};
  }
  Result<bool> gate_order(uint32_t i, uint32_t gate, int64_t ff) const {
    if (!interleaved_gates_) {
      FTH_RETURN_IF_ERROR(row_major(i, "gate"));
      return false;
    }
    FTH_ASSIGN_OR_RETURN(const int64_t order, integer(i, "order of the gate", 0, 1));
    if (order == 0) return false;
    if (type(gate) != DType::q8_0 && type(gate) != DType::q4_0 && type(gate) != DType::q4_1 && type(gate) != DType::q6_k)
      return unsupported(text(describe("gate", gate), ": interleaved rows, which q8_0, q4_0, q4_1 and q6_k have"));
    if (ff % 16 != 0) return invalid(text(describe("gate", gate), ": ", ff, " interleaved rows, need a multiple of 16"));
    return true;
  }
  // Interleaved matrices of MATMUL are the cpu backend's own: it has no use for this class.
  Result<> row_major(uint32_t i, std::string_view what) const {
    FTH_ASSIGN_OR_RETURN(const int64_t order, integer(i, text("order of the ", what), 0, 1));
    if (order != 0) return unsupported(text("interleaved rows of the ", what, ": only row-major ones are taken here"));
    return {};
  }
  // N * K, the (token, rank) pairs of EXPERTS.
  Result<int64_t> expert_rows(int64_t top_k) const {
    if (n_tokens_ > (1 << 24) / top_k) return unsupported(text(n_tokens_, " tokens with K ", top_k, ": at most ", 1 << 24, " rows"));
    return n_tokens_ * top_k;
  }
  Result<> expert_table(int64_t slots, int64_t n_rows, uint32_t* slot_begin, uint32_t* rows) const {
    int64_t n_begin = slots + 1;
    FTH_ASSIGN_OR_RETURN(*slot_begin, input_of(DType::i32, 1, "slot_begin", {{"S+1", &n_begin}}));
    FTH_ASSIGN_OR_RETURN(*rows, input_of(DType::i32, 2, "rows", {{"N*K", &n_rows}}));
    return {};
  }
  Result<uint32_t> slots_input(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    const uint32_t v = op_->in[i];
    if (tensor(v).role != FTH_ROLE_SLOTS) return invalid(text(describe(what, v), " has the role ", role_name(tensor(v).role)));
    if (type(v) == DType::i32) return unsupported(text(describe(what, v), ": no product with i32"));
    return sized(v, what, dims);
  }
  Result<uint32_t> shaped(uint32_t v, std::string_view what, std::initializer_list<Dim> dims) const {
    if (tensor(v).role == FTH_ROLE_SLOTS) return invalid(text(describe(what, v), " has the role slots"));
    return sized(v, what, dims);
  }
  Result<uint32_t> sized(uint32_t v, std::string_view what, std::initializer_list<Dim> dims) const {
    const fth_tensor& t = tensor(v);
    if (t.rank != dims.size()) return invalid(text(describe(what, v), " needs ", dims.size(), " dims"));
    const int64_t* size = t.dims;
    for (const Dim& d : dims) {
      if (*d.size < 0) *d.size = *size;
      if (*d.size != *size)
        return invalid(text(describe(what, v), ": ", d.letter, " is ", *d.size, " by the tensors or attributes before it"));
      ++size;
    }
    return v;
  }
  Result<uint32_t> input(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    return shaped(op_->in[i], what, dims);
  }
  Result<uint32_t> input_of(DType wanted, uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    FTH_ASSIGN_OR_RETURN(const uint32_t v, input(i, what, dims));
    if (type(v) != wanted) return unsupported(text(describe(what, v), ": only ", name(wanted)));
    return v;
  }
  Result<uint32_t> f32(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    return input_of(DType::f32, i, what, dims);
  }
  Result<uint32_t> matrix(uint32_t i, std::string_view what, std::initializer_list<Dim> dims) const {
    FTH_ASSIGN_OR_RETURN(const uint32_t v, input(i, what, dims));
    if (type(v) == DType::i32) return unsupported(text(describe(what, v), ": no product with i32"));
    return v;
  }
  Result<uint32_t> output(std::string_view what, std::initializer_list<Dim> dims) {
    FTH_ASSIGN_OR_RETURN(const uint32_t v, shaped(op_->out[0], what, dims));
    if (type(v) != DType::f32) return unsupported(text(describe(what, v), ": only f32"));
    if (written_[v]) return unsupported(text(describe(what, v), " is written by an earlier op: one writer per tensor"));
    for (uint32_t i = 0; i < op_->n_in; ++i)
      if (op_->in[i] == v) return unsupported(text(describe(what, v), " is an input of the op too"));
    written_[v] = true;
    return v;
  }
  Result<int64_t> integer(uint32_t i, std::string_view what, int64_t min, int64_t max) const {
    const double a = op_->attr[i];
    if (!(a >= static_cast<double>(min) && a <= static_cast<double>(max)) || a != std::floor(a))
      return invalid(text("attribute ", i, " (", what, ") is ", a, ", need a whole number from ", min, " to ", max));
    return static_cast<int64_t>(a);
  }
  Result<double> finite(uint32_t i, std::string_view what) const {
    if (!std::isfinite(op_->attr[i])) return invalid(text("attribute ", i, " (", what, ") is ", op_->attr[i], ", need a finite number"));
    return op_->attr[i];
  }

  const SegmentView& segment_;
  std::vector<bool> written_;
  size_t index_ = 0;
  const fth_op* op_ = nullptr;
  int64_t n_tokens_ = -1;
  bool interleaved_gates_ = false;
};

}  // namespace fth::sdk
#pragma GCC visibility pop
