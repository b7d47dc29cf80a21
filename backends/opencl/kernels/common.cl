// What every kernel shares. A tensor is a buffer and a byte offset into it: nothing is assumed of its alignment but that of its elements. Sums are
// what the source says: contraction is off, and a row of a result has the same bits whatever else the launch computes.
#pragma OPENCL FP_CONTRACT OFF

#define TENSOR(name) __global const uchar *name##_buffer, ulong name##_at
#define RESULT(name) __global uchar *name##_buffer, ulong name##_at
#define FLOATS(name) ((__global const float *)(name##_buffer + name##_at))
#define OUT_FLOATS(name) ((__global float *)(name##_buffer + name##_at))
#define BYTES(name) (name##_buffer + name##_at)

// Without hardware for it fma() is a library call of dozens of instructions.
#ifdef FP_FAST_FMAF
#define FMA(a, b, c) fma(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

// FTH_DTYPE_*
#define F32 0
#define F16 1
#define BF16 2
#define Q8_0 3
#define Q4_0 4
#define Q4_1 5
#define Q6_K 6
#define Q4_K 7

static inline float sum_of(float16 v) {
  const float8 a = v.lo + v.hi;
  const float4 b = a.lo + a.hi;
  const float2 c = b.lo + b.hi;
  return c.x + c.y;
}
