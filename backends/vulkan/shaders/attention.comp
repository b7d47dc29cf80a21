#version 450
// The second half of ATTENTION: one workgroup per (query head, row), softmax(q k^T) v in one pass over the positions with a running maximum (Milakov and
// Gimelshein, arXiv 1805.02867). Positions go by in tiles of kThreads, counted from the first that the row sees: the sums do not depend on the bucket.
// In a tile, a thread first scores one position, then adds up one pair of v's columns over every n_groups-th position.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kThreads = 128;  // the local size again, a power of two
layout(constant_id = 2) const uint kType = 0;       // of the caches: F32 or F16

layout(push_constant) uniform Push {
  Params params;
  uint q, k_cache, v_cache, y;
  uint heads, kv_heads, head_dim;  // head_dim: at most 2 * kThreads
  uint window, cells;              // window 0: every position
  float scale;
};

shared vec4 query[kThreads / 2u];
shared float weight[kThreads], peak[kThreads];
shared vec2 part[kThreads];

// Values i, i + 1 of a cache; the second is 0 past the head's end, when the head size is odd.
vec2 load_pair(uvec2 address, uint i, bool whole) {
  if (kType == F16) return unpackHalf2x16(Words(address).v[i >> 1]);  // the head size is even
  return vec2(Floats(address).v[i], whole ? Floats(address).v[i + 1u] : 0.0);
}

float score(uvec2 cache, uint at) {
  float sum = 0.0;
  if (head_dim % 8u == 0u) {
    for (uint d = 0; d < head_dim; d += 8u) {
      vec4 a, b;
      if (kType == F16) {
        const uvec4 h = Words4(cache).v[(at + d) >> 3];
        a = vec4(unpackHalf2x16(h.x), unpackHalf2x16(h.y));
        b = vec4(unpackHalf2x16(h.z), unpackHalf2x16(h.w));
      } else {
        a = Floats4(cache).v[(at + d) >> 2];
        b = Floats4(cache).v[((at + d) >> 2) + 1u];
      }
      sum += dot(a, query[d >> 2]) + dot(b, query[(d >> 2) + 1u]);
    }
    return sum;
  }
  for (uint d = 0; d < head_dim; d += 2u) {
    const vec2 a = load_pair(cache, at + d, d + 1u < head_dim);
    const vec4 four = query[d >> 2];
    sum += dot(a, (d & 2u) == 0u ? four.xy : four.zw);
  }
  return sum;
}

void main() {
  const uint head = gl_WorkGroupID.x, t = gl_LocalInvocationID.x;
  if (gl_WorkGroupID.y >= params.n_tokens) return;
  const uint token = params.n_tokens - 1u - gl_WorkGroupID.y;  // the last row sees the most: first
  const uint p = params.pos + token, first = window > 0u && p >= window ? p - window + 1u : 0u, n = p - first + 1u;
  const uint width = kv_heads * head_dim, column = head / (heads / kv_heads) * head_dim, origin = first % cells;
  const uvec2 keys = params.entry[k_cache], values = params.entry[v_cache];
  Floats src = Floats(params.entry[q]);
  for (uint i = t; i < kThreads / 2u; i += kThreads) {
    [[unroll]] for (uint j = 0; j < 4u; ++j) {
      const uint d = 4u * i + j;
      query[i][j] = d < head_dim ? src.v[(token * heads + head) * head_dim + d] * scale : 0.0;
    }
  }
  const uint n_pairs = (head_dim + 1u) / 2u, n_groups = kThreads / n_pairs, pair = t % n_pairs, group = t / n_pairs;
  const bool whole = 2u * pair + 1u < head_dim;
  float highest = -3.402823466e38, total = 0.0;
  vec2 sum = vec2(0.0);
  barrier();

  for (uint tile = 0; tile < n; tile += kThreads) {
    const uint count = min(kThreads, n - tile);
    float s = -3.402823466e38;
    if (t < count) {
      uint cell = origin + tile + t;
      if (cell >= cells) cell -= cells;
      s = score(keys, cell * width + column);
    }
    peak[t] = s;
    barrier();
    for (uint step = kThreads / 2u; step > 0u; step >>= 1) {
      if (t < step) peak[t] = max(peak[t], peak[t + step]);
      barrier();
    }
    const float next = max(highest, peak[0]), shrink = exp(highest - next);
    const float e = t < count ? exp(s - next) : 0.0;
    highest = next;
    total = total * shrink + e;
    weight[t] = e;
    barrier();
    sum *= shrink;
    if (group < n_groups)
      for (uint i = group; i < count; i += n_groups) {
        uint cell = origin + tile + i;
        if (cell >= cells) cell -= cells;
        sum += weight[i] * load_pair(values, cell * width + column + 2u * pair, whole);
      }
    barrier();
  }

  part[t] = sum;
  peak[t] = total;
  barrier();
  for (uint step = kThreads / 2u; step > 0u; step >>= 1) {
    if (t < step) peak[t] += peak[t + step];
    barrier();
  }
  if (t >= n_pairs) return;
  for (uint g = 1; g < n_groups; ++g) sum += part[g * n_pairs + t];
  Floats dst = Floats(params.entry[y]);
  const uint at = (token * heads + head) * head_dim + 2u * t;
  dst.v[at] = sum.x / peak[0];
  if (whole) dst.v[at + 1u] = sum.y / peak[0];
}
