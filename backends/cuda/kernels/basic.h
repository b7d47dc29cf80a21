#pragma once
// The ops that touch each value once: EMBED, RMS_NORM, ROPE, ADD, GLU, COMBINE, and the store of k and v.

#include "backends/cuda/kernels/units.h"

namespace fth::cuda {

struct RmsNorm {
  enum Tensor : uint32_t { kX, kWeight, kY };
  enum Number : uint32_t { kWidth };
  static constexpr uint32_t kThreads = 256;
  struct Shared {
    float sums[kThreads / kWarp];
  };

  // A block for a row.
  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t width = p.number[kWidth];
    const uint64_t row = static_cast<uint64_t>(b.y()) * width;
    typename Block::template PerThread<Floats<1>> sum;
    b.step([&](uint32_t t) {
      const float* x = p.floats(kX) + row;
      float s = 0.0f;
      for (uint32_t i = t; i < width; i += kThreads) s = multiply_add(x[i], x[i], s);
      sum[t].v[0] = s;
    });
    b.warp_sum(sum);
    b.phase([&](uint32_t t, Shared& s) {
      if (t % kWarp == 0) s.sums[t / kWarp] = sum[t].v[0];
    });
    b.phase([&](uint32_t t, const Shared& s) {
      float total = 0.0f;
      FTH_UNROLL
      for (uint32_t w = 0; w < kThreads / kWarp; ++w) total += s.sums[w];
      const float r = 1.0f / sqrtf(total / static_cast<float>(width) + p.real);
      const float *x = p.floats(kX) + row, *weight = p.floats(kWeight);
      float* y = p.out(kY) + row;
      for (uint32_t i = t; i < width; i += kThreads) y[i] = x[i] * r * weight[i];
    });
  }
};

// Kernels of a thread per item: the block's items, and the thread's own.
struct PerItem {
  static constexpr uint32_t kThreads = 128;
  using Shared = NoShared;
  // f(item) for each of `items` of the row b.y().
  template <class Block, class F>
  static FTH_GPU void for_items(Block& b, uint32_t items, F&& f) {
    b.step([&](uint32_t t) {
      const uint32_t item = b.x() * kThreads + t;
      if (item < items) f(item);
    });
  }
};

// y[n] = row ids[n] of the table, a thread per unit of 32 values, or per value where rows are no whole units. An id outside of the table writes nothing
// and leaves 1 + its row in the status.
struct Embed : PerItem {
  enum Tensor : uint32_t { kIds, kTable, kY, kStatus };
  enum Number : uint32_t { kWidth, kVocabulary, kRowBytes, kType };

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t width = p.number[kWidth], token = b.y();
    const bool by_value = width % kUnit != 0;
    const auto type = static_cast<DType>(p.number[kType]);
    for_items(b, by_value ? width : width / kUnit, [&](uint32_t i) {
      const uint32_t id = load<uint32_t>(p.tensor[kIds] + 4ull * token);
      if (id >= p.number[kVocabulary]) {
        raise_to(reinterpret_cast<uint32_t*>(p.tensor[kStatus]), token + 1);
        return;
      }
      const std::byte* row = p.tensor[kTable] + static_cast<uint64_t>(id) * p.number[kRowBytes];
      float* y = p.out(kY) + static_cast<uint64_t>(token) * width;
      if (by_value) {
        y[i] = load_value(type, row, i);
        return;
      }
      with_unit(type, row, i, [&](const auto& unit) {
        FTH_UNROLL
        for (uint32_t j = 0; j < kParts; ++j) {
          const Float4 part = unit.part(j);
          FTH_UNROLL
          for (uint32_t v = 0; v < 4; ++v) y[kUnit * i + 4 * j + v] = value_of(unit, j / (kParts / 2), part.v[v]);
        }
      });
    });
  }

 private:
  template <class U>
  static FTH_GPU float value_of(const U& unit, uint32_t half, float raw) {
    if constexpr (!U::kScaled) {
      (void)unit, (void)half;
      return raw;
    } else if constexpr (U::kHasLeast) {
      return unit.scale(half) * raw + unit.least();
    } else {
      return unit.scale(half) * raw;
    }
  }
};

// Item j of a head turns pair j, or copies a value that is not rotated. Angles are phases in units of 2^-32 turn: position times a 64-bit fixed-point
// frequency, which is exact at any position, where a product of floats is off by whole turns.
struct Rope : PerItem {
  enum Tensor : uint32_t { kX, kY, kFrequencies };
  enum Number : uint32_t { kFirst, kHeads, kHeadDim, kHalf, kAdjacent };

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t head_dim = p.number[kHeadDim], half = p.number[kHalf], per_head = head_dim - half, token = b.y();
    const bool adjacent = p.number[kAdjacent] != 0;
    for_items(b, p.number[kHeads] * per_head, [&](uint32_t i) {
      const uint32_t j = i % per_head;
      const uint64_t head = (static_cast<uint64_t>(token) * p.number[kHeads] + i / per_head) * head_dim;
      const float* x = p.floats(kX) + head;
      float* y = p.out(kY) + head;
      if (j >= half) {
        y[half + j] = x[half + j];
        return;
      }
      const auto frequency = load<uint64_t>(p.tensor[kFrequencies] + 8ull * (p.number[kFirst] + j));
      const auto phase = static_cast<uint32_t>((frequency * (p.pos + token)) >> 32);
      const uint32_t quadrant = (phase + 0x20000000u) >> 30;
      const float turn =
          static_cast<float>(static_cast<int32_t>(phase - (quadrant << 30))) * 1.4629180792671596e-9f;  // 2 pi / 2^32; within pi / 4 of 0
      float s = sinf(turn), c = cosf(turn);
      if ((quadrant & 1u) != 0) {
        const float old = s;
        s = c;
        c = -old;
      }
      if ((quadrant & 2u) != 0) {
        s = -s;
        c = -c;
      }
      const uint32_t one = adjacent ? 2 * j : j, two = one + (adjacent ? 1 : half);
      const float first = x[one], second = x[two];
      y[one] = first * c - second * s;
      y[two] = first * s + second * c;
    });
  }
};

