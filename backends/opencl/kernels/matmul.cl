// MATMUL: y[n, m] = sum over k of x[n, k] w[m, k] + bias[m]. LANES work-items share a row of w, each takes every LANES-th unit of k, and the lanes' sums
// are added in one order; on a CPU LANES is 1. A group does `rows` rows one after the other, each for COLS rows of x at once. A result therefore has the
// same bits whatever `rows`, COLS and the bucket are.
// MATH: how a unit of 32 products is added up. 0: weights unpacked to f32. 1: in f16, x scaled to at most 1 in each unit. 2: in integers, x rounded to
// 8 bits in each unit. 1 and 2 read x as round_units left it: in each unit its scale, its sum, then 32 values.

#if MATH == 1
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define UNIT_BYTES 72
#elif MATH == 2
#define UNIT_BYTES 40
#endif

#if MATH != 0
__kernel void round_units(TENSOR(x), RESULT(q), uint units) {
  const uint u = get_global_id(0), token = get_global_id(1);
  if (u >= units) return;
  const size_t unit = (size_t)token * units + u;
  const float16 a = vload16(2 * unit, FLOATS(x)), b = vload16(2 * unit + 1, FLOATS(x));
  const float16 m = fmax(fabs(a), fabs(b));
  const float8 m8 = fmax(m.lo, m.hi);
  const float4 m4 = fmax(m8.lo, m8.hi);
  const float2 m2 = fmax(m4.lo, m4.hi);
  const float peak = fmax(m2.x, m2.y);
  __global uchar *dst = BYTES(q) + UNIT_BYTES * unit;
  __global float *head = (__global float *)dst;
  const bool zero = !(peak > 1e-36f);  // below, 1 / scale is no number
#if MATH == 1
  const float scale = zero ? 0.0f : peak, inverse = zero ? 0.0f : 1.0f / peak;
  const half16 qa = convert_half16_rte(a * inverse), qb = convert_half16_rte(b * inverse);
  vstore16(qa, 0, (__global half *)(dst + 8));
  vstore16(qb, 1, (__global half *)(dst + 8));
#else
  const float scale = zero ? 0.0f : peak / 127.0f, inverse = zero ? 0.0f : 127.0f / peak;
  const char16 qa = convert_char16_sat_rte(a * inverse), qb = convert_char16_sat_rte(b * inverse);
  vstore16(qa, 0, (__global char *)(dst + 8));
  vstore16(qb, 1, (__global char *)(dst + 8));
#endif
  head[0] = scale;
  head[1] = scale * sum_of(convert_float16(qa) + convert_float16(qb));
}
#endif

