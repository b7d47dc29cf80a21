// The kernels for AVX2 with FMA and F16C.
#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

#include "backends/cpu/kernels/x86_vectors256.inc"

}  // namespace

const KernelTable kAvx2 = make_table("avx2");

}  // namespace fth::cpu
