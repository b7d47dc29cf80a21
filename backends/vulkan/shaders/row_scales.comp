#version 450
// For MATMUL in cooperative matrices, once per weight: unscale[m] of each row of w[m, k]. One group a row.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "blocks.glsl"
#include "scale.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kThreads = 128;
layout(constant_id = 2) const uint kType = 0;

layout(push_constant) uniform Push {
  Params params;
  uint w, unscale;  // entries of params
  uint k, m, row_bytes;
};

shared float tops[kThreads];

void main() {
  const uint lane = gl_LocalInvocationID.x, row = folded_group();
  if (row >= m) return;  // the whole group alike
  float top = 0.0;
  for (uint u = lane; u < k / 8u; u += kThreads) {
    vec4 a, b;
    uvec2 at;
    load_unit(kType, params.entry[w], row * row_bytes, u, a, b, at);
    const vec4 c = max(abs(a), abs(b));
    top = max(top, max(max(c.x, c.y), max(c.z, c.w)));
  }
  tops[lane] = top;
  barrier();
  if (lane != 0u) return;
  for (uint i = 1u; i < kThreads; ++i) top = max(top, tops[i]);
  Floats(params.entry[unscale]).v[row] = unscale_of(top);
}
