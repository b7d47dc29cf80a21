#pragma once
// A runtime that fails on demand: these functions stand in front of OpenVINO's, for the plugin that is loaded beside them.

#include <cstdint>

namespace fth::openvino_test {

struct Fault {
  bool compile = false, start = false, wait = false;  // each throws as OpenVINO does
  uint32_t compiled = 0;                              // graphs that were compiled
};
Fault& fault();

}  // namespace fth::openvino_test
