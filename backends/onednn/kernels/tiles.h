#pragma once
// What stands between the engine's memory and oneDNN's products: weights unpacked into tiles, activations packed into panels, groups scaled and added.
// One table per instruction set, each from a translation unit of its own that includes nothing but this header and intrinsics.
//
// A product is C[64, p] = A[64, depth] * B[depth, p]: A a tile of weight rows, B a panel of p columns, one for each activation row. Weights lie as they
// are stored, without a transposition, and B is packed once for all tiles.

#include <cstddef>
#include <cstdint>

namespace fth::onednn {

inline constexpr int64_t kTile = 64;    // weight rows of a tile
inline constexpr int64_t kChunk = 256;  // values of each that are unpacked at once: 64 KiB of f32
inline constexpr int64_t kGroup = 32;   // values that share a scale; depths are padded to whole groups
inline constexpr int64_t kPanel = 64;   // most columns of a panel
inline constexpr int64_t kWide = 128;   // columns of an accumulator: panels that share one unpacking

// A matrix of n_rows rows of k values. The numbers of types are FTH_DTYPE_*.
struct WeightView {
  const std::byte* data;
  uint16_t type;
  bool neuron_major;  // core/model/neuron_major.h; else rows of row_bytes
  bool interleaved;   // panels of 16 rows (core/model/interleaved.h): q4_0 and q4_1; not with neuron_major
  int64_t n_rows, k;
  uint64_t row_bytes;
};

// Rows [row, row + n) and values [k0, k0 + depth) of a matrix, n <= kTile, depth <= kChunk, k0 a multiple of kChunk. What lies beyond n or k is zero. Of an
// interleaved matrix row and n are multiples of 16.
struct TileArgs {
  const WeightView* weight;
  int64_t row, n, k0, depth;  // depth: a multiple of kGroup
};

struct TileTable {
  const char* name;  // "avx2"

  // q4_0 and q8_0 as unsigned codes [kTile, kChunk], value = scale * (code - zero), zero 8 and 128; scales [kChunk / kGroup, kTile].
  void (*codes)(const TileArgs&, uint8_t* codes, float* scales);
  // Any type that is_known(), as f32 [kTile, kChunk].
  void (*floats)(const TileArgs&, float* values);

  // n columns into columns col .. of a panel of p, value kk of one at x[c][kk]; beyond k up to the next whole group, and for n < count, zeros.
  void (*pack_f32)(const float* const* x, int64_t n, int64_t count, int64_t k, int64_t p, float* panel);
  // The same in 8 bits: blocks of kGroup with a scale each, value = scale * q, q in [-127, 127], scale = max|x| / 127. panel [groups][kGroup * p] with
  // q of (value, column) at value / 4 * 4p + column * 4 + value % 4 when interleaved, else at value * p + column. scales and sums [groups, p]: the sum of q.
  void (*pack_q8)(const float* const* x, int64_t n, int64_t count, int64_t k, int64_t p, bool interleaved, int8_t* panel, float* scales,
                  int32_t* sums);
  // One group of pack_q8 whose value i of column c is at h[i * stride + c].
  void (*pack_q8_group)(const float* h, int64_t stride, int64_t p, bool interleaved, int8_t* panel, float* scales, int32_t* sums);

  // acc[r * kWide + c] += (products[r * p + c] - zero * sums[c]) * (weight_scales[r] * scales[c]) for kTile rows and p columns.
  void (*add_group)(const int32_t* products, int64_t p, int32_t zero, const float* weight_scales, const float* scales, const int32_t* sums,
                    float* acc);
};

extern const TileTable kTilesAvx2, kTilesAvx512;
// The best of them that this CPU runs; null: none.
const TileTable* tile_table();

}  // namespace fth::onednn
