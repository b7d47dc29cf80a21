// The kernels for AVX2 with FMA and F16C.
#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

#include "backends/cpu/kernels/x86_vectors256.inc"
// After it, as they use all of it.
#include "backends/cpu/kernels/x86_live.inc"
#include "backends/cpu/kernels/x86_pairs.inc"

constexpr KernelTable table_with_pairs() {
  KernelTable t = make_table("avx2");
  t.matmul_pairs[4] = matmul_pairs<Q4_0>;
  t.matmul_pairs[5] = matmul_pairs<Q4_1>;
  t.pair_q8 = pair_q8;
  t.live_pairs = live_pairs;
  t.matmul_live[4] = matmul_live;
  t.list_live = list_live_groups;
  return t;
}

}  // namespace

const KernelTable kAvx2 = table_with_pairs();

}  // namespace fth::cpu
