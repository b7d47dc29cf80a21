// The executable exports ov::Core::compile_model and the like; the plugin's calls find these first, and they pass the call on to the library's.

#include "tests/openvino/faults.h"

#include <dlfcn.h>

#include <stdexcept>

#include <openvino/runtime/core.hpp>

namespace fth::openvino_test {

Fault& fault() {
  static Fault f;
  return f;
}

namespace {

void fail_if(bool wanted) {
  if (wanted) throw std::runtime_error("Exception from src/driver.cpp:7:\n\nthe driver is gone\n");
}

void* next(const char* name) {
  void* const f = dlsym(RTLD_NEXT, name);
  if (f == nullptr) throw std::runtime_error(name);
  return f;
}

}  // namespace
}  // namespace fth::openvino_test

namespace ov {

using fth::openvino_test::fault;

// As the boundary's code calls them: `this` is the first parameter.
CompiledModel Core::compile_model(const std::shared_ptr<const Model>& model, const std::string& device, const AnyMap& properties) {
  fth::openvino_test::fail_if(fault().compile);
  ++fault().compiled;
  using Compile = CompiledModel (*)(Core*, const std::shared_ptr<const Model>&, const std::string&, const AnyMap&);
  static const auto real =
      reinterpret_cast<Compile>(fth::openvino_test::next("_ZN2ov4Core13compile_modelERKSt10shared_ptrIKNS_5ModelEERKNSt7__cxx1112basic_"
                                                         "stringIcSt11char_traitsIcESaIcEEERKSt3mapISC_NS_3AnyESt4lessISC_"
                                                         "ESaISt4pairISD_SG_EEE"));
  return real(this, model, device, properties);
}

void InferRequest::start_async() {
  fth::openvino_test::fail_if(fault().start);
  static const auto real = reinterpret_cast<void (*)(InferRequest*)>(fth::openvino_test::next("_ZN2ov12InferRequest11start_asyncEv"));
  real(this);
}

void InferRequest::wait() {
  static const auto real = reinterpret_cast<void (*)(InferRequest*)>(fth::openvino_test::next("_ZN2ov12InferRequest4waitEv"));
  real(this);
  fth::openvino_test::fail_if(fault().wait);
}

}  // namespace ov
