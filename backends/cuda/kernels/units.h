#pragma once
// Weights of every dtype, read in place. A unit is 32 values of a row, in 8 parts of 4: value = scale(half) * part(j) + least().
// A tensor starts at a multiple of 16 bytes, so its rows at one of 2, and of 16 where their blocks are multiples of that; nothing outside of it is read.

#include "backends/cuda/kernels/block.h"

namespace fth::cuda {

inline constexpr uint32_t kUnit = 32, kParts = 8;

FTH_GPU float load_half(const std::byte* p) { return half_to_float(load<uint16_t>(p)); }

// kCount words from an address that is a multiple of 2 on, by aligned loads: neighbouring threads read neighbouring blocks of 18 or 34 bytes, every other
// one of which lies across words.
template <uint32_t kCount>
FTH_GPU void load_words(const std::byte* p, uint32_t (&words)[kCount]) {
  const uint32_t odd = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) & 2u;
  const std::byte* base = p - odd;
  uint32_t raw[kCount + 1];
  FTH_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) raw[i] = load<uint32_t>(base + 4 * i);
  raw[kCount] = odd != 0 ? load<uint16_t>(p + 4 * kCount - 2) : 0u;
  FTH_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) words[i] = shifted_pair(raw[i], raw[i + 1], 8 * odd);
}

FTH_GPU Float4 bytes_less(uint32_t word, float offset) {
  Float4 r;
  FTH_UNROLL
  for (uint32_t i = 0; i < 4; ++i) r.v[i] = magic_of_byte(word, i) - (kMagic + offset);
  return r;
}

template <DType kType>
struct Unit;

template <>
struct Unit<DType::f32> {
  static constexpr bool kScaled = false;
  Words4 words[8];
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    FTH_UNROLL
    for (uint32_t i = 0; i < 8; ++i) words[i] = load<Words4>(row + 128ull * u + 16 * i);
  }
  FTH_GPU Float4 part(uint32_t j) const {
    Float4 r;
    FTH_UNROLL
    for (uint32_t i = 0; i < 4; ++i) r.v[i] = float_of(words[j].v[i]);
    return r;
  }
};

// Units of 16-bit floats: four loads of eight values.
struct HalvesUnit {
  static constexpr bool kScaled = false;
  Words4 words[4];
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    FTH_UNROLL
    for (uint32_t i = 0; i < 4; ++i) words[i] = load<Words4>(row + 64ull * u + 16 * i);
  }
  FTH_GPU uint16_t half(uint32_t j, uint32_t i) const {
    return static_cast<uint16_t>(words[j / 2].v[2 * (j % 2) + i / 2] >> (16 * (i % 2)));
  }
};
template <>
struct Unit<DType::f16> : HalvesUnit {
  FTH_GPU Float4 part(uint32_t j) const {
    Float4 r;
    FTH_UNROLL
    for (uint32_t i = 0; i < 4; ++i) r.v[i] = half_to_float(half(j, i));
    return r;
  }
};
template <>
struct Unit<DType::bf16> : HalvesUnit {
  FTH_GPU Float4 part(uint32_t j) const {
    Float4 r;
    FTH_UNROLL
    for (uint32_t i = 0; i < 4; ++i) r.v[i] = bfloat_to_float(half(j, i));
    return r;
  }
};

template <>
struct Unit<DType::q8_0> {
  static constexpr bool kScaled = true, kHasLeast = false;
  uint32_t words[8];
  float d;
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    const std::byte* p = row + 34ull * u;
    d = load_half(p);
    load_words(p + 2, words);
  }
  FTH_GPU Float4 part(uint32_t j) const { return bytes_less(words[j] ^ 0x80808080u, 128.0f); }
  FTH_GPU float scale(uint32_t) const { return d; }
};

// The nibbles of 16 bytes: low ones first.
FTH_GPU uint32_t nibbles(const uint32_t (&words)[4], uint32_t j) { return (words[j % 4] >> (j < 4 ? 0u : 4u)) & 0x0f0f0f0fu; }

template <>
struct Unit<DType::q4_0> {
  static constexpr bool kScaled = true, kHasLeast = false;
  uint32_t words[4];
  float d;
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    const std::byte* p = row + 18ull * u;
    d = load_half(p);
    load_words(p + 2, words);
  }
  FTH_GPU Float4 part(uint32_t j) const { return bytes_less(nibbles(words, j), 8.0f); }
  FTH_GPU float scale(uint32_t) const { return d; }
};

