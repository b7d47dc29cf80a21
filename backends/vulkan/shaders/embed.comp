#version 450
// EMBED: y[n] = row ids[n] of the table, one thread per unit of 8 values (or per value where rows are no whole units). An id outside of the table
// writes nothing and is reported through bad_row.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"
#include "blocks.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kType = 0;

layout(push_constant) uniform Push {
  Params params;
  uint ids, table, y;
  uint width, vocab, row_bytes;
  uint by_value;
};

void main() {
  const uint i = folded_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x, token = gl_WorkGroupID.y;
  if (token >= params.n_tokens || i >= (by_value != 0u ? width : width / 8u)) return;
  const uint id = Words(params.entry[ids]).v[token];
  if (id >= vocab) {
    atomicMax(params.bad_row, token + 1u);
    return;
  }
  Floats dst = Floats(params.entry[y]);
  if (by_value != 0u) {
    dst.v[token * width + i] = load_value(kType, params.entry[table], id * row_bytes, i);
    return;
  }
  vec4 a, b;
  uvec2 at;
  load_unit(kType, params.entry[table], id * row_bytes, i, a, b, at);
  [[unroll]] for (uint j = 0; j < 4u; ++j) {
    dst.v[token * width + at.x + j] = a[j];
    dst.v[token * width + at.y + j] = b[j];
  }
}
