// ATTENTION in two kernels: kv_store writes rows of k and v to their cells, attention gives each (query head, row) one work-group, softmax(q k^T) v in
// one pass over the positions with a running maximum (Milakov and Gimelshein, arXiv 1805.02867). Positions go by in tiles counted from the first that
// the row sees: the sums do not depend on the bucket. In a tile, work-items first score positions, then add up columns of v: UNITS of VEC columns,
// times GROUPS that take every GROUPS-th position.
// TYPE of the caches, HEAD_DIM, THREADS of a work-group, a power of two; on a CPU 1.

#if HEAD_DIM % 16 == 0
#define VEC 16
typedef float16 Columns;
#else
#define VEC 1
typedef float Columns;
#endif
#define UNITS (HEAD_DIM / VEC)
#define GROUPS (THREADS > UNITS ? THREADS / UNITS : 1)
#define ITEMS ((UNITS * GROUPS + THREADS - 1) / THREADS)
#define TILE (THREADS > 64 ? THREADS : 64)

static inline Columns load_columns(__global const uchar *cache, size_t i) {
#if TYPE == F16 && VEC == 16
  return vload_half16(0, (__global const half *)cache + i);
#elif TYPE == F16
  return vload_half(i, (__global const half *)cache);
#elif VEC == 16
  return vload16(0, (__global const float *)cache + i);
#else
  return ((__global const float *)cache)[i];
#endif
}

// width: values of a cell. Work-items 0 .. width of a row store k, those above v.
__kernel void kv_store(TENSOR(k), TENSOR(v), RESULT(k_cache), RESULT(v_cache), uint width, uint cells, uint pos) {
  const uint i = get_global_id(0), token = get_global_id(1);
  if (i >= 2u * width) return;
  const bool is_v = i >= width;
  const uint column = is_v ? i - width : i;
  const float value = (is_v ? FLOATS(v) : FLOATS(k))[(size_t)token * width + column];
  __global uchar *dst = is_v ? BYTES(v_cache) : BYTES(k_cache);
  const size_t at = (size_t)((pos + token) % cells) * width + column;
#if TYPE == F16
  vstore_half_rte(value, at, (__global half *)dst);
#else
  ((__global float *)dst)[at] = value;
#endif
}

__kernel __attribute__((reqd_work_group_size(THREADS, 1, 1)))
void attention(TENSOR(q), TENSOR(k_cache), TENSOR(v_cache), RESULT(y), uint heads, uint kv_heads, uint window, uint cells, float scale,
               uint pos, uint n_tokens) {
  __local float query[HEAD_DIM], weight[TILE], shared_sum[THREADS];
  __local float part[UNITS * GROUPS * VEC];
  const uint head = get_group_id(0), t = get_local_id(0);
  const uint token = n_tokens - 1u - (uint)get_group_id(1);  // the last row sees the most: first
  const uint p = pos + token, first = window > 0u && p >= window ? p - window + 1u : 0u, n = p - first + 1u;
  const uint width = kv_heads * HEAD_DIM, column = head / (heads / kv_heads) * HEAD_DIM, origin = first % cells;
  __global const uchar *keys = BYTES(k_cache), *values = BYTES(v_cache);
  const size_t row = ((size_t)token * heads + head) * HEAD_DIM;
  for (uint d = t; d < HEAD_DIM; d += THREADS) query[d] = FLOATS(q)[row + d] * scale;
  float highest = -FLT_MAX, total = 0.0f;
  Columns sum[ITEMS];
  for (uint item = 0; item < ITEMS; ++item) sum[item] = 0.0f;
  barrier(CLK_LOCAL_MEM_FENCE);

  for (uint tile = 0; tile < n; tile += TILE) {
    const uint count = min((uint)TILE, n - tile);
    float peak = -FLT_MAX;
    for (uint i = t; i < count; i += THREADS) {
      uint cell = origin + tile + i;
      if (cell >= cells) cell -= cells;
      const size_t at = (size_t)cell * width + column;
      Columns products = 0.0f;
      for (uint d = 0; d < HEAD_DIM; d += VEC) {
#if VEC == 16
        products = FMA(load_columns(keys, at + d), vload16(0, query + d), products);
#else
        products = FMA(load_columns(keys, at + d), query[d], products);
#endif
      }
#if VEC == 16
      const float score = sum_of(products);
#else
      const float score = products;
#endif
      weight[i] = score;
      peak = fmax(peak, score);
    }
#if THREADS > 1
    shared_sum[t] = peak;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint step = THREADS / 2u; step > 0u; step >>= 1) {
      if (t < step) shared_sum[t] = fmax(shared_sum[t], shared_sum[t + step]);
      barrier(CLK_LOCAL_MEM_FENCE);
    }
    peak = shared_sum[0];
#endif
    const float next = fmax(highest, peak), shrink = exp(highest - next);
    highest = next;
#if THREADS == 1
    // A CPU's exp() of 16 values takes little more than that of one.
    float16 sums = 0.0f;
    for (uint i = count; i < TILE; ++i) weight[i] = -INFINITY;
    for (uint c = 0; c < TILE / 16; ++c) {
      const float16 e = exp(vload16(c, weight) - next);
      vstore16(e, c, weight);
      sums += e;
    }
    const float weights = sum_of(sums);
#else
    float weights = 0.0f;
    for (uint i = t; i < count; i += THREADS) {
      const float e = exp(weight[i] - next);
      weight[i] = e;
      weights += e;
    }
#endif
    total = FMA(total, shrink, weights);
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint item = 0; item < ITEMS; ++item) {
      const uint j = t + item * THREADS;
      if (j < UNITS * GROUPS) {
        Columns s = 0.0f;  // of the tile: thousands of terms one by one would round away what the last ones add
        for (uint i = j / UNITS; i < count; i += GROUPS) {
          uint cell = origin + tile + i;
          if (cell >= cells) cell -= cells;
          const Columns v = load_columns(values, (size_t)cell * width + column + VEC * (j % UNITS));
          s = FMA((Columns)weight[i], v, s);
        }
        sum[item] = FMA(sum[item], (Columns)shrink, s);
      }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
  }

  shared_sum[t] = total;
  for (uint item = 0; item < ITEMS; ++item) {
    const uint j = t + item * THREADS;
    if (j < UNITS * GROUPS) {
#if VEC == 16
      vstore16(sum[item], j, part);
#else
      part[j] = sum[item];
#endif
    }
  }
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint step = THREADS / 2u; step > 0u; step >>= 1) {
    if (t < step) shared_sum[t] += shared_sum[t + step];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  for (uint d = t; d < HEAD_DIM; d += THREADS) {
    float s = part[d];
    for (uint g = 1; g < GROUPS; ++g) s += part[g * HEAD_DIM + d];
    OUT_FLOATS(y)[row + d] = s / shared_sum[0];
  }
}
