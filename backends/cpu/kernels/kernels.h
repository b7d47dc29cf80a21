#pragma once
// The kernels of one instruction set, as a table of function pointers. One translation unit per set, each built with its own flags,
// including only this header and its intrinsics, everything in an anonymous namespace, exporting one `const KernelTable`: an inline
// library function compiled for AVX-512 may otherwise be the copy that the linker keeps for everyone (tools/check_isa.sh looks).
//
// Contract of every kernel:
// - Reads and writes exactly the ranges that its arguments name; unaligned pointers are allowed.
// - The value of one output never depends on how many rows or columns the call has, nor on its neighbours: splitting work over threads or
//   ubatches gives the same bits. Sums run in a fixed order. Different tables may differ in the last bits (tests/conformance states how much).
// - Infinities and NaN flow through; none traps.
// The sum of a quantised product, for every group of 32 in ascending order, with the group's exact integer dot of codes and q:
//   sum += scale * (d * float(dot)), then sum += offset * s for types with unsigned codes (both fused in the SIMD tables)
// A row-major and a neuron-major matrix with the same blocks therefore give the same bits.

#include <cstddef>
#include <cstdint>

namespace fth::cpu {

// An activation row of k values (k a multiple of 32) quantised to 8 bits in blocks of 32, for products with quantised weights:
//   int8 q[k]; float d[k/32]; float s[k/32];   value = d * q, q in [-127, 127], d = max|x| / 127 (not rounded to f16); s = d * (sum of q)
// The weights' offsets (q4_0's 8, the k-quants' minima) are applied through s, so that nibbles stay unsigned.
constexpr uint64_t q8_row_bytes(int64_t k) { return static_cast<uint64_t>(k) + static_cast<uint64_t>(k) / 4; }

// dst[c * dst_stride + r] = dot(weight row r, activation row c) for r in [0, n_rows), c in [0, n_cols).
// Activation rows are f32[k] for f32, f16 and bf16 weights (products in f32) and Q8 rows for the quantised types.
// With `rows` set, row i of the call is weight row rows[i] and goes to dst[c * dst_stride + rows[i]] (rows ascend, no duplicates).
struct MatmulArgs {
  const void* weights;
  uint64_t row_bytes;  // from one weight row to the next
  const void* act;
  uint64_t act_bytes;  // from one activation row to the next
  float* dst;
  int64_t dst_stride;  // in floats
  int64_t k, n_rows, n_cols;
  const int32_t* rows;         // null: 0 .. n_rows - 1
  const void* next = nullptr;  // interleaved: what this thread will probably read after these weights, to be prefetched; null: nobody knows
};

// The same products over a neuron-major matrix of E outputs by k neurons (core/model/neuron_major.h; q8_0 and q4_0), for the outputs
// [first, first + n_rows): dst[c * dst_stride + i] is output first + i. E, k, first and n_rows are multiples of 32. The bits are those of the row-major
// product of the same table. With few columns, codes of neurons whose quantised activation is 0 are not read.
struct NeuronMatmulArgs {
  const void* weights;  // group 0 of the whole matrix
  int64_t n_outputs;    // E
  int64_t first, n_rows;
  const void* act;
  uint64_t act_bytes;
  float* dst;
  int64_t dst_stride;
  int64_t k, n_cols;
};

// Products of some (row, column) pairs of a batch: dst[c * dst_stride + r] for the columns c whose bit is set in columns[r], with the bits of MatmulArgs'
// product; nothing else is written. Column c is row act_rows[c] of `act`, whose rows are pair_q8's. k is a multiple of 64.
inline constexpr int64_t kPairRows = 128, kPairColumns = 64;  // of a call, at most
struct PairsArgs {
  const void* weights;
  uint64_t row_bytes;
  const void* act;
  uint64_t act_bytes;
  const int32_t* act_rows;
  float* dst;
  int64_t dst_stride;
  int64_t k, n_rows;
  const uint64_t* columns;
};

// A group of 32 neurons of one activation row: those whose rounded activation is not 0, two at a time, ascending; of an odd number the last one stands beside
// itself with activation 0.
struct LiveGroup {
  float d, s;         // the group's
  float less;         // 2^23 + 2^15 - 8 * the sum of the activations
  int16_t start;      // 2^15 - 8 * that sum, which may wrap
  int16_t n;          // how many twos there are
  uint32_t q[16];     // of each two, as two bytes, and the same two again
  uint8_t at[16][2];  // 8 times the neuron's number in the group
};

// NeuronMatmulArgs' products of a q4_0 matrix with n_cols <= kLiveColumns columns whose groups list_live gave, column after column; the same bits.
// dst[dst_rows[c] * dst_stride + i] is output first + i of column c.
inline constexpr int64_t kLiveColumns = 128;
struct LiveNeuronsArgs {
  const void* weights;
  int64_t n_outputs;
  int64_t first, n_rows;
  const LiveGroup* groups;  // k / 32 for each column
  float* dst;
  const int32_t* dst_rows;
  int64_t dst_stride;
  int64_t k, n_cols;
};

// One kv head and the n_q query heads that share it, for the tokens at positions pos .. pos + n_tokens - 1. A token at p sees the positions
// 0 .. p, or with a window p - window + 1 .. p of them; n_tokens >= 1.
// For each query j: y[j] = sum over the positions c it sees of softmax_c(scale * q[j] . k[c]) v[c], an online softmax over ascending positions in
// blocks of 64 counted from position 0; f32 throughout, k and v converted on load. Tokens in one call or in many give the same bits.
// The cells are a ring: position p lies in cell p % n_cells, and n_cells is at least the positions that the call sees. Cell c is the
// (c % page_cells)-th of page c / page_cells: pages may lie anywhere, and how cells are divided into pages does not reach the bits.
// Only cells of positions that some token sees are read. head_dim % 32 == 0 for q8_0 cells.
struct AttentionArgs {
  const float* q;             // n_q heads of head_dim, adjacent
  const std::byte* const* k;  // pages; null where no position of this call lies
  const std::byte* const* v;
  uint64_t head_offset;  // of this kv head in a cell
  uint64_t cell_bytes;   // from one cell of a page to the next, for k and for v
  int64_t page_cells;
  float* y;        // n_q heads of head_dim, adjacent
  int64_t stride;  // from one token's heads to the next one's, in floats, for q and y
  int64_t n_q, head_dim;
  int64_t pos, n_tokens;
  int64_t window;  // 0: none
  int64_t n_cells;
  float scale;
};
// Rows (query heads times tokens) that pass over the cells together. Calls of about as many make good work items.
inline constexpr int64_t kAttentionRows = 48;

// Rows of 2-bit codes (core/base/head_plane.h): sums[r] = sum over the columns of code * q, for n_groups groups of 128 columns.
struct PlaneArgs {
  const void* rows;
  uint64_t row_bytes, row_head;  // from one row to the next; bytes of a row before its codes
  const int8_t* q;               // [n_groups * 128]
  int64_t n_groups, n_rows;
  int32_t* sums;
};

inline constexpr size_t kWeightTypes = 8;  // DType::f32 .. DType::q4_k, in that order

struct KernelTable {
  const char* name;  // "avx2"

