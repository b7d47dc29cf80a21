// What every shader shares. Memory is reached by address (VK_KHR_buffer_device_address): there are no descriptors, so there is neither a limit on
// the range of a buffer nor an alignment of its offset, and a command buffer recorded once serves every submit.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_control_flow_attributes : require

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer Floats { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Words4 { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Floats4 { vec4 v[]; };

// What changes from submit to submit, written by the host: struct Params of executable.cpp.
layout(buffer_reference, std430, buffer_reference_align = 16) buffer Params {
  uint n_tokens, pos;
  uint bad_row;  // 1 + the row whose input is out of range, 0 if none: a shader's one way to fail
  uint reserved;
  uvec2 entry[];  // the address of each tensor, then the constants of the steps
};

// FTH_DTYPE_*
const uint F32 = 0, F16 = 1, BF16 = 2, Q8_0 = 3, Q4_0 = 4, Q4_1 = 5, Q6_K = 6, Q4_K = 7;

// The index of a workgroup whose x dimension may have been folded into z, because the device limits x.
uint folded_group() { return gl_WorkGroupID.x + gl_WorkGroupID.z * gl_NumWorkGroups.x; }

// f32 to f16 bits, to nearest even. packHalf2x16 leaves the rounding to the driver.
uint f16_bits(float value) {
  const uint bits = floatBitsToUint(value), sign = (bits >> 16) & 0x8000u, a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return sign | 0x7e00u;
  if (a >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above
  if (a < 0x33000001u) return sign;             // 2^-25 and below
  const uint exponent = a >> 23;
  uint shift = 13u, mantissa = a - (112u << 23);
  if (exponent < 113u) {  // subnormal as f16
    shift = 126u - exponent;
    mantissa = (a & 0x7fffffu) | 0x800000u;
  }
  const uint half_unit = 1u << (shift - 1u), rest = mantissa & ((half_unit << 1) - 1u);
  uint result = mantissa >> shift;
  if (rest > half_unit || (rest == half_unit && (result & 1u) != 0u)) ++result;
  return sign | result;
}
