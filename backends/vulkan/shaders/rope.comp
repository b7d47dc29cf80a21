#version 450
// ROPE. Thread j of a head turns pair j, or copies a value that is not rotated. Angles are phases in units of 2^-32 turn: position times a 64-bit
// fixed-point frequency, which is exact at any position, where a product of floats is off by whole turns; sine and cosine are polynomials, because
// the language allows sin() an error of 2^-11.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x_id = 0) in;

layout(push_constant) uniform Push {
  Params params;
  uint x, y;
  uint frequency;  // the first of rotated / 2 entries: turns per position, times 2^64
  uint heads, head_dim, half_rotated, adjacent;
};

vec2 cos_sin(uint phase) {
  const uint quadrant = (phase + 0x20000000u) >> 30;
  const float a = float(int(phase - (quadrant << 30))) * 1.4629180792671596e-9;  // 2 pi / 2^32; |a| <= pi / 4
  const float z = a * a;
  const float s = a * (1.0 + z * (-1.0 / 6.0 + z * (1.0 / 120.0 + z * (-1.0 / 5040.0 + z / 362880.0))));
  const float c = 1.0 + z * (-0.5 + z * (1.0 / 24.0 + z * (-1.0 / 720.0 + z * (1.0 / 40320.0 - z / 3628800.0))));
  const vec2 even = vec2(c, s), odd = vec2(-s, c);
  const vec2 r = (quadrant & 1u) != 0u ? odd : even;
  return (quadrant & 2u) != 0u ? -r : r;
}

void main() {
  const uint per_head = head_dim - half_rotated, per_token = heads * per_head;
  const uint i = folded_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x, token = gl_WorkGroupID.y;
  if (i >= per_token || token >= params.n_tokens) return;
  const uint j = i % per_head, base = (token * heads + i / per_head) * head_dim;
  Floats src = Floats(params.entry[x]), dst = Floats(params.entry[y]);
  if (j >= half_rotated) {
    dst.v[base + half_rotated + j] = src.v[base + half_rotated + j];
    return;
  }
  const uvec2 f = params.entry[frequency + j];
  const uint position = params.pos + token;
  uint high, low;
  umulExtended(position, f.x, high, low);
  const vec2 cs = cos_sin(high + position * f.y);
  const uint first = base + (adjacent != 0u ? 2u * j : j), second = first + (adjacent != 0u ? 1u : half_rotated);
  const float a = src.v[first], b = src.v[second];
  dst.v[first] = a * cs.x - b * cs.y;
  dst.v[second] = a * cs.y + b * cs.x;
}
