#version 450
// ADD and GLU: one thread per value.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kKind = 0;  // 0 a + b, 1 relu(a) * b, 2 silu(a) * b

layout(push_constant) uniform Push {
  Params params;
  uint a, b, y;
  uint width;
};

void main() {
  const uint i = folded_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x;
  if (i >= params.n_tokens * width) return;
  const float p = Floats(params.entry[a]).v[i], q = Floats(params.entry[b]).v[i];
  float r = p + q;
  if (kKind == 1u) r = max(p, 0.0) * q;
  if (kKind == 2u) r = p / (1.0 + exp(-p)) * q;
  Floats(params.entry[y]).v[i] = r;
}
