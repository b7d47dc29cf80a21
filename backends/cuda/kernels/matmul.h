#pragma once
// MATMUL: y[n, m] = sum over k of x[n, k] w[m, k] + bias[m]. A warp shares rows of w: each thread takes every 32nd unit of 32 values, and the threads'
// sums are added in one order. How many rows and columns (tokens) a warp does at once changes only what is reused, so a result has the same bits
// whatever the bucket is. The block's warps share a tile of x.

#include "backends/cuda/kernels/units.h"

namespace fth::cuda {

struct MatmulParams {
  enum Tensor : uint32_t { kX, kWeight, kBias, kY };
  enum Number : uint32_t { kK, kM, kRowBytes, kHasBias, kType };
};

template <DType kWeightType, uint32_t kColumnsAtOnce>
struct Matmul : MatmulParams {
  static constexpr uint32_t kColumns = kColumnsAtOnce;
  static constexpr bool kOne = kColumns == 1;
  static constexpr uint32_t kRows = kOne ? 2 : 4;  // of a warp
  static constexpr uint32_t kWarps = 4;            // many columns take 160 registers: three such blocks fit a processor, of eight warps one
  static constexpr uint32_t kThreads = kWarps * kWarp;
  static constexpr uint32_t kTileUnits = kOne ? 96 : 32;
  static constexpr uint32_t kBlockRows = kWarps * kRows;
  // Part j of the units that a warp takes at once lies together, so that a warp reads 512 bytes in a row; which thread's is where is swapped by j, so
  // that the writes, which go by unit, do not meet in the same banks either.
  struct Shared {
    Float4 x[kColumns][kTileUnits / kWarp][kParts][kWarp];
  };

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t k = p.number[kK], m = p.number[kM], units = k / kUnit, n = p.n_tokens;
    const uint32_t first_column = b.y() * kColumns, first_row = b.x() * kBlockRows;
    typename Block::template PerThread<Floats<kRows * kColumns>> sums;
    b.step([&](uint32_t t) {
      FTH_UNROLL
      for (uint32_t i = 0; i < kRows * kColumns; ++i) sums[t].v[i] = 0.0f;
    });
    for (uint32_t tile = 0; tile < units; tile += kTileUnits) {
      const uint32_t count = smaller(kTileUnits, units - tile);
      b.phase([&](uint32_t t, Shared& s) {
        for (uint32_t i = t; i < kColumns * count * kParts; i += kThreads) {
          const uint32_t c = i / (count * kParts), at = i % (count * kParts), unit = at / kParts, j = at % kParts;
          const uint32_t column = smaller(first_column + c, n - 1);  // past the last: read, not written
          s.x[c][unit / kWarp][j][(unit % kWarp) ^ j] =
              load<Float4>(p.tensor[kX] + 4 * (static_cast<uint64_t>(column) * k + (tile + unit) * kUnit + 4 * j));
        }
      });
      b.phase([&](uint32_t t, const Shared& s) {
        const uint32_t lane = t % kWarp, row = first_row + t / kWarp * kRows;
        for (uint32_t unit = lane; unit < count; unit += kWarp) add_unit(p, s, row, tile, unit, sums[t]);
      });
    }
    b.warp_sum(sums);
    b.step([&](uint32_t t) {
      const uint32_t lane = t % kWarp, row = first_row + t / kWarp * kRows;
      float mine = 0.0f;
      FTH_UNROLL
      for (uint32_t i = 0; i < kRows * kColumns; ++i)
        if (i == lane) mine = sums[t].v[i];
      const uint32_t r = row + lane / kColumns, column = first_column + lane % kColumns;
      if (lane >= kRows * kColumns || r >= m || column >= n) return;
      if (p.number[kHasBias] != 0) mine += p.floats(kBias)[r];
      p.out(kY)[static_cast<uint64_t>(column) * m + r] = mine;
    });
  }

 private:
  // sums += the products of one unit of kRows rows with the unit of each column.
  static FTH_GPU void add_unit(const Params& p, const Shared& s, uint32_t row, uint32_t tile, uint32_t unit,
                               Floats<kRows * kColumns>& sums) {
    using W = Unit<kWeightType>;
    const uint32_t lane = unit % kWarp, round = unit / kWarp, last = p.number[kM] - 1;
    W w[kRows];
    FTH_UNROLL
    for (uint32_t r = 0; r < kRows; ++r)
      w[r].read(p.tensor[kWeight] + static_cast<uint64_t>(smaller(row + r, last)) * p.number[kRowBytes], tile + unit);
    FTH_UNROLL
    for (uint32_t half = 0; half < 2; ++half) {
      float dot[kRows * kColumns] = {}, x_sum[kColumns] = {};
      FTH_UNROLL
      for (uint32_t j = half * kParts / 2; j < (half + 1) * kParts / 2; ++j) {
        Float4 part[kRows];
        FTH_UNROLL
        for (uint32_t r = 0; r < kRows; ++r) part[r] = w[r].part(j);
        FTH_UNROLL
        for (uint32_t c = 0; c < kColumns; ++c) {
          const Float4 x = s.x[c][round][j][lane ^ j];
          FTH_UNROLL
          for (uint32_t r = 0; r < kRows; ++r) {
            FTH_UNROLL
            for (uint32_t i = 0; i < 4; ++i) dot[r * kColumns + c] = multiply_add(part[r].v[i], x.v[i], dot[r * kColumns + c]);
          }
          x_sum[c] += (x.v[0] + x.v[1]) + (x.v[2] + x.v[3]);  // dropped where no unit has a least value
        }
      }
      FTH_UNROLL
      for (uint32_t r = 0; r < kRows; ++r) {
        FTH_UNROLL
        for (uint32_t c = 0; c < kColumns; ++c) {
          float& sum = sums.v[r * kColumns + c];
          if constexpr (!W::kScaled) {
            sum += dot[r * kColumns + c];
          } else {
            sum = multiply_add(w[r].scale(half), dot[r * kColumns + c], sum);
            if constexpr (W::kHasLeast) sum = multiply_add(w[r].least(), x_sum[c], sum);
          }
        }
      }
    }
  }
};

// Rows that are no whole units, of f32, f16 and bf16: a warp does one row of one column.
struct MatmulByValue : MatmulParams {
  static constexpr uint32_t kThreads = 128, kColumns = 1, kBlockRows = kThreads / kWarp;
  using Shared = NoShared;

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t k = p.number[kK], m = p.number[kM], column = b.y(), first_row = b.x() * kBlockRows;
    typename Block::template PerThread<Floats<1>> sum;
    b.step([&](uint32_t t) {
      const std::byte* row = p.tensor[kWeight] + static_cast<uint64_t>(smaller(first_row + t / kWarp, m - 1)) * p.number[kRowBytes];
      const float* x = p.floats(kX) + static_cast<uint64_t>(column) * k;
      float s = 0.0f;
      for (uint32_t i = t % kWarp; i < k; i += kWarp) s = multiply_add(load_value(static_cast<DType>(p.number[kType]), row, i), x[i], s);
      sum[t].v[0] = s;
    });
    b.warp_sum(sum);
    b.step([&](uint32_t t) {
      const uint32_t r = first_row + t / kWarp;
      if (t % kWarp != 0 || r >= m) return;
      float mine = sum[t].v[0];
      if (p.number[kHasBias] != 0) mine += p.floats(kBias)[r];
      p.out(kY)[static_cast<uint64_t>(column) * m + r] = mine;
    });
  }
};

}  // namespace fth::cuda
