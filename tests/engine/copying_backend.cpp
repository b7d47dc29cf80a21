// The cpu backend behind a device that cannot read host memory: every activation that it needs is copied in, every result copied out. Placed beside
// the real one it shows that the engine moves what must move, and nothing stale is read.
#include <cstdio>
#include <cstring>

#include "plugins/abi/fth_backend.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace {

const fth_backend* g_cpu = nullptr;  // set once by the query, before any other call

fth_code info(fth_device* device, fth_device_info* out, fth_error* err) {
  const fth_code code = g_cpu->info(device, out, err);
  if (code != FTH_OK) return code;
  out->flags &= ~static_cast<uint32_t>(FTH_DEVICE_HOST_MEMORY);
  out->kind = FTH_KIND_GPU;
  out->free_bytes = out->memory_bytes = uint64_t{1} << 30;
  std::snprintf(out->name, sizeof out->name, "copying:0");
  return FTH_OK;
}

fth_code import_host(fth_device*, void*, uint64_t, fth_buffer**, fth_error* err) {
  std::snprintf(err->message, sizeof err->message, "copying: host memory cannot be read in place");
  return FTH_UNIMPLEMENTED;
}

}  // namespace

extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t abi_major, const fth_host* host) {
  g_cpu = fth_cpu_query(abi_major, host);
  if (g_cpu == nullptr) return nullptr;
  static fth_backend table = *g_cpu;
  table.name = "copying";
  table.info = info;
  table.import_host = import_host;
  return &table;
}
