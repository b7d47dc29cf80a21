#version 450
// The first half of ATTENTION: row n's k and v go to cell (pos + n) % C of their caches. One thread per word of a cell.
#extension GL_GOOGLE_include_directive : require
#include "common.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint kType = 0;  // of the caches: F32 or F16

layout(push_constant) uniform Push {
  Params params;
  uint k, v, k_cache, v_cache;
  uint width, cells;  // values of a cell
};

void main() {
  const uint words = kType == F16 ? width / 2u : width;
  const uint i = folded_group() * gl_WorkGroupSize.x + gl_LocalInvocationID.x, token = gl_WorkGroupID.y;
  if (i >= 2u * words || token >= params.n_tokens) return;
  const bool is_v = i >= words;
  const uint word = is_v ? i - words : i, cell = (params.pos + token) % cells;
  Floats src = Floats(params.entry[is_v ? v : k]);
  Words dst = Words(params.entry[is_v ? v_cache : k_cache]);
  if (kType == F16) {
    const uint at = token * width + 2u * word;
    dst.v[cell * words + word] = f16_bits(src.v[at]) | (f16_bits(src.v[at + 1u]) << 16);
  } else {
    dst.v[cell * words + word] = floatBitsToUint(src.v[token * width + word]);
  }
}
