#pragma once
// A runtime that fails on demand, and devices that are not there: these functions stand in front of OpenVINO's, for the plugin that is loaded beside them.

#include <cstdint>
#include <string>

namespace fth::openvino_test {

struct Fault {
  bool compile = false, start = false, wait = false;  // each throws as OpenVINO does
  uint32_t compiled = 0;                              // graphs that were compiled
  // A folder that is taken for /dev; empty: the machine's own. Its NPU and two GPUs have names, and the CPU device computes for them.
  std::string dev;
  bool no_int4 = false;  // they compile no graph with weights of 4 bits
};
Fault& fault();

}  // namespace fth::openvino_test
