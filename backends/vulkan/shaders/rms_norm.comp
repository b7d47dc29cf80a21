#version 450
// RMS_NORM: y = x / sqrt(mean(x^2) + eps) * weight, one workgroup per row.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kThreads = 128;  // the local size again, a power of two

layout(push_constant) uniform Push {
  Params params;
  uint x, weight, y;
  uint width;
  float eps;
};

shared float sums[kThreads];

void main() {
  const uint row = gl_WorkGroupID.x, t = gl_LocalInvocationID.x;
  if (row >= params.n_tokens) return;
  Floats src = Floats(params.entry[x]), scale = Floats(params.entry[weight]), dst = Floats(params.entry[y]);
  float sum = 0.0;
  for (uint i = t; i < width; i += kThreads) sum = fma(src.v[row * width + i], src.v[row * width + i], sum);
  sums[t] = sum;
  barrier();
  for (uint step = kThreads / 2u; step > 0u; step >>= 1) {
    if (t < step) sums[t] += sums[t + step];
    barrier();
  }
  const float r = 1.0 / sqrt(sums[0] / float(width) + eps);
  for (uint i = t; i < width; i += kThreads) dst.v[row * width + i] = src.v[row * width + i] * r * scale.v[i];
}
