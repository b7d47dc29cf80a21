// EMBED: y[n] = row ids[n] of the table, a work-item per unit of 32 values, or per value where rows are no whole units. An id outside of the table
// writes nothing and leaves 1 + its row in bad_row.

__kernel void embed(TENSOR(ids), TENSOR(table), RESULT(y), uint width, uint vocabulary, ulong row_bytes, __global uint *bad_row) {
  const uint i = get_global_id(0), token = get_global_id(1);
#if BY_VALUE
  if (i >= width) return;
#else
  if (i >= width / 32u) return;
#endif
  const uint id = ((__global const uint *)BYTES(ids))[token];
  if (id >= vocabulary) {
    atomic_max(bad_row, token + 1u);
    return;
  }
  __global const uchar *row = BYTES(table) + id * row_bytes;
  __global float *dst = OUT_FLOATS(y) + (size_t)token * width;
#if BY_VALUE
  dst[i] = load_value(row, i);
#else
  float16 a, b;
  load_unit(row, i, &a, &b);
  vstore16(a, 2u * i, dst);
  vstore16(b, 2u * i + 1u, dst);
#endif
}
