// The kernels for AVX-512 F, BW, DQ and VL, without VNNI.
#if !defined(__clang__)  // g++ 12 warns of its own _mm512_undefined_* (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {
namespace {

#include "backends/cpu/kernels/x86_512.inc"

}  // namespace

const KernelTable kAvx512 = make_table("avx512");

}  // namespace fth::cpu
