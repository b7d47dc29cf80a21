// The cpu backend, which keeps what it should free when the option leak=WHAT says so: device, buffer, segment or run (an object of each), file, thread or
// memory (one with each segment that is released), log (it logs an error then). What is kept can still be reached: a sanitizer has nothing to say of it.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "plugins/abi/fth_backend.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace {

const fth_backend* g_cpu = nullptr;  // set once by the query, before any other call
const fth_host* g_host = nullptr;
std::string g_leak;
std::vector<void*>& kept() {
  static auto* const all = new std::vector<void*>;
  return *all;
}

fth_code open(uint32_t index, const char* options, fth_device** out, fth_error* err) {
  const std::string given = options == nullptr ? "" : options;
  if (!given.empty() && given.rfind("leak=", 0) != 0) {
    std::snprintf(err->message, sizeof err->message, "leaking: the one option is leak");
    return FTH_INVALID_ARGUMENT;
  }
  g_leak = given.empty() ? "" : given.substr(5);
  return g_cpu->open(index, nullptr, out, err);
}
void close(fth_device* d) { g_leak == "device" ? kept().push_back(d) : g_cpu->close(d); }
void free_buffer(fth_buffer* b) { g_leak == "buffer" ? kept().push_back(b) : g_cpu->free(b); }
void release(fth_executable* x) {
  if (g_leak == "segment") return kept().push_back(x);
  g_cpu->release(x);
  if (g_leak == "file") (void)!::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (g_leak == "thread") std::thread([] { ::pause(); }).detach();
  if (g_leak == "memory") (void)::mmap(nullptr, 1 << 16, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (g_leak == "log") g_host->log(g_host->self, FTH_LOG_ERROR, "an object outlives its device");
}
fth_code wait(fth_event* event, fth_error* err) {
  if (g_leak == "run") kept().push_back(::operator new(16));
  return g_cpu->wait(event, err);
}

}  // namespace

extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t abi_major, const fth_host* host) {
  g_cpu = fth_cpu_query(abi_major, host);
  g_host = host;
  if (g_cpu == nullptr) return nullptr;
  static fth_backend table = *g_cpu;
  table.name = "leaking";
  table.open = open;
  table.close = close;
  table.free = free_buffer;
  table.release = release;
  table.wait = wait;
  return &table;
}
