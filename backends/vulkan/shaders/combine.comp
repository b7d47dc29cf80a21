#version 450
// COMBINE: out[n] = x[n] + sum over ranks, in order, of weights[n, rank] * y[n * K + rank]. x and out may be one buffer.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x_id = 0) in;

layout(push_constant) uniform Push {
  Params params;
  uint x, y, weights, result;
  uint width, top_k;
};

void main() {
  const uint e = folded_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x, token = gl_WorkGroupID.y;
  if (e >= width || token >= params.n_tokens) return;
  Floats terms = Floats(params.entry[y]), gates = Floats(params.entry[weights]);
  float sum = Floats(params.entry[x]).v[token * width + e];
  for (uint rank = token * top_k; rank < (token + 1u) * top_k; ++rank) sum += gates.v[rank] * terms.v[rank * width + e];
  Floats(params.entry[result]).v[token * width + e] = sum;
}
