// The executable exports openat, which the standard library lists folders with, and ov::Core::compile_model and the like; the plugin's calls find these first, and they pass the call on to the library's.

#include "tests/openvino/faults.h"

#include <dlfcn.h>
#include <fcntl.h>

#include <cstdarg>

#include <stdexcept>

#include <openvino/runtime/core.hpp>
#include <openvino/runtime/properties.hpp>

namespace fth::openvino_test {

Fault& fault() {
  static Fault f;
  return f;
}

namespace {

void fail_if(bool wanted) {
  if (wanted) throw std::runtime_error("Exception from src/driver.cpp:7:\n\nthe driver is gone\n");
}

// One of the devices that are not there.
bool is_made_up(const std::string& device) { return !fault().dev.empty() && device != "CPU"; }

void* next(const char* name) {
  void* const f = dlsym(RTLD_NEXT, name);
  if (f == nullptr) throw std::runtime_error(name);
  return f;
}

}  // namespace
}  // namespace fth::openvino_test

extern "C" __attribute__((visibility("default"))) int openat(int at, const char* path, int flags, ...) {
  using fth::openvino_test::fault;
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  static const auto real = reinterpret_cast<int (*)(int, const char*, int, ...)>(dlsym(RTLD_NEXT, "openat"));
  const std::string wanted = path;
  if (!fault().dev.empty() && wanted.rfind("/dev/", 0) == 0) return real(at, (fault().dev + wanted.substr(4)).c_str(), flags, mode);
  return real(at, path, flags, mode);
}

namespace ov {

using fth::openvino_test::fault;

// As the boundary's code calls them: `this` is the first parameter.
CompiledModel Core::compile_model(const std::shared_ptr<const Model>& model, const std::string& device, const AnyMap& properties) {
  fth::openvino_test::fail_if(fault().compile);
  if (fth::openvino_test::is_made_up(device)) {
    for (const auto& op : model->get_ops())
      fth::openvino_test::fail_if(fault().no_int4 && op->get_output_size() > 0 && op->get_output_element_type(0).bitwidth() == 4);
    return compile_model(model, "CPU", {});
  }
  ++fault().compiled;
  using Compile = CompiledModel (*)(Core*, const std::shared_ptr<const Model>&, const std::string&, const AnyMap&);
  static const auto real =
      reinterpret_cast<Compile>(fth::openvino_test::next("_ZN2ov4Core13compile_modelERKSt10shared_ptrIKNS_5ModelEERKNSt7__cxx1112basic_"
                                                         "stringIcSt11char_traitsIcESaIcEEERKSt3mapISC_NS_3AnyESt4lessISC_"
                                                         "ESaISt4pairISD_SG_EEE"));
  return real(this, model, device, properties);
}

Any Core::get_property(const std::string& device, const std::string& name, const AnyMap& arguments) const {
  const bool made_up = fth::openvino_test::is_made_up(device);
  if (made_up && name == available_devices.name())
    return device == "GPU" ? std::vector<std::string>{"0", "1"} : std::vector<std::string>{"4000"};
  if (made_up && name == device::full_name.name()) return std::string("made up");
  using Get = Any (*)(const Core*, const std::string&, const std::string&, const AnyMap&);
  static const auto real =
      reinterpret_cast<Get>(fth::openvino_test::next("_ZNK2ov4Core12get_propertyERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEES8_"
                                                     "RKSt3mapIS6_NS_3AnyESt4lessIS6_ESaISt4pairIS7_SA_EEE"));
  return real(this, made_up ? "CPU" : device, name, arguments);
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
