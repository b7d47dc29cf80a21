#pragma once
// ATTENTION: softmax(q k^T) v in one pass over the positions with a running maximum (Milakov and Gimelshein, arXiv 1805.02867). Positions go by in tiles
// of 32 counted from position 0, whatever the row: a tile's share of a row, its maximum, its sum of weights and its weighted v, depends on nothing else,
// and shares are merged in the order of the tiles. So rows that go down together, one alone in one block, and one whose tiles are spread over blocks
// (AttentionTile, then AttentionMerge) give the same bits.

#include "backends/cuda/kernels/block.h"

namespace fth::cuda {

struct AttentionParams {
  enum Tensor : uint32_t { kQ, kKCache, kVCache, kY, kShares };
  enum Number : uint32_t { kHeads, kKvHeads, kHeadDim, kWindow, kCells };  // kWindow: 0 for all positions; real: the score scale

  static constexpr uint32_t kTile = 32, kMostHeadDim = 256;
  static constexpr uint32_t kThreads = 128, kWarps = kThreads / kWarp;
  static constexpr uint32_t kSlots = 2;  // values of v that a thread adds up, for heads of up to 256
  static constexpr float kNone = -INFINITY;

  // How threads share v: a thread does one column of every kGroups-th position, or two columns of all.
  static FTH_GPU uint32_t groups(uint32_t head_dim) { return head_dim > kThreads ? 1 : smaller(kThreads / head_dim, kTile); }
  // Floats of a share: a thread's sums, thread by thread, then the maximum and the sum of weights.
  static constexpr uint32_t share_floats(uint32_t head_dim) { return (head_dim > kThreads ? kSlots * kThreads : kThreads) + 2; }

  static FTH_GPU uint32_t first_seen(uint32_t position, uint32_t window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
  }
};

// A row's state between tiles. A share with no weight leaves it as it is.
struct Running {
  float top, total;    // maximum of the scores, sum of exp(score - top)
  float shrink, gain;  // of the last merge: what was there counts shrink times, the share gain times

  FTH_GPU void start() {
    top = AttentionParams::kNone;
    total = 0.0f;
  }
  FTH_GPU void merge(float peak, float weights) {
    shrink = 1.0f;
    gain = 0.0f;
    if (!(weights > 0.0f)) return;
    const float next = fmaxf(top, peak);
    shrink = expf(top - next);
    gain = expf(peak - next);
    total = multiply_add(total, shrink, weights * gain);
    top = next;
  }
};

// kRows rows of one head at once; kWholeRow: all tiles of them, else one tile of one row, whose share goes to kShares.
template <DType kCell, uint32_t kRowsAtOnce, bool kWholeRow>
struct Attention : AttentionParams {
  static constexpr uint32_t kRows = kRowsAtOnce;
  static constexpr uint32_t kRowsOfWarp = (kRows + kWarps - 1) / kWarps;
  static constexpr uint32_t kStride = kMostHeadDim + 4;  // 16 bytes more than the longest row, see `stride` in run
  struct Shared {
    Float4 query[kRows][kMostHeadDim / 4];
    Float4 key[kTile * kStride / 4];
    float part[kWarps][kTile];  // of the scores of a single row
    float weight[kRows][kTile];
    uint32_t cell[kTile];
    Running row[kRows];
    float peak, weights;  // of a single row
  };

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t heads = p.number[kHeads], head_dim = p.number[kHeadDim], window = p.number[kWindow], n = p.n_tokens;
    const uint32_t head = b.x() % heads;
    // The last rows see the most: first.
    const uint32_t row_blocks = (n + kRows - 1) / kRows, first_row = kWholeRow ? (row_blocks - 1 - b.y()) * kRows : 0;
    const uint32_t last_row = smaller(first_row + kRows, n) - 1;
    const uint32_t lowest = first_seen(p.pos + first_row, window), highest = p.pos + last_row;
    const uint32_t first_tile = lowest / kTile + (kWholeRow ? 0 : b.x() / heads);
    const uint32_t end_tile = kWholeRow ? highest / kTile + 1 : first_tile + 1;

