// The ops that touch each value once: RMS_NORM, ROPE, ADD, GLU, COMBINE. THREADS: of a row's work-group, a power of two.

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void rms_norm(TENSOR(x), TENSOR(weight), RESULT(y), uint width, float eps) {
  __local float sums[THREADS];
  const uint t = get_local_id(0), chunks = width / 16u;
  const size_t row = get_group_id(1) * (size_t)width;
  __global const float *src = FLOATS(x) + row, *scale = FLOATS(weight);
  __global float *dst = OUT_FLOATS(y) + row;
  float16 squares = 0.0f;
  for (uint c = t; c < chunks; c += THREADS) {
    const float16 v = vload16(c, src);
    squares = FMA(v, v, squares);
  }
  float sum = sum_of(squares);
  for (uint i = 16u * chunks + t; i < width; i += THREADS) sum = FMA(src[i], src[i], sum);
  sums[t] = sum;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint step = THREADS / 2u; step > 0u; step >>= 1) {
    if (t < step) sums[t] += sums[t + step];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  const float r = 1.0f / sqrt(sums[0] / (float)width + eps);
  for (uint c = t; c < chunks; c += THREADS) vstore16(vload16(c, src) * r * vload16(c, scale), c, dst);
  for (uint i = 16u * chunks + t; i < width; i += THREADS) dst[i] = src[i] * r * scale[i];
}

// Work-item j of a head turns pair j, or copies a value that is not rotated. Angles are phases in units of 2^-32 turn: position times a 64-bit
// fixed-point frequency, which is exact at any position, where a product of floats is off by whole turns.
__kernel void rope(TENSOR(x), RESULT(y), __global const ulong *frequency, uint first, uint heads, uint head_dim, uint half_rotated,
                   uint adjacent, uint pos) {
  const uint per_head = head_dim - half_rotated, i = get_global_id(0), token = get_global_id(1);
  if (i >= heads * per_head) return;
  const uint j = i % per_head;
  const size_t base = ((size_t)token * heads + i / per_head) * head_dim;
  __global const float *src = FLOATS(x) + base;
  __global float *dst = OUT_FLOATS(y) + base;
  if (j >= half_rotated) {
    dst[half_rotated + j] = src[half_rotated + j];
    return;
  }
  const uint phase = (uint)((frequency[first + j] * (ulong)(pos + token)) >> 32);
  const uint quadrant = (phase + 0x20000000u) >> 30;
  const float turn = (float)(int)(phase - (quadrant << 30)) * 1.4629180792671596e-9f;  // 2 pi / 2^32; within pi / 4 of 0
  float s = sin(turn), c = cos(turn);
  if ((quadrant & 1u) != 0u) {
    const float old = s;
    s = c;
    c = -old;
  }
  if ((quadrant & 2u) != 0u) {
    s = -s;
    c = -c;
  }
  const uint one = adjacent != 0u ? 2u * j : j, two = one + (adjacent != 0u ? 1u : half_rotated);
  const float a = src[one], b = src[two];
  dst[one] = a * c - b * s;
  dst[two] = a * s + b * c;
}

__kernel void add(TENSOR(a), TENSOR(b), RESULT(y), uint width) {
  const size_t i = get_global_id(1) * (size_t)width + get_global_id(0);
  if (get_global_id(0) < width) OUT_FLOATS(y)[i] = FLOATS(a)[i] + FLOATS(b)[i];
}
__kernel void relu_glu(TENSOR(a), TENSOR(b), RESULT(y), uint width) {
  const size_t i = get_global_id(1) * (size_t)width + get_global_id(0);
  if (get_global_id(0) < width) OUT_FLOATS(y)[i] = fmax(FLOATS(a)[i], 0.0f) * FLOATS(b)[i];
}
__kernel void silu_glu(TENSOR(a), TENSOR(b), RESULT(y), uint width) {
  const size_t i = get_global_id(1) * (size_t)width + get_global_id(0);
  if (get_global_id(0) < width) OUT_FLOATS(y)[i] = FLOATS(a)[i] / (1.0f + exp(-FLOATS(a)[i])) * FLOATS(b)[i];
}

// out[n] = x[n] + sum over ranks, in order, of weights[n, rank] * y[n * K + rank]. x and out may be one buffer.
__kernel void combine(TENSOR(x), TENSOR(y), TENSOR(weights), RESULT(out), uint width, uint top_k) {
  const uint e = get_global_id(0), token = get_global_id(1);
  if (e >= width) return;
  float sum = FLOATS(x)[(size_t)token * width + e];
  for (uint rank = token * top_k; rank < (token + 1u) * top_k; ++rank)
    sum += FLOATS(weights)[rank] * FLOATS(y)[(size_t)rank * width + e];
  OUT_FLOATS(out)[(size_t)token * width + e] = sum;
}
