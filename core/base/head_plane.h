#pragma once
// The low-bit plane of an LM head, which HEAD_SCREENED (plugins/abi/fth_ops.def) reads before the head itself. Both sides of the boundary use this: the host
// writes planes, backends rotate x and read the codes.
//
// A row of K values, less the mean of all rows, is rotated and rounded to 2 bits a value: value = scale * (code - 1.5). The rotation (signs, then Hadamard
// transforms; after QuaRot, arXiv 2404.00456) spreads what few columns hold over all of them. Dropped bits are then noise without a direction, so the error of a
// row's product with x is close to normal with the deviation residual * |x|, also where a few values of x are a hundred times the others.
//
// A row of a plane: f32 scale, f32 residual, then codes in groups of 128 columns and 32 bytes: bits 2i of byte j hold column 32 i + j. Columns from K to the
// end of the last group are code 0 and meet zeros.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fth {

inline constexpr int64_t kPlaneGroup = 128;
inline constexpr uint64_t kPlaneRowHead = 8, kPlaneGroupBytes = 32;

constexpr int64_t plane_columns(int64_t k) { return (k + kPlaneGroup - 1) / kPlaneGroup * kPlaneGroup; }
constexpr uint64_t plane_row_bytes(int64_t k) {
  return kPlaneRowHead + static_cast<uint64_t>(plane_columns(k) / kPlaneGroup) * kPlaneGroupBytes;
}

namespace plane {

// Sums and differences of runs of `run` values, for each pair of runs of x.
inline void butterflies(float* x, int64_t n, int64_t run) {
  typedef float Four __attribute__((vector_size(16)));  // NOLINT: a typedef is how the attribute is written
  for (int64_t at = 0; at < n; at += 2 * run) {
    float *const a = x + at, *const b = a + run;
    int64_t i = 0;
    for (; i + 4 <= run; i += 4) {
      Four p, q;
      std::memcpy(&p, a + i, sizeof p);
      std::memcpy(&q, b + i, sizeof q);
      const Four sum = p + q, difference = p - q;
      std::memcpy(a + i, &sum, sizeof sum);
      std::memcpy(b + i, &difference, sizeof difference);
    }
    for (; i < run; ++i) {
      const float p = a[i], q = b[i];
      a[i] = p + q;
      b[i] = p - q;
    }
  }
}

constexpr bool negative(uint32_t column) {
  uint32_t h = (column + 1) * 0x9E3779B9u;
  h = (h ^ (h >> 15)) * 0x85EBCA6Bu;
  return ((h ^ (h >> 13)) & 1u) != 0;
}

}  // namespace plane

// x of k values, in place; lengths and products stay. k = p * m with p the largest power of two: Hadamard within blocks of p values, then across the blocks.
inline void plane_rotate(float* x, int64_t k) {
  const int64_t p = k & -k, m = k / p;
  const float scale = m == 1 ? 1.0f / std::sqrt(static_cast<float>(p)) : 1.0f / static_cast<float>(p);
  for (int64_t i = 0; i < k; ++i) x[i] = plane::negative(static_cast<uint32_t>(i)) ? -scale * x[i] : scale * x[i];
  for (int64_t run = 1; run < p; run *= 2) plane::butterflies(x, k, run);
  if (m == 1) return;
  for (int64_t run = m; run < k; run *= 2) plane::butterflies(x, k, run);
}

// A row of the plane from k rotated values. Values that are not finite make the scale NaN: such a row is never skipped.
inline void plane_encode(const float* x, int64_t k, std::byte* row) {
  constexpr float kStep = 0.9957f;  // times the root of the mean square: the best four levels for normal values
  float squares = 0;
  for (int64_t i = 0; i < k; ++i) squares += x[i] * x[i];
  const float step = kStep * std::sqrt(squares / static_cast<float>(k)), per_step = step > 0 ? 1.0f / step : 0.0f;
  std::fill(row + kPlaneRowHead, row + plane_row_bytes(k), std::byte{0});
  float along = 0, codes_squared = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float level = x[i] * per_step;
    const int code = (level >= 0 ? 2 : 0) + (level >= 1 || (level >= -1 && level < 0) ? 1 : 0);
    const float c = static_cast<float>(code) - 1.5f;
    along += x[i] * c;
    codes_squared += c * c;
    const int64_t in_group = i % kPlaneGroup;
    row[kPlaneRowHead + static_cast<uint64_t>(i / kPlaneGroup) * kPlaneGroupBytes + static_cast<uint64_t>(in_group % 32)] |=
        static_cast<std::byte>(code << (2 * (in_group / 32)));
  }
  // The scale that leaves the least; what it leaves is what the codes do not explain.
  const float scale = along / codes_squared, left = squares - scale * along;
  const float residual = std::sqrt(std::max(left, 0.0f) / static_cast<float>(k));
  std::memcpy(row, &scale, sizeof scale);
  std::memcpy(row + sizeof scale, &residual, sizeof residual);
}

struct PlaneRow {
  float scale, residual;
};
inline PlaneRow plane_row(const std::byte* row) {
  PlaneRow r;
  std::memcpy(&r, row, sizeof r);
  return r;
}

// A rotated x as 8-bit values for the products with codes: x is about step * q, columns [k, plane_columns(k)) are zero. sum and norm (|x|) go with them.
struct PlaneInput {
  float step = 0, norm = 0;
  int32_t sum = 0;
};
inline PlaneInput plane_quantize(const float* x, int64_t k, int8_t* q) {
  PlaneInput out;
  float largest = 0, squares = 0;
  for (int64_t i = 0; i < k; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    squares += x[i] * x[i];
  }
  out.norm = std::sqrt(squares);
  const bool usable = std::isfinite(out.norm) && largest > 0;
  for (int64_t i = usable ? k : 0; i < plane_columns(k); ++i) q[i] = 0;
  if (!usable) return out;
  out.step = largest / 127.0f;
  for (int64_t i = 0; i < k; ++i) {
    q[i] = static_cast<int8_t>(std::lrint(std::clamp(x[i] / out.step, -127.0f, 127.0f)));
    out.sum += q[i];
  }
  return out;
}
// The product of a row and x, from the sum of code * q over all columns.
inline float plane_product(const PlaneRow& row, const PlaneInput& x, int32_t code_sum) {
  return row.scale * x.step * (static_cast<float>(code_sum) - 1.5f * static_cast<float>(x.sum));
}

}  // namespace fth