    typename Block::template PerThread<Floats<kRows * kSlots>> sums;
    b.phase([&](uint32_t t, Shared& s) {
      FTH_UNROLL
      for (uint32_t i = 0; i < kRows * kSlots; ++i) sums[t].v[i] = 0.0f;
      if (t < kRows) s.row[t].start();
      for (uint32_t i = t; i < kRows * kMostHeadDim; i += kThreads) {
        const uint32_t r = i / kMostHeadDim, d = i % kMostHeadDim, row = smaller(first_row + r, last_row);
        s.query[r][d / 4].v[d % 4] =
            d < head_dim ? p.floats(kQ)[(static_cast<uint64_t>(row) * heads + head) * head_dim + d] * p.real : 0.0f;
      }
    });
    for (uint32_t tile = first_tile; tile < end_tile; ++tile) {
      load_keys(b, p, head, tile, lowest, highest);
      score(b, p, first_row, last_row, tile);
      b.phase([&](uint32_t t, const Shared& s) { add_values(p, s, t, head, tile, lowest, highest, sums[t]); });
    }
    if constexpr (kWholeRow) {
      finish(b, p, head, first_row, last_row, sums);
    } else {
      b.phase([&](uint32_t t, const Shared& s) {
        float* share = p.out(kShares) + static_cast<uint64_t>(b.x()) * share_floats(head_dim);
        share[t] = sums[t].v[0];
        if (head_dim > kThreads) share[kThreads + t] = sums[t].v[1];
        if (t != 0) return;
        share[share_floats(head_dim) - 2] = s.peak;
        share[share_floats(head_dim) - 1] = s.weights;
      });
    }
  }

 private:
  template <class Block>
  using Sums = typename Block::template PerThread<Floats<kRows * kSlots>>;

  static FTH_GPU float load_cell(const std::byte* cache, uint64_t i) {
    if constexpr (kCell == DType::q8_0) {
      const std::byte* block = cache + i / 32 * 34;
      return half_to_float(load<uint16_t>(block)) * static_cast<float>(static_cast<int8_t>(block[2 + i % 32]));
    } else if constexpr (kCell == DType::f16) {
      return half_to_float(load<uint16_t>(cache + 2 * i));
    } else {
      return load<float>(cache + 4 * i);
    }
  }

  // Positions outside of lowest .. highest may lie in cells that nothing has been written to: zeros stand for them.
  template <class Block>
  static FTH_GPU void load_keys(Block& b, const Params& p, uint32_t head, uint32_t tile, uint32_t lowest, uint32_t highest) {
    const uint32_t head_dim = p.number[kHeadDim], width = p.number[kKvHeads] * head_dim;
    const uint32_t column = head / (p.number[kHeads] / p.number[kKvHeads]) * head_dim, padded = (head_dim + 3) / 4 * 4;
    b.phase([&](uint32_t t, Shared& s) {
      if (t < kTile) s.cell[t] = (tile * kTile + t) % p.number[kCells];
      for (uint32_t i = t; i < kTile * padded; i += kThreads) {
        const uint32_t d = i % padded, position = tile * kTile + i / padded;
        const bool there = d < head_dim && position >= lowest && position <= highest;
        const uint64_t cell = position % p.number[kCells];
        // Rows 16 bytes longer than they need be: the threads that read one each then meet in no bank.
        const uint32_t at = i / padded * (padded + 4) + d;
        s.key[at / 4].v[at % 4] = there ? load_cell(p.tensor[kKCache], cell * width + column + d) : 0.0f;
      }
    });
  }

  // Every fourth group of four products: the four parts of a score are added in one order, by one thread or by four.
  static FTH_GPU float dot_part(const Shared& s, uint32_t row, uint32_t position, uint32_t groups_of_4, uint32_t part) {
    float sum = 0.0f;
    for (uint32_t g = part; g < groups_of_4; g += 4) {
      const Float4 k = s.key[position * (groups_of_4 + 1) + g], q = s.query[row][g];
      FTH_UNROLL
      for (uint32_t i = 0; i < 4; ++i) sum = multiply_add(k.v[i], q.v[i], sum);
    }
    return sum;
  }