struct Pairwise : PerItem {
  enum Tensor : uint32_t { kA, kB, kY };
  enum Number : uint32_t { kWidth };
  template <class Block, class F>
  static FTH_GPU void for_pairs(Block& b, const Params& p, F&& f) {
    for_items(b, p.number[kWidth], [&](uint32_t i) {
      const uint64_t at = static_cast<uint64_t>(b.y()) * p.number[kWidth] + i;
      p.out(kY)[at] = f(p.floats(kA)[at], p.floats(kB)[at]);
    });
  }
};
struct Add : Pairwise {
  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    for_pairs(b, p, [](float x, float y) { return x + y; });
  }
};
struct ReluGlu : Pairwise {
  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    for_pairs(b, p, [](float gate, float up) { return fmaxf(gate, 0.0f) * up; });
  }
};
struct SiluGlu : Pairwise {
  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    for_pairs(b, p, [](float gate, float up) { return gate / (1.0f + expf(-gate)) * up; });
  }
};

// out[n] = x[n] + sum over ranks, in order, of weights[n, rank] * y[n * K + rank]. x and out may be one buffer.
struct Combine : PerItem {
  enum Tensor : uint32_t { kX, kY, kWeights, kOut };
  enum Number : uint32_t { kWidth, kTopK };

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t width = p.number[kWidth], top_k = p.number[kTopK], token = b.y();
    for_items(b, width, [&](uint32_t e) {
      const uint64_t at = static_cast<uint64_t>(token) * width + e;
      float sum = p.floats(kX)[at];
      for (uint64_t rank = static_cast<uint64_t>(token) * top_k; rank < static_cast<uint64_t>(token + 1) * top_k; ++rank)
        sum += p.floats(kWeights)[rank] * p.floats(kY)[rank * width + e];
      p.out(kOut)[at] = sum;
    });
  }
};

// Rows of k and v to their cells, a thread per block of the cells' type. Items of a row: the blocks of k, then those of v.
template <DType kCell>
struct KvStore : PerItem {
  enum Tensor : uint32_t { kK, kV, kKCache, kVCache };
  enum Number : uint32_t { kWidth, kCells };
  static constexpr uint32_t kBlock = kCell == DType::q8_0 ? 32 : 1;

  template <class Block>
  static FTH_GPU void run(Block& b, const Params& p) {
    const uint32_t width = p.number[kWidth], n_blocks = width / kBlock, token = b.y();
    for_items(b, 2 * n_blocks, [&](uint32_t i) {
      const bool is_v = i >= n_blocks;
      const uint32_t block = is_v ? i - n_blocks : i;
      const float* src = (is_v ? p.floats(kV) : p.floats(kK)) + static_cast<uint64_t>(token) * width + kBlock * block;
      std::byte* cache = is_v ? p.tensor[kVCache] : p.tensor[kKCache];
      const uint64_t at = static_cast<uint64_t>((p.pos + token) % p.number[kCells]) * n_blocks + block;
      if constexpr (kCell == DType::q8_0) {
        store_q8(src, cache + 34 * at);
      } else if constexpr (kCell == DType::f16) {
        reinterpret_cast<uint16_t*>(cache)[at] = float_to_half(*src);
      } else {
        reinterpret_cast<float*>(cache)[at] = *src;
      }
    });
  }

 private:
  // As the cpu backend rounds: the largest magnitude is found on the bit patterns, where a NaN is the largest of all and reaches the scale; where that is
  // zero or not finite all codes are 0.
  static FTH_GPU void store_q8(const float* x, std::byte* block) {
    uint32_t top = 0;
    for (uint32_t i = 0; i < 32; ++i) top = larger(top, bits_of(x[i]) & 0x7fffffffu);
    const float d = float_of(top) / 127.0f;
    const bool usable = d > 0.0f && d <= 3.402823466e38f;
    *reinterpret_cast<uint16_t*>(block) = float_to_half(d);
    for (uint32_t i = 0; i < 32; ++i) {
      const float code = usable ? fminf(fmaxf(rintf(x[i] / d), -127.0f), 127.0f) : 0.0f;
      block[2 + i] = static_cast<std::byte>(static_cast<int8_t>(code));
    }
  }
};

}  // namespace fth::cuda