template <>
struct Unit<DType::q4_1> {
  static constexpr bool kScaled = true, kHasLeast = true;
  uint32_t words[4];
  float d, m;
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    const std::byte* p = row + 20ull * u;
    d = load_half(p);
    m = load_half(p + 2);
    load_words(p + 4, words);
  }
  FTH_GPU Float4 part(uint32_t j) const { return bytes_less(nibbles(words, j), 0.0f); }
  FTH_GPU float scale(uint32_t) const { return d; }
  FTH_GPU float least() const { return m; }
};

// Eight units of a block of 256, four in each half: low nibbles of 64 bytes, pairs of bits of 32, a scale for 16 values.
template <>
struct Unit<DType::q6_k> {
  static constexpr bool kScaled = true, kHasLeast = false;
  uint32_t low[8], high[8];
  uint32_t nibble_shift, pair_shift;
  float scales[2];
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    const std::byte* p = row + 210ull * (u / 8);
    const uint32_t h = (u / 4) % 2, t = u % 4;
    load_words(p + 64 * h + 32 * (t % 2), low);
    load_words(p + 128 + 32 * h, high);
    nibble_shift = t < 2 ? 0u : 4u;
    pair_shift = 2 * t;
    const float d = load_half(p + 208);
    const uint16_t pair = load<uint16_t>(p + 192 + 8 * h + 2 * t);
    scales[0] = d * static_cast<float>(static_cast<int8_t>(pair & 255u));
    scales[1] = d * static_cast<float>(static_cast<int8_t>(pair >> 8));
  }
  FTH_GPU Float4 part(uint32_t j) const {
    return bytes_less(((low[j] >> nibble_shift) & 0x0f0f0f0fu) | (((high[j] >> pair_shift) & 0x03030303u) << 4), 32.0f);
  }
  FTH_GPU float scale(uint32_t half) const { return scales[half]; }
};

// Eight units of a block of 256; each pair of units shares 32 bytes, the even one in the low nibbles.
template <>
struct Unit<DType::q4_k> {
  static constexpr bool kScaled = true, kHasLeast = true;
  Words4 words[2];
  uint32_t shift;
  float d, m;
  FTH_GPU void read(const std::byte* row, uint32_t u) {
    const std::byte* p = row + 144ull * (u / 8);
    const uint32_t g = u % 8;
    const auto byte = [p](uint32_t i) { return static_cast<uint32_t>(p[4 + i]); };
    uint32_t s = byte(g % 4), least_s = byte(4 + g % 4);
    if (g < 4) {
      s &= 63u;
      least_s &= 63u;
    } else {
      const uint32_t nibbles_of_both = byte(4 + g);
      s = (nibbles_of_both & 15u) | ((s >> 6) << 4);
      least_s = (nibbles_of_both >> 4) | ((least_s >> 6) << 4);
    }
    words[0] = load<Words4>(p + 16 + 32 * (g / 2));
    words[1] = load<Words4>(p + 32 + 32 * (g / 2));
    shift = 4 * (g % 2);
    d = load_half(p) * static_cast<float>(s);
    m = -(load_half(p + 2) * static_cast<float>(least_s));
  }
  FTH_GPU Float4 part(uint32_t j) const { return bytes_less((words[j / 4].v[j % 4] >> shift) & 0x0f0f0f0fu, 0.0f); }
  FTH_GPU float scale(uint32_t) const { return d; }
  FTH_GPU float least() const { return m; }
};

// f(unit) with the unit u of a row of `type`, for kernels that take any.
template <DType kType, class F>
FTH_GPU void with_unit_of(const std::byte* row, uint32_t u, F&& f) {
  Unit<kType> unit;
  unit.read(row, u);
  f(unit);
}
template <class F>
FTH_GPU void with_unit(DType type, const std::byte* row, uint32_t u, F&& f) {
  switch (type) {
    case DType::f32: return with_unit_of<DType::f32>(row, u, f);
    case DType::f16: return with_unit_of<DType::f16>(row, u, f);
    case DType::bf16: return with_unit_of<DType::bf16>(row, u, f);
    case DType::q8_0: return with_unit_of<DType::q8_0>(row, u, f);
    case DType::q4_0: return with_unit_of<DType::q4_0>(row, u, f);
    case DType::q4_1: return with_unit_of<DType::q4_1>(row, u, f);
    case DType::q6_k: return with_unit_of<DType::q6_k>(row, u, f);
    case DType::q4_k: return with_unit_of<DType::q4_k>(row, u, f);
    case DType::i32: return;
  }
}

// Value k of a row of a type without blocks.
FTH_GPU float load_value(DType type, const std::byte* row, uint32_t k) {
  if (type == DType::f32) return load<float>(row + 4ull * k);
  const uint16_t h = load<uint16_t>(row + 2ull * k);
  return type == DType::f16 ? half_to_float(h) : bfloat_to_float(h);
}

}  // namespace fth::cuda