  // A warp has a row, or all share the only one; a thread has a position.
  template <class Block>
  static FTH_GPU void score(Block& b, const Params& p, uint32_t first_row, uint32_t last_row, uint32_t tile) {
    const uint32_t groups_of_4 = (p.number[kHeadDim] + 3) / 4, window = p.number[kWindow];
    typename Block::template PerThread<Floats<kRowsOfWarp>> scores, peak, weights;
    if constexpr (kRows == 1)
      b.phase([&](uint32_t t, Shared& s) { s.part[t / kWarp][t % kWarp] = dot_part(s, 0, t % kWarp, groups_of_4, t / kWarp); });
    b.phase([&](uint32_t t, const Shared& s) {
      const uint32_t lane = t % kWarp, position = tile * kTile + lane;
      FTH_UNROLL
      for (uint32_t i = 0; i < kRowsOfWarp; ++i) {
        const uint32_t r = kRows == 1 ? 0 : t / kWarp + i * kWarps, row_position = p.pos + first_row + r;
        const bool seen = first_row + r <= last_row && position <= row_position && position >= first_seen(row_position, window);
        float part[4];
        FTH_UNROLL
        for (uint32_t j = 0; j < 4; ++j) part[j] = kRows == 1 ? s.part[j][lane] : dot_part(s, r, lane, groups_of_4, j);
        scores[t].v[i] = seen ? (part[0] + part[1]) + (part[2] + part[3]) : kNone;
        peak[t].v[i] = scores[t].v[i];
      }
    });
    b.warp_max(peak);
    b.step([&](uint32_t t) {
      FTH_UNROLL
      for (uint32_t i = 0; i < kRowsOfWarp; ++i) {
        scores[t].v[i] = scores[t].v[i] > kNone ? expf(scores[t].v[i] - peak[t].v[i]) : 0.0f;
        weights[t].v[i] = scores[t].v[i];
      }
    });
    b.warp_sum(weights);
    b.phase([&](uint32_t t, Shared& s) {
      const uint32_t lane = t % kWarp;
      FTH_UNROLL
      for (uint32_t i = 0; i < kRowsOfWarp; ++i) {
        const uint32_t r = kRows == 1 ? 0 : t / kWarp + i * kWarps;
        if (kRows == 1 && t >= kWarp) return;
        s.weight[r][lane] = scores[t].v[i];
        if (lane != 0) continue;
        s.row[r].merge(peak[t].v[i], weights[t].v[i]);
        s.peak = peak[t].v[i];  // of use with a single row alone
        s.weights = weights[t].v[i];
      }
    });
  }

  static FTH_GPU void add_values(const Params& p, const Shared& s, uint32_t t, uint32_t head, uint32_t tile, uint32_t lowest,
                                 uint32_t highest, Floats<kRows * kSlots>& sums) {
    const uint32_t head_dim = p.number[kHeadDim], width = p.number[kKvHeads] * head_dim, n_groups = groups(head_dim);
    const uint32_t column = head / (p.number[kHeads] / p.number[kKvHeads]) * head_dim;
    const uint32_t start = tile * kTile, from = lowest > start ? lowest - start : 0, end = smaller(kTile, highest - start + 1);
    FTH_UNROLL
    for (uint32_t slot = 0; slot < kSlots; ++slot) {
      const uint32_t d = head_dim > kThreads ? t + slot * kThreads : t % head_dim, group = head_dim > kThreads ? 0 : t / head_dim;
      if (d >= head_dim || group >= n_groups || (slot > 0 && head_dim <= kThreads)) continue;
      float share[kRows];
      FTH_UNROLL
      for (uint32_t r = 0; r < kRows; ++r) share[r] = 0.0f;
      // Groups take positions by their place in the tile, wherever the row's first one is.
      for (uint32_t i = (from + n_groups - 1 - group) / n_groups * n_groups + group; i < end; i += n_groups) {
        const float v = load_cell(p.tensor[kVCache], static_cast<uint64_t>(s.cell[i]) * width + column + d);
        FTH_UNROLL
        for (uint32_t r = 0; r < kRows; ++r) share[r] = multiply_add(s.weight[r][i], v, share[r]);
      }
      FTH_UNROLL
      for (uint32_t r = 0; r < kRows; ++r) {
        float& sum = sums.v[r * kSlots + slot];
        sum = kWholeRow ? multiply_add(sum, s.row[r].shrink, share[r] * s.row[r].gain) : share[r];
      }
    }
  }