  void (*quantize_q8)(int64_t k, const float* x, void* row);
  void (*quantize_fine)(int64_t k, const float* x, void* rows);  // two adjacent Q8 rows: of x, and of what the first one leaves of it
  void (*matmul[kWeightTypes])(const MatmulArgs&);
  void (*matmul_by_neuron[kWeightTypes])(const NeuronMatmulArgs&);  // null where the type has no such order
  // matmul of an interleaved matrix (core/model/interleaved.h; q8_0, q4_0, q4_1 and q6_k), from a panel's first row on: n_rows % 16 == 0, `rows` is null. The bits are those of
  // the row-major product of the same table. Null where the type has no such order.
  void (*matmul_interleaved[kWeightTypes])(const MatmulArgs&);
  void (*dequantize[kWeightTypes])(int64_t k, const void* row, float* y);
  void (*axpy[kWeightTypes])(int64_t k, float a, const void* row, float* y);  // y += a * row

  void (*attention_f32)(const AttentionArgs&);  // k and v are f32
  void (*attention_f16)(const AttentionArgs&);  // k and v are f16
  void (*attention_q8_0)(const AttentionArgs&);

  void (*rms_norm)(int64_t n, const float* x, const float* weight, float eps, float* y);
  // In place on one head: pairs (x[j], x[j + half]) or (x[2j], x[2j + 1]), j in [0, half), rotated by the angle whose cosine and sine are given.
  void (*rope_neox)(int64_t half, const float* cosine, const float* sine, float* x);
  void (*rope_adjacent)(int64_t half, const float* cosine, const float* sine, float* x);
  void (*relu_mul)(int64_t n, const float* gate, const float* up, float* y);  // y may be gate or up
  void (*silu_mul)(int64_t n, const float* gate, const float* up, float* y);
  void (*add)(int64_t n, const float* a, const float* b, float* y);
  // Neurons of ReGLU. A gate lives unless it is 0 or less (a NaN does): alive[i] becomes 1 where it lives, else stays. y is gate * up where it lives,
  // else 0 whatever up holds; y may be gate or up.
  void (*mark_alive)(int64_t n, const float* gate, uint8_t* alive);
  void (*live_mul)(int64_t n, const float* gate, const float* up, float* y);
  void (*f32_to_f16)(int64_t n, const float* x, uint16_t* y);  // round to nearest even
  // Blocks of 32 values: d = max|x| / 127 rounded to f16, codes rounded to nearest even by the d before it was rounded. n % 32 == 0.
  void (*f32_to_q8_0)(int64_t n, const float* x, void* blocks);
  void (*plane_sums)(const PlaneArgs&);