#if MATH == 1
static inline float sum_of_halves(half16 v) {
  const half8 a = v.lo + v.hi;
  const half4 b = a.lo + a.hi;
  const half2 c = b.lo + b.hi;
  return (float)(c.x + c.y);
}
#elif MATH == 2
static inline int dot16(char16 a, char16 b) {
#if INT_DOT
  const uint4 p = as_uint4(a), q = as_uint4(b);
  return dot_4x8packed_ss_int(p.x, q.x) + dot_4x8packed_ss_int(p.y, q.y) + dot_4x8packed_ss_int(p.z, q.z) + dot_4x8packed_ss_int(p.w, q.w);
#else
  const short16 p = convert_short16(a) * convert_short16(b);  // at most 128 * 127
  const int8 s8 = convert_int8(p.lo) + convert_int8(p.hi);
  const int4 s4 = s8.lo + s8.hi;
  const int2 s2 = s4.lo + s4.hi;
  return s2.x + s2.y;
#endif
}
#endif

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1)))
void matmul(TENSOR(x), TENSOR(w), TENSOR(bias), RESULT(y), uint k, uint m, ulong row_bytes, uint has_bias, uint rows, uint n_tokens) {
  const uint lane = get_local_id(0), col0 = (uint)get_group_id(1) * COLS;
  const uint first = (uint)get_group_id(0) * rows, end = min(first + rows, m);
#if LANES > 1
  __local float sums[COLS * LANES];
#endif
  // Columns past the end repeat the last one; they are not written.
  uint col[COLS];
  for (uint c = 0; c < COLS; ++c) col[c] = min(col0 + c, n_tokens - 1u);

  for (uint r = first; r < end; ++r) {
    __global const uchar *row = BYTES(w) + r * row_bytes;
    float result[COLS];
#if BY_VALUE
    for (uint c = 0; c < COLS; ++c) result[c] = 0.0f;
    for (uint i = lane; i < k; i += LANES) {
      const float a = load_value(row, i);
      for (uint c = 0; c < COLS; ++c) result[c] = FMA(a, FLOATS(x)[(size_t)col[c] * k + i], result[c]);
    }
#elif MATH == 0
    float16 acc[COLS];
    for (uint c = 0; c < COLS; ++c) acc[c] = 0.0f;
    for (uint u = lane; u < k / 32u; u += LANES) {
      float16 a, b;
      load_unit(row, u, &a, &b);
      for (uint c = 0; c < COLS; ++c) {
        __global const float *v = FLOATS(x) + (size_t)col[c] * k + 32u * u;
        acc[c] = FMA(a, vload16(0, v), acc[c]);
        acc[c] = FMA(b, vload16(1, v), acc[c]);
      }
    }
    for (uint c = 0; c < COLS; ++c) result[c] = sum_of(acc[c]);
#else
    for (uint c = 0; c < COLS; ++c) result[c] = 0.0f;
    for (uint u = lane; u < k / 32u; u += LANES) {
      const IntUnit p = int_unit(row, u);
#if MATH == 1
      const half16 a = convert_half16(p.a), b = convert_half16(p.b);
#endif
      for (uint c = 0; c < COLS; ++c) {
        __global const uchar *v = BYTES(x) + UNIT_BYTES * ((size_t)col[c] * (k / 32u) + u);
        const float scale = ((__global const float *)v)[0], sum = ((__global const float *)v)[1];
#if MATH == 1
        const half16 va = vload16(0, (__global const half *)(v + 8)), vb = vload16(1, (__global const half *)(v + 8));
#if TYPE == Q6_K
        const float part = FMA(p.scale_a, sum_of_halves(a * va), p.scale_b * sum_of_halves(b * vb));
#else
        const float part = p.scale_a * sum_of_halves(a * va + b * vb);
#endif
#else
        const char16 va = vload16(0, (__global const char *)(v + 8)), vb = vload16(1, (__global const char *)(v + 8));
#if TYPE == Q6_K
        const float part = FMA(p.scale_a, (float)dot16(p.a, va), p.scale_b * (float)dot16(p.b, vb));
#else
        const float part = p.scale_a * (float)(dot16(p.a, va) + dot16(p.b, vb));
#endif
#endif
        result[c] = FMA(p.least, sum, FMA(scale, part, result[c]));
      }
    }
#endif

#if LANES > 1
    for (uint c = 0; c < COLS; ++c) sums[c * LANES + lane] = result[c];
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint c = lane; c < COLS; c += LANES) {
      float s = 0.0f;
      for (uint l = 0; l < LANES; ++l) s += sums[c * LANES + l];
      if (has_bias != 0u) s += FLOATS(bias)[r];
      if (col0 + c < n_tokens) OUT_FLOATS(y)[(size_t)(col0 + c) * m + r] = s;
    }
    barrier(CLK_LOCAL_MEM_FENCE);
#else
    for (uint c = 0; c < COLS; ++c) {
      float s = result[c];
      if (has_bias != 0u) s += FLOATS(bias)[r];
      if (col0 + c < n_tokens) OUT_FLOATS(y)[(size_t)(col0 + c) * m + r] = s;
    }
#endif
  }
}
