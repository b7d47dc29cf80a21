#pragma once
// The CPU device's kernel tables, read from its description (plugins/abi/fth_backend.h: "for a CPU the kernel tables with the reason for each
// that is not used"): "AMD EPYC 7B13; kernels avx2; not used: avx512 (no avx512_vnni in cpuid), generic".

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fth::cli {

struct KernelSet {
  std::string name;
  bool used = false, runs = false;
  std::string reason;  // why this machine cannot run it
};

// Best first. Empty for a description of another form.
std::vector<KernelSet> kernel_sets(std::string_view description);
// The description has room for 191 bytes; the device logs it whole. That line without its prefix if it is among `log`, else the description.
std::string_view whole_description(std::string_view description, std::span<const std::string> log);

}  // namespace fth::cli