  // y = the groups' sums, in order, over the sum of weights. `key` takes the sums.
  template <class Block>
  static FTH_GPU void finish(Block& b, const Params& p, uint32_t head, uint32_t first_row, uint32_t last_row, Sums<Block>& sums) {
    const uint32_t head_dim = p.number[kHeadDim], n_groups = groups(head_dim);
    static_assert(kRows * kThreads * kSlots <= kTile * kStride);
    b.phase([&](uint32_t t, Shared& s) {
      FTH_UNROLL
      for (uint32_t i = 0; i < kRows * kSlots; ++i) {
        const uint32_t at = (i / kSlots * kSlots + i % kSlots) * kThreads + t;
        s.key[at / 4].v[at % 4] = sums[t].v[i];
      }
    });
    b.phase([&](uint32_t t, const Shared& s) {
      for (uint32_t i = t; i < (last_row - first_row + 1) * head_dim; i += kThreads) {
        const uint32_t r = i / head_dim, d = i % head_dim;
        float sum = 0.0f;
        for (uint32_t g = 0; g < n_groups; ++g) {
          const uint32_t at = r * kSlots * kThreads + g * head_dim + d;  // with two slots the second's threads follow the first's
          sum += s.key[at / 4].v[at % 4];
        }
        p.out(kY)[(static_cast<uint64_t>(first_row + r) * p.number[kHeads] + head) * head_dim + d] = sum / s.row[r].total;
      }
    });
  }
};

// The shares of a single row's tiles, merged in order: what Attention does with whole rows. A block for a head.
struct AttentionMerge : AttentionParams {
  struct Shared {
    float sums[kSlots * kThreads];
    float total;
  };

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t heads = p.number[kHeads], head_dim = p.number[kHeadDim], head = b.x(), floats = share_floats(head_dim);
    const uint32_t n_tiles = p.pos / kTile - first_seen(p.pos, p.number[kWindow]) / kTile + 1;
    b.phase([&](uint32_t t, Shared& s) {
      Running row;
      row.start();
      float sums[kSlots] = {0.0f, 0.0f};
      for (uint32_t tile = 0; tile < n_tiles; ++tile) {
        const float* share = p.floats(kShares) + (static_cast<uint64_t>(tile) * heads + head) * floats;
        row.merge(share[floats - 2], share[floats - 1]);
        sums[0] = multiply_add(sums[0], row.shrink, share[t] * row.gain);
        if (head_dim > kThreads) sums[1] = multiply_add(sums[1], row.shrink, share[kThreads + t] * row.gain);
      }
      s.sums[t] = sums[0];
      s.sums[kThreads + t] = sums[1];
      if (t == 0) s.total = row.total;
    });
    const uint32_t n_groups = groups(head_dim);
    b.phase([&](uint32_t t, const Shared& s) {
      for (uint32_t d = t; d < head_dim; d += kThreads) {
        float sum = 0.0f;
        for (uint32_t g = 0; g < n_groups; ++g) sum += s.sums[g * head_dim + d];
        p.out(kY)[static_cast<uint64_t>(head) * head_dim + d] = sum / s.total;
      }
    });
  }
};

}  // namespace fth::cuda
