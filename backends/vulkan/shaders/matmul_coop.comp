#version 450
// MATMUL in cooperative matrices: y[n, m] = sum over k of x[n, k] w[m, k] + bias[m], products of f16 summed in f32. x comes as to_f16.comp leaves it;
// w is unpacked and scaled by row_scales.comp's powers of two, both go through shared memory in pieces of kChunk values. A workgroup has
// kTokenGroups x kRowGroups subgroups, a subgroup kTokenTiles x kRowTiles tiles of kM tokens and kN rows.
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#include "common.glsl"
#include "blocks.glsl"
#include "scale.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kType = 3;
layout(constant_id = 2) const uint kM = 16;
layout(constant_id = 3) const uint kN = 16;
layout(constant_id = 4) const uint kK = 16;
layout(constant_id = 5) const uint kTokenTiles = 1;
layout(constant_id = 6) const uint kRowTiles = 1;
layout(constant_id = 7) const uint kTokenGroups = 1;
layout(constant_id = 8) const uint kRowGroups = 1;
layout(constant_id = 9) const uint kChunk = 64;  // of k: the values of whole units, see blocks.glsl
layout(constant_id = 10) const uint kThreads = 32;  // the local size

layout(push_constant) uniform Push {
  Params params;
  uint x, w, unscale, bias, y;  // entries of params; bias: 0xffffffff for none
  uint k, m, row_bytes;
  uint kp, values;  // of to_f16.comp
};

const uint kTokens = kM * kTokenTiles * kTokenGroups, kRows = kN * kRowTiles * kRowGroups;
const uint kUnits = kChunk / 8u;
// 4 values an element, and 8 between rows so that they start in other banks.
const uint kStride = kChunk / 4u + 2u;
shared f16vec4 x_part[kTokens * kStride];
shared f16vec4 w_part[kRows * kStride];
shared float tiles[kTokenGroups * kRowGroups * kM * kN];

void main() {
  const uint n = params.n_tokens, row0 = folded_group() * kRows, col0 = gl_WorkGroupID.y * kTokens;
  if (row0 >= m || col0 >= n) return;  // the whole workgroup alike
  const uint thread = gl_LocalInvocationID.x, lane = gl_SubgroupInvocationID, group = gl_SubgroupID;
  const uint my_col = group / kRowGroups * kTokenTiles * kM, my_row = group % kRowGroups * kRowTiles * kN;
  const uvec2 weights = params.entry[w];
  Words4 from = Words4(params.entry[x]);
  Floats w_unscale = Floats(params.entry[unscale]);
  Floats x_unscale = Floats(params.entry[x]);

  coopmat<float, gl_ScopeSubgroup, kM, kN, gl_MatrixUseAccumulator> acc[kTokenTiles * kRowTiles];
  [[unroll]] for (uint i = 0; i < kTokenTiles * kRowTiles; ++i)
    acc[i] = coopmat<float, gl_ScopeSubgroup, kM, kN, gl_MatrixUseAccumulator>(0.0);

  for (uint k0 = 0; k0 < k; k0 += kChunk) {
    // Rows of x past n_tokens are whatever lies there: each reaches only its own sums, which are not written.
    for (uint i = thread; i < kTokens * kUnits; i += kThreads) {
      const uint t = i / kUnits, j = i % kUnits;
      const uvec4 q = from.v[(values >> 2) + ((col0 + t) * kp + k0) / 8u + j];
      x_part[t * kStride + 2u * j] = f16vec4(unpackFloat2x16(q.x), unpackFloat2x16(q.y));
      x_part[t * kStride + 2u * j + 1u] = f16vec4(unpackFloat2x16(q.z), unpackFloat2x16(q.w));
    }
    for (uint i = thread; i < kRows * kUnits; i += kThreads) {
      const uint r = i / kUnits, u = k0 / 8u + i % kUnits, row = min(row0 + r, m - 1u);
      vec4 a = vec4(0.0), b = vec4(0.0);
      uvec2 at = uvec2(8u * u, 8u * u + 4u);
      if (u < k / 8u) load_unit(kType, weights, row * row_bytes, u, a, b, at);
      const float scale = scale_of(w_unscale.v[row]);
      w_part[r * kStride + (at.x - k0) / 4u] = f16vec4(a * scale);
      w_part[r * kStride + (at.y - k0) / 4u] = f16vec4(b * scale);
    }
    barrier();
    for (uint j = 0; j < kChunk; j += kK) {
      coopmat<float16_t, gl_ScopeSubgroup, kM, kK, gl_MatrixUseA> a[kTokenTiles];
      coopmat<float16_t, gl_ScopeSubgroup, kK, kN, gl_MatrixUseB> b;
      [[unroll]] for (uint t = 0; t < kTokenTiles; ++t)
        coopMatLoad(a[t], x_part, (my_col + t * kM) * kStride + j / 4u, kStride, gl_CooperativeMatrixLayoutRowMajor);
      [[unroll]] for (uint r = 0; r < kRowTiles; ++r) {
        coopMatLoad(b, w_part, (my_row + r * kN) * kStride + j / 4u, kStride, gl_CooperativeMatrixLayoutColumnMajor);
        [[unroll]] for (uint t = 0; t < kTokenTiles; ++t) acc[t * kRowTiles + r] = coopMatMulAdd(a[t], b, acc[t * kRowTiles + r]);
      }
    }
    barrier();
  }

  // Which lane holds which element is the driver's secret, so tiles go through shared memory once more.
  [[unroll]] for (uint i = 0; i < kTokenTiles * kRowTiles; ++i) {
    coopMatStore(acc[i], tiles, group * kM * kN, kN, gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    for (uint e = lane; e < kM * kN; e += gl_SubgroupSize) {
      const uint col = col0 + my_col + i / kRowTiles * kM + e / kN, row = row0 + my_row + i % kRowTiles * kN + e % kN;
      if (col < n && row < m) {
        float sum = tiles[group * kM * kN + e] * w_unscale.v[row] * x_unscale.v[col];
        if (bias != 0xffffffffu) sum += Floats(params.entry[bias]).v[row];
        Floats(params.entry[y]).v[col * m + row] = sum;
      }
    }
    barrier();
  }
}
