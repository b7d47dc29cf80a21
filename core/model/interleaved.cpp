// Between row-major and interleaved: words of four bytes are moved, and f16 scales.
#include "core/model/interleaved.h"

#include <cstring>
#include <string>
#include <type_traits>

namespace fth {
namespace {

constexpr int64_t kScale = 2, kWord = 4, kWords = 4;  // bytes; words of a block's codes

// Calls move(bytes, place in the row-major panel, place in the interleaved one) for everything in a panel.
template <class Move>
void for_panel(int64_t cols, int64_t block, const Move& move) {
  const int64_t groups = cols / 32, row = groups * block, head = block - kWords * kWord;  // bytes of a block before its codes
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t scales = g * kInterleavedRows * block, words = scales + kInterleavedRows * head;
    for (int64_t r = 0; r < kInterleavedRows; ++r) {
      const int64_t at = r * row + g * block;
      for (int64_t i = 0; i < head / kScale; ++i)
        move(std::integral_constant<size_t, kScale>{}, at + i * kScale, scales + (i * kInterleavedRows + r) * kScale);
      for (int64_t i = 0; i < kWords; ++i)
        move(std::integral_constant<size_t, kWord>{}, at + head + i * kWord, words + (i * kInterleavedRows + r) * kWord);
    }
  }
}

}  // namespace

Result<> check_interleaved(DType type, int64_t rows, int64_t cols) {
  if (type != DType::q4_0 && type != DType::q4_1)
    return fail(Code::unimplemented, "interleaved rows: " + std::string(name(type)) + " has no such order, q4_0 and q4_1 have");
  if (rows < kInterleavedRows || rows % kInterleavedRows != 0 || cols < 32 || cols % 32 != 0)
    return fail(Code::invalid_argument, "interleaved rows: a matrix of " + std::to_string(rows) + " rows by " + std::to_string(cols) +
                                            " columns, need positive multiples of 16 and of 32");
  return {};
}

Result<> to_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst) {
  FTH_RETURN_IF_ERROR(check_interleaved(type, rows, cols));
  const int64_t panel = kInterleavedRows * static_cast<int64_t>(row_bytes(type, cols));
  for (int64_t p = 0; p < rows / kInterleavedRows; ++p, src += panel, dst += panel)
    for_panel(cols, traits(type).block_bytes, [&](auto n, int64_t from, int64_t to) { std::memcpy(dst + to, src + from, n()); });
  return {};
}

Result<> from_interleaved(DType type, int64_t rows, int64_t cols, const std::byte* src, std::byte* dst) {
  FTH_RETURN_IF_ERROR(check_interleaved(type, rows, cols));
  const int64_t panel = kInterleavedRows * static_cast<int64_t>(row_bytes(type, cols));
  for (int64_t p = 0; p < rows / kInterleavedRows; ++p, src += panel, dst += panel)
    for_panel(cols, traits(type).block_bytes, [&](auto n, int64_t to, int64_t from) { std::memcpy(dst + to, src + from, n()); });
  return {};
}

}  // namespace fth
