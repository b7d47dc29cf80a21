// Weights of every dtype, read in place. A unit is 8 values of a row: two runs of 4 neighbours, at k = `at.x` and k = `at.y`. Units 0, 1, 2 ... of a
// row lie one after the other in memory, so neighbouring lanes read neighbouring words. Offsets are bytes from the tensor's start; blocks of
// q4_0, q8_0 and q6_k are only 2-aligned, hence load32. Only 32-bit words are read: no 8- or 16-bit storage feature is needed.

uint load32(Words w, uint offset) {
  const uint i = offset >> 2, odd = (offset >> 1) & 1u;
  const uint low = w.v[i], high = w.v[i + odd];
  return odd != 0u ? (low >> 16) | (high << 16) : low;
}
uint load16(Words w, uint offset) { return (w.v[offset >> 2] >> (8u * (offset & 2u))) & 0xffffu; }
float load_half(Words w, uint offset) { return unpackHalf2x16(load16(w, offset)).x; }
int load_i8(Words w, uint offset) { return bitfieldExtract(int(w.v[offset >> 2]), int(8u * (offset & 3u)), 8); }

vec4 nibbles(uint q) { return vec4(q & 15u, (q >> 8) & 15u, (q >> 16) & 15u, (q >> 24) & 15u); }
vec4 signed_bytes(uint q) {
  const int s = int(q);
  return vec4(bitfieldExtract(s, 0, 8), bitfieldExtract(s, 8, 8), bitfieldExtract(s, 16, 8), bitfieldExtract(s, 24, 8));
}
uint byte_of(uint word, uint i) { return (word >> (8u * i)) & 255u; }

// Scale and minimum of group `g` of a q4_k block: 6 bits each, in the three words s.
vec2 group_scale(uvec3 s, uint g) {
  const uint h = g & 3u;
  if (g < 4u) return vec2(byte_of(s.x, h) & 63u, byte_of(s.y, h) & 63u);
  const uint low = byte_of(s.z, h);
  return vec2((low & 15u) | ((byte_of(s.x, h) >> 6) << 4), (low >> 4) | ((byte_of(s.y, h) >> 6) << 4));
}

// The values of unit `u` of the row that starts at byte `row`. The dtype is a specialisation constant: one branch is left in each pipeline.
void load_unit(uint dtype, uvec2 address, uint row, uint u, out vec4 a, out vec4 b, out uvec2 at) {
  Words w = Words(address);
  if (dtype == F32) {
    Floats4 f = Floats4(address);
    at = uvec2(8u * u, 8u * u + 4u);
    a = f.v[(row >> 4) + 2u * u];
    b = f.v[(row >> 4) + 2u * u + 1u];
  } else if (dtype == F16) {
    const uvec4 q = Words4(address).v[(row >> 4) + u];
    at = uvec2(8u * u, 8u * u + 4u);
    a = vec4(unpackHalf2x16(q.x), unpackHalf2x16(q.y));
    b = vec4(unpackHalf2x16(q.z), unpackHalf2x16(q.w));
  } else if (dtype == BF16) {
    const uvec4 q = Words4(address).v[(row >> 4) + u];
    at = uvec2(8u * u, 8u * u + 4u);
    a = uintBitsToFloat(uvec4(q.x << 16, q.x & 0xffff0000u, q.y << 16, q.y & 0xffff0000u));
    b = uintBitsToFloat(uvec4(q.z << 16, q.z & 0xffff0000u, q.w << 16, q.w & 0xffff0000u));
  } else if (dtype == Q8_0) {
    const uint block = row + (u >> 2) * 34u, k = 8u * u;
    const float d = load_half(w, block);
    at = uvec2(k, k + 4u);
    a = d * signed_bytes(load32(w, block + 2u + 8u * (u & 3u)));
    b = d * signed_bytes(load32(w, block + 6u + 8u * (u & 3u)));
  } else if (dtype == Q4_0 || dtype == Q4_1) {
    const bool has_min = dtype == Q4_1;
    const uint block = row + (u >> 2) * (has_min ? 20u : 18u), k = (u >> 2) * 32u + (u & 3u) * 4u;
    const uint q = load32(w, block + (has_min ? 4u : 2u) + 4u * (u & 3u));
    const float d = load_half(w, block);
    at = uvec2(k, k + 16u);
    if (has_min) {
      const float m = load_half(w, block + 2u);
      a = d * nibbles(q) + m;
      b = d * nibbles(q >> 4) + m;
    } else {
      a = d * (nibbles(q) - 8.0);
      b = d * (nibbles(q >> 4) - 8.0);
    }
  } else if (dtype == Q4_K) {
    const uint block = (row + (u >> 5) * 144u) >> 2, j = u & 31u, g = 2u * (j >> 3), k = (u >> 5) * 256u + g * 32u + (j & 7u) * 4u;
    const vec2 d = unpackHalf2x16(w.v[block]);
    const uvec3 s = uvec3(w.v[block + 1u], w.v[block + 2u], w.v[block + 3u]);
    const uint q = w.v[block + 4u + j];
    const vec2 low = d * group_scale(s, g), high = d * group_scale(s, g + 1u);
    at = uvec2(k, k + 32u);
    a = low.x * nibbles(q) - low.y;
    b = high.x * nibbles(q >> 4) - high.y;
  } else {  // Q6_K
    const uint block = row + (u >> 5) * 210u, h = (u >> 4) & 1u, t = u & 15u, k = (u >> 5) * 256u + h * 128u + t * 4u;
    const uint low = load32(w, block + h * 64u + t * 4u);
    const uint high = load32(w, block + 128u + h * 32u + (t & 7u) * 4u) >> (2u * (t >> 3));
    const float d = load_half(w, block + 208u);
    const uint scales = block + 192u + h * 8u + (t >> 2);
    at = uvec2(k, k + 64u);
    a = d * float(load_i8(w, scales)) * (nibbles((low & 0x0f0f0f0fu)) + 16.0 * nibbles(high & 0x03030303u) - 32.0);
    b = d * float(load_i8(w, scales + 4u)) * (nibbles((low >> 4) & 0x0f0f0f0fu) + 16.0 * nibbles((high >> 4) & 0x03030303u) - 32.0);
  }
}

// Value k of a row of a float dtype, whatever its length and alignment.
float load_value(uint dtype, uvec2 address, uint row, uint k) {
  Words w = Words(address);
  if (dtype == F32) return Floats(address).v[(row >> 2) + k];
  const uint bits = load16(w, row + 2u * k);
  return dtype == F16 ? unpackHalf2x16(bits).x : uintBitsToFloat(bits << 16);
}
