#version 450
// MATMUL: y[n, m] = sum over k of x[n, k] w[m, k] + bias[m]. A group of kLanes threads shares kRows rows of w and kCols rows of x; each lane takes every
// kLanes-th unit of k, and the lanes' sums are added in one fixed order. A result therefore has the same bits whatever kRows, kCols and the bucket are:
// a prefill of n tokens is n times a decode of one.
//
// With SUBGROUP a group is a subgroup of kLanes threads and a workgroup holds several; without, the group is the workgroup and sums go through
// shared memory.
#extension GL_GOOGLE_include_directive : require
#ifdef SUBGROUP
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#include "common.glsl"
#include "blocks.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kType = 0;
layout(constant_id = 2) const uint kLanes = 32;
layout(constant_id = 3) const uint kRows = 1;
layout(constant_id = 4) const uint kCols = 1;

layout(push_constant) uniform Push {
  Params params;
  uint x, w, bias, y;  // entries of params; bias: 0xffffffff for none
  uint k, m, row_bytes;
  uint by_value;  // 1: rows are no whole units, one value at a time
};

#ifndef SUBGROUP
shared float sums[kLanes * (kRows * kCols + 1u)];
#endif

void write(uint i, uint row0, uint col0, uint n, float sum) {
  const uint row = row0 + i / kCols, col = col0 + i % kCols;
  if (row >= m || col >= n) return;
  if (bias != 0xffffffffu) sum += Floats(params.entry[bias]).v[row];
  Floats(params.entry[y]).v[col * m + row] = sum;
}

void main() {
  const uint n = params.n_tokens, col0 = gl_WorkGroupID.y * kCols;
#ifdef SUBGROUP
  const uint lane = gl_SubgroupInvocationID, row0 = (folded_group() * gl_NumSubgroups + gl_SubgroupID) * kRows;
#else
  const uint lane = gl_LocalInvocationID.x, row0 = folded_group() * kRows;
#endif
  if (row0 >= m || col0 >= n) return;  // the whole group alike

  const uvec2 weights = params.entry[w], values = params.entry[x];
  // Rows and columns past the end repeat the last one; they are not written.
  uint row[kRows], col[kCols];
  [[unroll]] for (uint r = 0; r < kRows; ++r) row[r] = min(row0 + r, m - 1u) * row_bytes;
  [[unroll]] for (uint c = 0; c < kCols; ++c) col[c] = min(col0 + c, n - 1u) * k;
  precise float acc[kRows * kCols];
  [[unroll]] for (uint i = 0; i < kRows * kCols; ++i) acc[i] = 0.0;

  if (by_value == 0u) {
    Floats4 x4 = Floats4(values);
    for (uint u = lane; u < k / 8u; u += kLanes) {
      vec4 a[kRows], b[kRows];
      uvec2 at;
      [[unroll]] for (uint r = 0; r < kRows; ++r) load_unit(kType, weights, row[r], u, a[r], b[r], at);
      [[unroll]] for (uint c = 0; c < kCols; ++c) {
        const vec4 p = x4.v[(col[c] + at.x) >> 2], q = x4.v[(col[c] + at.y) >> 2];
        [[unroll]] for (uint r = 0; r < kRows; ++r) {
          precise float sum = acc[r * kCols + c];
          sum = fma(a[r].x, p.x, sum);
          sum = fma(a[r].y, p.y, sum);
          sum = fma(a[r].z, p.z, sum);
          sum = fma(a[r].w, p.w, sum);
          sum = fma(b[r].x, q.x, sum);
          sum = fma(b[r].y, q.y, sum);
          sum = fma(b[r].z, q.z, sum);
          sum = fma(b[r].w, q.w, sum);
          acc[r * kCols + c] = sum;
        }
      }
    }
  } else {
    Floats x1 = Floats(values);
    for (uint i = lane; i < k; i += kLanes) {
      [[unroll]] for (uint r = 0; r < kRows; ++r) {
        const float a = load_value(kType, weights, row[r], i);
        [[unroll]] for (uint c = 0; c < kCols; ++c) acc[r * kCols + c] = fma(a, x1.v[col[c] + i], acc[r * kCols + c]);
      }
    }
  }

#ifdef SUBGROUP
  [[unroll]] for (uint i = 0; i < kRows * kCols; ++i) {
    precise float sum = acc[i];
    for (uint step = kLanes / 2u; step > 0u; step >>= 1) sum += subgroupShuffleXor(sum, step);
    if (lane == i % kLanes) write(i, row0, col0, n, sum);
  }
#else
  [[unroll]] for (uint i = 0; i < kRows * kCols; ++i) sums[lane * (kRows * kCols + 1u) + i] = acc[i];
  barrier();
  for (uint i = lane; i < kRows * kCols; i += kLanes) {
    precise float sum = 0.0;
    for (uint l = 0; l < kLanes; ++l) sum += sums[l * (kRows * kCols + 1u) + i];
    write(i, row0, col0, n, sum);
  }
#endif
}
