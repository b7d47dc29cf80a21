#pragma once
// The most floating-point work that all threads together can do, measured: the flat part of the roofline.

#include <cstdint>

namespace fth::cli {

// f32 multiply-adds (two FLOP each) per second, from registers, on n threads for about 60 ms; with the widest fused instructions that this CPU has.
// 0 when no thread can be started. Integer products may be faster than this.
double peak_flops(uint32_t n_threads);

}  // namespace fth::cli