  // Null where all pairs are computed as quickly as the wanted ones (docs/kernels.md, "Live pairs").
  void (*matmul_pairs[kWeightTypes])(const PairsArgs&);
  // A Q8 row of k values (k % 64 == 0) in the order that matmul_pairs reads; the same size.
  void (*pair_q8)(int64_t k, const void* row, void* paired);
  // Null where whole tiles are as quick, and for types without that order. list_live lists a Q8 row of k values and returns the neurons that live.
  void (*matmul_live[kWeightTypes])(const LiveNeuronsArgs&);
  int64_t (*list_live)(int64_t k, const void* row, LiveGroup* groups);
  // columns[r]: bit c is set where gate[c * stride + r] lives, as mark_alive has it; n_cols <= kPairColumns. Returns the number of bits.
  int64_t (*live_pairs)(int64_t n_rows, int64_t n_cols, const float* gate, int64_t stride, uint64_t* columns);
};

extern const KernelTable kGeneric;
#if defined(__x86_64__)
extern const KernelTable kAvx2;        // AVX2, FMA, F16C
extern const KernelTable kAvxVnni;     // the same and AVX-VNNI
extern const KernelTable kAvx512;      // AVX-512 F, BW, DQ, VL
extern const KernelTable kAvx512Vnni;  // the same and VNNI
#elif defined(__aarch64__)
extern const KernelTable kNeonDotprod;  // ARMv8.2 dotprod
extern const KernelTable kNeonI8mm;     // the same and ARMv8.6 i8mm
#endif

// One row of `forethought devices -v`.
struct KernelChoice {
  const KernelTable* table;
  const char* refusal;  // null if this machine can run it, else why not: "no avx512_vnni in cpuid"
};

// Best first, the generic one last; by cpuid and XGETBV (the operating system must save the registers).  [dispatch.cpp]
// Returns the number of entries; *out points at static storage.
size_t kernel_choices(const KernelChoice** out);

}  // namespace fth::cpu
