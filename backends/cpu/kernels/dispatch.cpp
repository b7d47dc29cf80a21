// Which tables this machine can run. Built without instruction set flags: it runs before anything is known about the processor.
#include "backends/cpu/kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace fth::cpu {
namespace {

#if defined(__x86_64__)

struct Features {
  uint32_t leaf1_ecx = 0, leaf7_ebx = 0, leaf7_ecx = 0, leaf7_1_eax = 0, xcr0 = 0;
};

Features read_features() {
  Features f;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d)) f.leaf1_ecx = c;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    f.leaf7_ebx = b;
    f.leaf7_ecx = c;
  }
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.leaf7_1_eax = a;
  // XGETBV by name needs -mxsave; the instruction exists wherever OSXSAVE says so.
  if (f.leaf1_ecx & bit_OSXSAVE) asm volatile("xgetbv" : "=a"(f.xcr0), "=d"(d) : "c"(0));
  return f;
}

const char* refuse_avx2(const Features& f) {
  if (!(f.leaf7_ebx & bit_AVX2)) return "cpuid has no avx2";
  if (!(f.leaf1_ecx & bit_FMA)) return "cpuid has no fma";
  if (!(f.leaf1_ecx & bit_F16C)) return "cpuid has no f16c";
  if ((f.xcr0 & 0x06) != 0x06) return "the operating system does not save AVX registers";
  return nullptr;
}

const char* refuse_avx_vnni(const Features& f) {
  constexpr uint32_t kAvxVnniBit = 1u << 4;
  if (!(f.leaf7_1_eax & kAvxVnniBit)) return "cpuid has no avx_vnni";
  return refuse_avx2(f);
}

const char* refuse_avx512(const Features& f) {
  if (!(f.leaf7_ebx & bit_AVX512F)) return "cpuid has no avx512f";
  if (!(f.leaf7_ebx & bit_AVX512BW)) return "cpuid has no avx512bw";
  if (!(f.leaf7_ebx & bit_AVX512DQ)) return "cpuid has no avx512dq";
  if (!(f.leaf7_ebx & bit_AVX512VL)) return "cpuid has no avx512vl";
  if ((f.xcr0 & 0xe6) != 0xe6) return "the operating system does not save AVX-512 registers";
  return refuse_avx2(f);
}

const char* refuse_avx512_vnni(const Features& f) {
  if (!(f.leaf7_ecx & bit_AVX512VNNI)) return "cpuid has no avx512_vnni";
  return refuse_avx512(f);
}

#elif defined(__aarch64__)

const char* refuse_dotprod() {
  constexpr unsigned long kAsimdDotProduct = 1UL << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kAsimdDotProduct) ? nullptr : "the kernel reports no asimddp (dot product)";
}

const char* refuse_i8mm() {
  constexpr unsigned long kI8mm = 1UL << 13;  // HWCAP2_I8MM
  if (!(getauxval(AT_HWCAP2) & kI8mm)) return "the kernel reports no i8mm (matrix products of bytes)";
  return refuse_dotprod();
}

#endif

}  // namespace

size_t kernel_choices(const KernelChoice** out) {
#if defined(__x86_64__)
  static const Features features = read_features();
  static const KernelChoice choices[] = {{&kAvx512Vnni, refuse_avx512_vnni(features)},
                                         {&kAvxVnni, refuse_avx_vnni(features)},
                                         {&kAvx512, refuse_avx512(features)},
                                         {&kAvx2, refuse_avx2(features)},
                                         {&kGeneric, nullptr}};
#elif defined(__aarch64__)
  static const KernelChoice choices[] = {{&kNeonI8mm, refuse_i8mm()}, {&kNeonDotprod, refuse_dotprod()}, {&kGeneric, nullptr}};
#else
  static const KernelChoice choices[] = {{&kGeneric, nullptr}};
#endif
  *out = choices;
  return sizeof choices / sizeof choices[0];
}

}  // namespace fth::cpu
