#pragma once
// Test data: the same seed gives the same bytes with every compiler and library, which std::normal_distribution does not.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/half.h"
#include "tests/conformance/reference.h"

namespace fth::conformance {

class Random {
 public:
  explicit Random(std::string_view seed) {
    for (const char c : seed) state_ = (state_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  uint64_t next() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t n) { return next() % n; }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double normal() {  // the sum of twelve: tails to 6 deviations, no logarithm whose last bit depends on the library
    double sum = -6;
    for (int i = 0; i < 4; ++i) {
      const uint64_t bits = next();
      for (int j = 0; j < 3; ++j) sum += static_cast<double>((bits >> (21 * j)) & 0x1fffff) * 0x1p-21;
    }
    return sum;
  }

  // Valid blocks of any bit pattern in their small integers, scaled so that the values have about this standard deviation. One scale in eight is
  // negative (for types whose scale may be): a kernel that assumes a sign fails.
  void fill_weight(DType type, double deviation, std::vector<std::byte>& data) {
    const DTypeTraits& t = kDTypes[static_cast<size_t>(type)];
    if (t.block == 1) {
      for (size_t i = 0; i < data.size(); i += t.block_bytes) {
        const double v = deviation * normal();
        if (type == DType::f32) put(data, i, static_cast<float>(v));
        if (type == DType::f16) put(data, i, f16_bits(v));
        if (type == DType::bf16) put(data, i, f32_to_bf16(static_cast<float>(v)));
      }
      return;
    }
    size_t i = 0;
    for (; i + 8 <= data.size(); i += 8) put(data, i, next());
    for (; i < data.size(); ++i) data[i] = static_cast<std::byte>(next());
    for (size_t b = 0; b < data.size(); b += t.block_bytes) {
      const double scale = deviation * (0.5 + uniform()) * (below(8) == 0 ? -1 : 1);
      switch (type) {  // the deviations of uniform integers: 4.6 of 4 bits, 18.5 of 6, 74 of 8; the mean of 6-bit scales is 31.5
        case DType::q8_0: put(data, b, f16_bits(scale / 74)); break;
        case DType::q4_0: put(data, b, f16_bits(scale / 4.6)); break;
        case DType::q4_1:
          put(data, b, f16_bits(scale / 4.6));
          put(data, b + 2, f16_bits(-7.5 * scale / 4.6 * (0.8 + 0.4 * uniform())));
          break;
        case DType::q4_k:
          put(data, b, f16_bits(scale / 4.6 / 31.5));
          put(data, b + 2, f16_bits(7.5 * scale / 4.6 / 31.5));
          break;
        case DType::q6_k: put(data, b + 208, f16_bits(scale / 18.5 / 74)); break;
        default: break;
      }
    }
  }

 private:
  template <class T>
  static void put(std::vector<std::byte>& data, size_t at, T value) {
    std::memcpy(data.data() + at, &value, sizeof value);
  }
  uint64_t state_ = 0xcbf29ce484222325u;
};

}  // namespace fth::conformance
