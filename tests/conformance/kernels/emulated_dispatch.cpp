// Stands in for backends/cpu/kernels/dispatch.cpp: the emulated tables run on any machine with AVX2.
#include "backends/cpu/kernels/kernels.h"

namespace fth::cpu {

size_t kernel_choices(const KernelChoice** out) {
  static const KernelChoice choices[] = {
      {&kAvx512Vnni, nullptr}, {&kAvxVnni, nullptr}, {&kAvx512, nullptr}, {&kAvx2, nullptr}, {&kGeneric, nullptr}};
  *out = choices;
  return sizeof choices / sizeof choices[0];
}

}  // namespace fth::cpu
