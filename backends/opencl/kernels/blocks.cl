// Weights of every dtype, read in place. A unit is 32 values of a row: `a` the first 16, `b` the others. Blocks of q4_0, q8_0 and q6_k are only
// 2-aligned, hence loads of ushorts.

static inline uchar16 load16(__global const uchar *p) { return as_uchar16(vload8(0, (__global const ushort *)p)); }
static inline float load_half(__global const uchar *p) { return vload_half(0, (__global const half *)p); }

// Integer weights of a unit with their scales: value = scale * q + least.
typedef struct {
  char16 a, b;
  float scale_a, scale_b, least;
} IntUnit;

#if TYPE == Q8_0
static inline IntUnit int_unit(__global const uchar *row, uint u) {
  __global const uchar *p = row + 34u * u;
  IntUnit r;
  r.a = as_char16(load16(p + 2));
  r.b = as_char16(load16(p + 18));
  r.scale_a = r.scale_b = load_half(p);
  r.least = 0.0f;
  return r;
}
#elif TYPE == Q4_0
static inline IntUnit int_unit(__global const uchar *row, uint u) {
  __global const uchar *p = row + 18u * u;
  const uchar16 q = load16(p + 2);
  IntUnit r;
  r.a = as_char16(q & (uchar)15) - (char)8;
  r.b = as_char16(q >> (uchar)4) - (char)8;
  r.scale_a = r.scale_b = load_half(p);
  r.least = 0.0f;
  return r;
}
#elif TYPE == Q4_1
static inline IntUnit int_unit(__global const uchar *row, uint u) {
  __global const uchar *p = row + 20u * u;
  const uchar16 q = load16(p + 4);
  IntUnit r;
  r.a = as_char16(q & (uchar)15);
  r.b = as_char16(q >> (uchar)4);
  r.scale_a = r.scale_b = load_half(p);
  r.least = load_half(p + 2);
  return r;
}
#elif TYPE == Q4_K
// Eight units of a block of 256; each pair of units shares 32 bytes, the even one in the low nibbles.
static inline IntUnit int_unit(__global const uchar *row, uint u) {
  __global const uchar *p = row + 144u * (u >> 3), *s = p + 4;
  const uint g = u & 7u;
  uint scale = s[g & 3u], least = s[4u + (g & 3u)];
  if (g < 4u) {
    scale &= 63u;
    least &= 63u;
  } else {
    const uint low = s[4u + g];
    scale = (low & 15u) | ((scale >> 6) << 4);
    least = (low >> 4) | ((least >> 6) << 4);
  }
  const uchar shift = (g & 1u) != 0u ? 4 : 0;
  const uchar16 qa = load16(p + 16u + 32u * (g >> 1)), qb = load16(p + 32u + 32u * (g >> 1));
  IntUnit r;
  r.a = as_char16((qa >> shift) & (uchar)15);
  r.b = as_char16((qb >> shift) & (uchar)15);
  r.scale_a = r.scale_b = load_half(p) * (float)scale;
  r.least = -load_half(p + 2) * (float)least;
  return r;
}
#elif TYPE == Q6_K
// Eight units of a block of 256, four in each half: low nibbles of 64 bytes, pairs of bits of 32, a scale for 16 values.
static inline IntUnit int_unit(__global const uchar *row, uint u) {
  __global const uchar *p = row + 210u * (u >> 3);
  const uint h = (u >> 2) & 1u, t = u & 3u;
  __global const uchar *low = p + 64u * h + 32u * (t & 1u), *high = p + 128u + 32u * h;
  const uchar shift = t < 2u ? 0 : 4, pair = (uchar)(2u * t);
  const uchar16 a = ((load16(low) >> shift) & (uchar)15) | (((load16(high) >> pair) & (uchar)3) << (uchar)4);
  const uchar16 b = ((load16(low + 16) >> shift) & (uchar)15) | (((load16(high + 16) >> pair) & (uchar)3) << (uchar)4);
  const float d = load_half(p + 208);
  __global const char *scales = (__global const char *)(p + 192u + 8u * h + 2u * t);
  IntUnit r;
  r.a = as_char16(a) - (char)32;
  r.b = as_char16(b) - (char)32;
  r.scale_a = d * (float)scales[0];
  r.scale_b = d * (float)scales[1];
  r.least = 0.0f;
  return r;
}
#endif

#if TYPE >= Q8_0
static inline void load_unit(__global const uchar *row, uint u, float16 *a, float16 *b) {
  const IntUnit r = int_unit(row, u);
  *a = r.scale_a * convert_float16(r.a) + r.least;
  *b = r.scale_b * convert_float16(r.b) + r.least;
}
#else
static inline void load_unit(__global const uchar *row, uint u, float16 *a, float16 *b) {
#if TYPE == F32
  *a = vload16(2u * u, (__global const float *)row);
  *b = vload16(2u * u + 1u, (__global const float *)row);
#elif TYPE == F16
  *a = vload_half16(2u * u, (__global const half *)row);
  *b = vload_half16(2u * u + 1u, (__global const half *)row);
#else
  *a = as_float16(convert_uint16(vload16(2u * u, (__global const ushort *)row)) << 16);
  *b = as_float16(convert_uint16(vload16(2u * u + 1u, (__global const ushort *)row)) << 16);
#endif
}

// Value k of a row whose length is no multiple of 32.
static inline float load_value(__global const uchar *row, uint k) {
#if TYPE == F32
  return ((__global const float *)row)[k];
#elif TYPE == F16
  return vload_half(k, (__global const half *)row);
#else
  return as_float((uint)((__global const ushort *)row)[k] << 16);
#endif
}
#endif
