#pragma once
// What the machine says about itself.

#include <cstdint>
#include <string>

namespace fth::cpu {

std::string cpu_model();  // "AMD EPYC 7B13", from /proc/cpuinfo; the architecture's name when it does not say

struct MemoryBytes {
  uint64_t total = 0, available = 0;  // of the machine; 0 = not known
};
MemoryBytes memory_bytes();

}  // namespace fth::cpu
