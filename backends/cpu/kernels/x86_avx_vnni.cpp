// The kernels for AVX2 with FMA and F16C and with AVX-VNNI: VNNI on 256 bits, without AVX-512.
#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

#include "backends/cpu/kernels/x86_vectors256.inc"

}  // namespace

const KernelTable kAvxVnni = make_table("avx_vnni");

}  // namespace fth::cpu
