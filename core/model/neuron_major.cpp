// Between row-major and neuron-major, a tile of 32 outputs by 32 neurons at a time: bytes are transposed eight by eight in 64-bit words, nibbles
// as bytes that hold two outputs.
#include "core/model/neuron_major.h"

#include <array>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

namespace fth {
namespace {

static_assert(std::endian::native == std::endian::little, "bytes are moved inside 64-bit words from the lowest up");

constexpr int64_t kTile = 32;
constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0fu;

uint64_t load(const std::byte* p) {
  uint64_t v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
void store(std::byte* p, uint64_t v) { std::memcpy(p, &v, sizeof v); }

using Bytes8x8 = std::array<uint64_t, 8>;

// Swaps the upper part of each unit of a with the lower part of the same unit of b.
void swap_halves(uint64_t& a, uint64_t& b, int bits, uint64_t lower) {
  const uint64_t t = ((a >> bits) ^ b) & lower;
  b ^= t;
  a ^= t << bits;
}

// Byte c of word r becomes byte r of word c.
void transpose(Bytes8x8& x) {
  for (size_t i = 0; i < 4; ++i) swap_halves(x[i], x[i + 4], 32, 0x00000000ffffffffu);
  for (const size_t i : {0u, 1u, 4u, 5u}) swap_halves(x[i], x[i + 2], 16, 0x0000ffff0000ffffu);
  for (const size_t i : {0u, 2u, 4u, 6u}) swap_halves(x[i], x[i + 1], 8, 0x00ff00ff00ff00ffu);
}

// The codes of a tile in one of the orders: a run of bytes for each of its 32 outputs, or for each of its 32 neurons.
template <class Byte>
struct Runs {
  Byte* first;
  int64_t step;
  Byte* at(int64_t i) const { return first + i * step; }
};

// Bytes c .. c + 7 of runs r .. r + 7.
Bytes8x8 load_runs(const Runs<const std::byte>& runs, int64_t r, int64_t c) {
  Bytes8x8 x;
  for (size_t i = 0; i < 8; ++i) x[i] = load(runs.at(r + static_cast<int64_t>(i)) + c);
  return x;
}
void store_runs(const Runs<std::byte>& runs, int64_t r, int64_t c, const Bytes8x8& x) {
  for (size_t i = 0; i < 8; ++i) store(runs.at(r + static_cast<int64_t>(i)) + c, x[i]);
}

void move_q8(const Runs<const std::byte>& src, const Runs<std::byte>& dst) {
  for (int64_t r = 0; r < kTile; r += 8)
    for (int64_t c = 0; c < kTile; c += 8) {
      Bytes8x8 x = load_runs(src, r, c);
      transpose(x);
      store_runs(dst, c, r, x);
    }
}

// The 16 bytes of a q4_0 run hold columns i (low) and 16 + i (high), whichever way round the matrix lies: gathering runs r and 16 + r into words of
// low and words of high columns serves both directions.
void move_q4(const Runs<const std::byte>& src, const Runs<std::byte>& dst) {
  for (int64_t r = 0; r < 16; r += 8)
    for (int64_t c = 0; c < 16; c += 8) {
      const Bytes8x8 first = load_runs(src, r, c), second = load_runs(src, r + 16, c);
      Bytes8x8 low, high;
      for (size_t i = 0; i < 8; ++i) {
        low[i] = (first[i] & kLow) | (second[i] & kLow) << 4;
        high[i] = ((first[i] >> 4) & kLow) | (second[i] & ~kLow);
      }
      transpose(low);
      transpose(high);
      store_runs(dst, c, r, low);
      store_runs(dst, c + 16, r, high);
    }
}

// Calls tile(e, g, where the group's scales start, where its neurons start, bytes of a neuron) for every tile; the row-major side is read or written
// in runs of whole rows.
template <class Tile>
void for_tiles(DType type, int64_t rows_e, int64_t cols_f, const Tile& tile) {
  const int64_t block = traits(type).block_bytes, neuron = rows_e * (block - 2) / kTile;
  for (int64_t e = 0; e < rows_e; e += kTile)
    for (int64_t g = 0; g < cols_f / kTile; ++g) {
      const int64_t group = g * rows_e * block;
      tile(e, g, group + e * 2, group + rows_e * 2 + e / kTile * (block - 2), neuron);
    }
}

}  // namespace

Result<> check_neuron_major(DType type, int64_t rows_e, int64_t cols_f) {
  if (type != DType::q4_0 && type != DType::q8_0)
    return fail(Code::unimplemented, "neuron-major: " + std::string(name(type)) + " has no such order, q4_0 and q8_0 have");
  if (rows_e < kTile || cols_f < kTile || rows_e % kTile != 0 || cols_f % kTile != 0)
    return fail(Code::invalid_argument, "neuron-major: a matrix of " + std::to_string(rows_e) + " outputs by " + std::to_string(cols_f) +
                                            " neurons, need positive multiples of 32");
  return {};
}

Result<> to_neuron_major(DType type, int64_t rows_e, int64_t cols_f, const std::byte* src, std::byte* dst) {
  FTH_RETURN_IF_ERROR(check_neuron_major(type, rows_e, cols_f));
  const int64_t block = traits(type).block_bytes, row = cols_f / kTile * block;
  for_tiles(type, rows_e, cols_f, [&](int64_t e, int64_t g, int64_t scales, int64_t neurons, int64_t neuron_step) {
    const std::byte* const blocks = src + e * row + g * block;
    for (int64_t r = 0; r < kTile; ++r) std::memcpy(dst + scales + r * 2, blocks + r * row, 2);
    (type == DType::q4_0 ? move_q4 : move_q8)({blocks + 2, row}, {dst + neurons, neuron_step});
  });
  return {};
}

Result<> from_neuron_major(DType type, int64_t rows_e, int64_t cols_f, const std::byte* src, std::byte* dst) {
  FTH_RETURN_IF_ERROR(check_neuron_major(type, rows_e, cols_f));
  const int64_t block = traits(type).block_bytes, row = cols_f / kTile * block;
  for_tiles(type, rows_e, cols_f, [&](int64_t e, int64_t g, int64_t scales, int64_t neurons, int64_t neuron_step) {
    std::byte* const blocks = dst + e * row + g * block;
    for (int64_t r = 0; r < kTile; ++r) std::memcpy(blocks + r * row, src + scales + r * 2, 2);
    (type == DType::q4_0 ? move_q4 : move_q8)({src + neurons, neuron_step}, {blocks + 2, row});
  });
  return {};
}

}  // namespace fth
