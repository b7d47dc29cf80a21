// Between row-major and interleaved, a block of a row at a time. Bytes are taken apart and put together in 64-bit words, eight codes each.
#include "core/model/interleaved.h"

#include <bit>
#include <cstring>
#include <string>

namespace fth {
namespace {

static_assert(std::endian::native == std::endian::little, "the first of eight codes is the lowest byte of a word");

constexpr int64_t kRows = kInterleavedRows;
constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0fu, kPairs = 0x0303030303030303u;

template <class T>
T load(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
void store(std::byte* p, T v) {
  std::memcpy(p, &v, sizeof v);
}
void copy(std::byte* dst, const std::byte* src, size_t n) { std::memcpy(dst, src, n); }

// Row r of a block's nibbles[4][16][4], or codes[8][16][4]: word i.
int64_t word(int64_t i, int64_t r) { return (i * kRows + r) * 4; }

template <int64_t kHead>  // bytes before the nibbles: a scale, and a minimum
struct Q4 {
  static constexpr int64_t kColumns = 32, kBytes = kHead + 16, kNibblesAt = kRows * kHead;
  static void to(const std::byte* block, std::byte* panel, int64_t r) {
    for (int64_t i = 0; i < kHead; i += 2) copy(panel + i * kRows + r * 2, block + i, 2);
    for (int64_t i = 0; i < 4; ++i) copy(panel + kNibblesAt + word(i, r), block + kHead + 4 * i, 4);
  }
  static void from(std::byte* block, const std::byte* panel, int64_t r) {
    for (int64_t i = 0; i < kHead; i += 2) copy(block + i, panel + i * kRows + r * 2, 2);
    for (int64_t i = 0; i < 4; ++i) copy(block + kHead + 4 * i, panel + kNibblesAt + word(i, r), 4);
  }
};

struct Q8 {
  static constexpr int64_t kColumns = 32, kBytes = 34, kCodesAt = kRows * 2;
  static void to(const std::byte* block, std::byte* panel, int64_t r) {
    copy(panel + r * 2, block, 2);
    for (int64_t i = 0; i < 8; ++i) copy(panel + kCodesAt + word(i, r), block + 2 + 4 * i, 4);
  }
  static void from(std::byte* block, const std::byte* panel, int64_t r) {
    copy(block, panel + r * 2, 2);
    for (int64_t i = 0; i < 8; ++i) copy(block + 2 + 4 * i, panel + kCodesAt + word(i, r), 4);
  }
};

// The file's block: 128 bytes of lower bits, group g's 32 codes at 64 (g / 4) + 32 (g % 2), in high nibbles if g % 4 >= 2; 64 bytes of upper ones, at
// 128 + 32 (g / 4), bits 2 (g % 4); 16 scales; d.
struct Q6 {
  static constexpr int64_t kColumns = 256, kBytes = 210, kScalesAt = kRows * 2, kNibblesAt = kScalesAt + kRows * 16,
                           kPairsAt = kNibblesAt + kRows * 128;
  static int64_t low_at(int64_t g) { return g / 4 * 64 + g % 2 * 32; }
  static int64_t high_at(int64_t g) { return 128 + g / 4 * 32; }
  static int low_shift(int64_t g) { return g % 4 >= 2 ? 4 : 0; }
  static int high_shift(int64_t g) { return static_cast<int>(g % 4) * 2; }

  static void to(const std::byte* block, std::byte* panel, int64_t r) {
    copy(panel + r * 2, block + 208, 2);
    for (int64_t s = 0; s < 16; ++s) panel[kScalesAt + s * kRows + r] = block[192 + s];
    for (int64_t g = 0; g < 8; ++g) {
      const std::byte *low = block + low_at(g), *high = block + high_at(g);
      std::byte *nibbles = panel + kNibblesAt + g * kRows * 16, *pairs = panel + kPairsAt + g * kRows * 8;
      for (int64_t i = 0; i < 4; i += 2) {
        const uint64_t first = (load<uint64_t>(low + 4 * i) >> low_shift(g)) & kNibbles;
        const uint64_t second = (load<uint64_t>(low + 16 + 4 * i) >> low_shift(g)) & kNibbles;
        const uint64_t both = first | second << 4;
        store(nibbles + word(i, r), static_cast<uint32_t>(both));
        store(nibbles + word(i + 1, r), static_cast<uint32_t>(both >> 32));
      }
      for (int64_t h = 0; h < 2; ++h) {
        const uint64_t a = (load<uint64_t>(high + 16 * h) >> high_shift(g)) & kPairs;
        const uint64_t b = (load<uint64_t>(high + 16 * h + 8) >> high_shift(g)) & kPairs;
        const uint64_t x = a | b << 4;  // words 0 and 2, then 1 and 3
        store(pairs + word(h, r), static_cast<uint32_t>(x | x >> 32 << 2));
      }
    }
  }
  static void from(std::byte* block, const std::byte* panel, int64_t r) {
    std::memset(block, 0, 192);
    copy(block + 208, panel + r * 2, 2);
    for (int64_t s = 0; s < 16; ++s) block[192 + s] = panel[kScalesAt + s * kRows + r];
    const auto add = [](std::byte* at, uint64_t bits) { store(at, load<uint64_t>(at) | bits); };
    for (int64_t g = 0; g < 8; ++g) {
      std::byte *low = block + low_at(g), *high = block + high_at(g);
      const std::byte *nibbles = panel + kNibblesAt + g * kRows * 16, *pairs = panel + kPairsAt + g * kRows * 8;
      for (int64_t i = 0; i < 4; i += 2) {
        const uint64_t both = load<uint32_t>(nibbles + word(i, r)) | static_cast<uint64_t>(load<uint32_t>(nibbles + word(i + 1, r))) << 32;
        add(low + 4 * i, (both & kNibbles) << low_shift(g));
        add(low + 16 + 4 * i, (both >> 4 & kNibbles) << low_shift(g));
      }
      for (int64_t h = 0; h < 2; ++h) {
        const uint64_t x = load<uint32_t>(pairs + word(h, r)), all = x | x >> 2 << 32;
        add(high + 16 * h, (all & kPairs) << high_shift(g));
        add(high + 16 * h + 8, (all >> 4 & kPairs) << high_shift(g));
      }
    }
  }
};

// Panels are written in runs where they are made, read in runs where they are taken apart.
template <class Q, class From, class To, class Move>
void for_blocks(int64_t rows, int64_t cols, From* rows_at, To* panels, const Move& move) {
  const int64_t blocks = cols / Q::kColumns, row = blocks * Q::kBytes;
  for (int64_t p = 0; p < rows / kRows; ++p, rows_at += kRows * row, panels += kRows * row)
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t r = 0; r < kRows; ++r) move(rows_at + r * row + b * Q::kBytes, panels + b * kRows * Q::kBytes, r);
}

}  // namespace

Result<> check_interleaved(DType type, int64_t rows, int64_t cols) {
  if (type != DType::q4_0 && type != DType::q4_1 && type != DType::q8_0 && type != DType::q6_k)
    return fail(Code::unimplemented, "interleaved rows: " + std::string(name(type)) + " has no such order, q4_0, q4_1, q8_0 and q6_k have");
  const int64_t block = traits(type).block;
  if (rows < kRows || rows % kRows != 0 || cols < block || cols % block != 0)
    return fail(Code::invalid_argument, "interleaved rows: a matrix of " + std::to_string(rows) + " rows by " + std::to_string(cols) +
                                            " columns, need positive multiples of 16 and of " + std::to_string(block));
  return {};
}

Result<> to_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst) {
  FTH_RETURN_IF_ERROR(check_interleaved(type, rows, cols));
  if (type == DType::q4_0)
    for_blocks<Q4<2>>(rows, cols, src, dst, Q4<2>::to);
  else if (type == DType::q4_1)
    for_blocks<Q4<4>>(rows, cols, src, dst, Q4<4>::to);
  else if (type == DType::q8_0)
    for_blocks<Q8>(rows, cols, src, dst, Q8::to);
  else
    for_blocks<Q6>(rows, cols, src, dst, Q6::to);
  return {};
}

Result<> from_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst) {
  FTH_RETURN_IF_ERROR(check_interleaved(type, rows, cols));
  if (type == DType::q4_0)
    for_blocks<Q4<2>>(rows, cols, dst, src, Q4<2>::from);
  else if (type == DType::q4_1)
    for_blocks<Q4<4>>(rows, cols, dst, src, Q4<4>::from);
  else if (type == DType::q8_0)
    for_blocks<Q8>(rows, cols, dst, src, Q8::from);
  else
    for_blocks<Q6>(rows, cols, dst, src, Q6::from);
  return {};
}

}  // namespace fth
