// The cpu backend behind a device that takes its time to compile, cannot compile one segment nor any expert, and holds the host to the boundary's rule: one thread at a
// time. Named slow:0; it works in the host's memory. Options: kind=npu and kind=gpu, what it says it is instead of a CPU; compile_ms=N, how long each compilation takes.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "plugins/abi/fth_backend.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace {

const fth_backend* g_cpu = nullptr;  // set once by the query, before any other call
std::atomic<int> g_inside{0};        // calls of the device's functions that are running
std::atomic<int> g_compile_ms{20};
std::atomic<uint32_t> g_kind{FTH_KIND_CPU};

// Counts one call; `alone` is false when there is another.
struct Call {
  const bool alone = g_inside.fetch_add(1) == 0;
  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
  ~Call() { g_inside.fetch_sub(1); }
};

fth_code two_threads(fth_error* err) {
  std::snprintf(err->message, sizeof err->message, "slow: called from two threads at a time");
  return FTH_INTERNAL;
}

// One device at a time: the options are the plugin's.
fth_code open(uint32_t index, const char* options, fth_device** out, fth_error* err) {
  g_compile_ms = 20;
  g_kind = FTH_KIND_CPU;
  std::string rest = options == nullptr ? "" : options;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(','), rest.size());
    const std::string one = rest.substr(0, comma);
    rest.erase(0, comma + 1);
    if (one == "kind=npu" || one == "kind=gpu") {
      g_kind = one == "kind=npu" ? FTH_KIND_NPU : FTH_KIND_GPU;
    } else if (one.rfind("compile_ms=", 0) == 0) {
      g_compile_ms = std::atoi(one.c_str() + 11);
    } else {
      std::snprintf(err->message, sizeof err->message, "slow: the options are kind and compile_ms");
      return FTH_INVALID_ARGUMENT;
    }
  }
  return g_cpu->open(index, nullptr, out, err);
}

fth_code info(fth_device* device, fth_device_info* out, fth_error* err) {
  const fth_code code = g_cpu->info(device, out, err);
  if (code != FTH_OK) return code;
  out->kind = g_kind;
  std::snprintf(out->name, sizeof out->name, "slow:0");
  return code;
}

fth_code compile(fth_device* device, const fth_segment* segment, const fth_binding* weights, uint32_t n_weights, fth_executable** out,
                 fth_error* err) {
  const Call call;
  std::this_thread::sleep_for(std::chrono::milliseconds(g_compile_ms.load()));
  if (!call.alone) return two_threads(err);
  if (std::strncmp(segment->name, "layer.5.attention.", 18) == 0) {
    std::snprintf(err->message, sizeof err->message, "slow: no room for it");
    return FTH_UNAVAILABLE;
  }
  if (std::strstr(segment->name, ".experts.") != nullptr) {
    std::snprintf(err->message, sizeof err->message, "slow: experts are beyond it");
    return FTH_UNAVAILABLE;
  }
  return g_cpu->compile(device, segment, weights, n_weights, out, err);
}

fth_code import_host(fth_device* device, void* p, uint64_t bytes, fth_buffer** out, fth_error* err) {
  const Call call;
  return call.alone ? g_cpu->import_host(device, p, bytes, out, err) : two_threads(err);
}

fth_code submit(fth_executable* x, const fth_binding* bindings, uint32_t n_bindings, const int64_t* scalars, fth_event** out,
                fth_error* err) {
  const Call call;
  return call.alone ? g_cpu->submit(x, bindings, n_bindings, scalars, out, err) : two_threads(err);
}

}  // namespace

extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t abi_major, const fth_host* host) {
  g_cpu = fth_cpu_query(abi_major, host);
  if (g_cpu == nullptr) return nullptr;
  static fth_backend table = *g_cpu;
  table.name = "slow";
  table.open = open;
  table.info = info;
  table.compile = compile;
  table.import_host = import_host;
  table.submit = submit;
  return &table;
}
