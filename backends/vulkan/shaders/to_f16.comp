#version 450
// For MATMUL in cooperative matrices, once per x[n, k]: its rows in f16, each scaled by a power of two of its own and padded with zeros to kp values.
// The result holds unscale[rows] first, then the values from word `values` on. One group a row.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "scale.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kThreads = 128;

layout(push_constant) uniform Push {
  Params params;
  uint x, y;  // entries of params
  uint k, kp, values;
};

shared float tops[kThreads];

void main() {
  const uint lane = gl_LocalInvocationID.x, row = folded_group();
  if (row >= params.n_tokens) return;  // the whole group alike
  Floats4 from = Floats4(params.entry[x]);
  Words to = Words(params.entry[y]);
  float top = 0.0;
  for (uint i = lane; i < k / 4u; i += kThreads) {
    const vec4 a = abs(from.v[row * (k / 4u) + i]);
    top = max(top, max(max(a.x, a.y), max(a.z, a.w)));
  }
  tops[lane] = top;
  barrier();
  top = 0.0;
  for (uint i = 0u; i < kThreads; ++i) top = max(top, tops[i]);
  const float unscale = unscale_of(top), scale = scale_of(unscale);
  if (lane == 0u) Floats(params.entry[y]).v[row] = unscale;
  for (uint i = lane; i < kp / 4u; i += kThreads) {
    const vec4 a = i < k / 4u ? from.v[row * (k / 4u) + i] * scale : vec4(0.0);
    const uint at = values + row * (kp / 2u) + 2u * i;
    to.v[at] = f16_bits(a.x) | f16_bits(a.y) << 16;
    to.v[at + 1u] = f16_bits(a.z) | f16_bits(a.w) << 16;
  }
}
