// Powers of two that bring the rows of a product into the range of f16 and back. A row's largest value is scaled to between 2^14 and 2^15, below where
// f16 ends: values down to 2^-28 of it keep all bits of f16, and none above 2^-38 of it becomes zero.

// What a scaled row is multiplied by at the end, for a row whose largest magnitude is `top`. 1 for a row of zeros.
float unscale_of(float top) {
  const uint exponent = floatBitsToUint(top) >> 23;
  return top == 0.0 ? 1.0 : uintBitsToFloat((clamp(exponent, 15u, 254u) - 14u) << 23);
}
// 1 / unscale, exactly.
float scale_of(float unscale) { return uintBitsToFloat((254u << 23) - floatBitsToUint(unscale)); }
