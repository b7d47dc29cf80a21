// The cpu backend behind a device of its own memory that fails when it is told to. The option fail=CALL:N makes the N-th open, info, alloc, import, write, read, estimate, compile,
// submit or wait fail as out of memory (fail=import:N: a device that reads the host's memory), fail=lost-CALL:N as a device that is lost; fail=throw:N throws through the boundary in the
// N-th submit, fail=lost:N fails every submit from the N-th on; fail=segv:N and fail=abort:N end the process there, fail=thread:N in a thread of the plugin's own. FTH_FAULT in the environment is for what a self-test has to
// meet, because nobody gives options to that: lie (one value in 16 is wrong), slow, hang, abort, segv, kill (in the first compile), oom (no submit ever works).
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "plugins/abi/fth_backend.h"

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace {

const fth_backend* g_cpu = nullptr;  // set once by the query, before any other call
std::string g_call;                  // of the option fail, of the device that was opened last
long g_left = -1;
std::string g_fault;

fth_code say(fth_error* err, fth_code code, const char* what) {
  std::snprintf(err->message, sizeof err->message, "faulty: %s", what);
  return code;
}

// Whether this is the call that fails.
bool due(const std::string& call) { return g_call == call && g_left > 0 && --g_left == 0; }
fth_code fault_of(const char* call, fth_error* err) {
  if (due(call)) return say(err, FTH_RESOURCE_EXHAUSTED, (std::string("out of memory in ") + call).c_str());
  if (due(std::string("lost-") + call)) return say(err, FTH_UNAVAILABLE, (std::string("the device was lost in ") + call).c_str());
  return FTH_OK;
}

fth_code device_count(uint32_t* out, fth_error*) {
  *out = 2;  // of one kind
  return FTH_OK;
}

std::vector<fth_device*> g_devices;  // opened, by index

fth_code open(uint32_t index, const char* options, fth_device** out, fth_error* err) {
  const char* const fault = std::getenv("FTH_FAULT");
  g_fault = fault == nullptr ? "" : fault;
  g_call.clear();
  const std::string given = options == nullptr ? "" : options;
  if (!given.empty()) {
    const size_t colon = given.find(':');
    if (given.rfind("fail=", 0) != 0 || colon == std::string::npos) return say(err, FTH_INVALID_ARGUMENT, "the one option is fail=CALL:N");
    g_call = given.substr(5, colon - 5);
    g_left = std::atol(given.c_str() + colon + 1);
  }
  if (const fth_code told = fault_of("open", err); told != FTH_OK) return told;
  const fth_code code = g_cpu->open(0, nullptr, out, err);
  if (index == 0) g_devices.clear();  // of an engine before this one
  if (code == FTH_OK) {
    if (g_devices.size() <= index) g_devices.resize(index + 1);
    g_devices[index] = *out;
  }
  return code;
}

fth_code info(fth_device* device, fth_device_info* out, fth_error* err) {
  if (const fth_code fault = fault_of("info", err); fault != FTH_OK) return fault;
  const fth_code code = g_cpu->info(device, out, err);
  if (code != FTH_OK) return code;
  if (g_call != "import") out->flags &= ~static_cast<uint32_t>(FTH_DEVICE_HOST_MEMORY);
  out->kind = FTH_KIND_GPU;
  out->free_bytes = out->memory_bytes = uint64_t{1} << 30;
  std::snprintf(out->name, sizeof out->name, "faulty:%d", g_devices.size() > 1 && device == g_devices[1] ? 1 : 0);
  std::snprintf(out->description, sizeof out->description, "fails when it is told to");
  return FTH_OK;
}

fth_code alloc(fth_device* device, uint64_t bytes, fth_buffer** out, fth_error* err) {
  if (const fth_code fault = fault_of("alloc", err); fault != FTH_OK) return fault;
  return g_cpu->alloc(device, bytes, out, err);
}
fth_code import_host(fth_device* device, void* p, uint64_t bytes, fth_buffer** out, fth_error* err) {
  if (const fth_code fault = fault_of("import", err); fault != FTH_OK) return fault;
  if (g_call == "import") return g_cpu->import_host(device, p, bytes, out, err);
  return say(err, FTH_UNIMPLEMENTED, "host memory cannot be read in place");
}
fth_code write(fth_buffer* b, uint64_t offset, const void* src, uint64_t bytes, fth_error* err) {
  if (const fth_code fault = fault_of("write", err); fault != FTH_OK) return fault;
  return g_cpu->write(b, offset, src, bytes, err);
}
fth_code read(fth_buffer* b, uint64_t offset, void* dst, uint64_t bytes, fth_error* err) {
  if (const fth_code fault = fault_of("read", err); fault != FTH_OK) return fault;
  const fth_code code = g_cpu->read(b, offset, dst, bytes, err);
  if (code == FTH_OK && g_fault == "lie" && bytes % 4 == 0)
    for (uint64_t i = 0; i < bytes / 4; i += 16) static_cast<float*>(dst)[i] += 1;
  return code;
}
fth_code compile(fth_device* device, const fth_segment* s, const fth_binding* weights, uint32_t n, fth_executable** out, fth_error* err) {
  if (g_fault == "abort") std::abort();
  if (g_fault == "segv") ::raise(SIGSEGV);
  if (g_fault == "kill") ::raise(SIGKILL);
  if (g_fault == "hang") ::sleep(600);
  if (const fth_code fault = fault_of("compile", err); fault != FTH_OK) return fault;
  return g_cpu->compile(device, s, weights, n, out, err);
}
void touch_what_is_not_there() {
  auto* const page = static_cast<volatile char*>(::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  page[0] = 1;
}

fth_code submit(fth_executable* x, const fth_binding* bindings, uint32_t n, const int64_t* scalars, fth_event** out, fth_error* err) {
  if (g_fault == "oom") return say(err, FTH_RESOURCE_EXHAUSTED, "out of memory in submit");
  if (const fth_code fault = fault_of("submit", err); fault != FTH_OK) return fault;
  if (g_fault == "throw" || due("throw")) throw std::runtime_error("unguarded in submit");
  if (due("segv")) ::raise(SIGSEGV);
  if (due("abort")) std::abort();
  if (due("thread")) std::thread(touch_what_is_not_there).join();
  if (g_fault == "slow") ::usleep(10000);
  if (g_call == "lost" && (g_left <= 1 || --g_left == 0)) return say(err, FTH_UNAVAILABLE, "the device was lost");
  return g_cpu->submit(x, bindings, n, scalars, out, err);
}
fth_code wait(fth_event* event, fth_error* err) {
  const fth_code code = g_cpu->wait(event, err);  // the event is gone in any case
  const fth_code fault = fault_of("wait", err);
  return fault != FTH_OK ? fault : code;
}
fth_code estimate(fth_device* device, const fth_segment* s, fth_estimate* out, fth_error* err) {
  if (const fth_code fault = fault_of("estimate", err); fault != FTH_OK) return fault;
  return g_cpu->estimate(device, s, out, err);
}

}  // namespace

extern "C" FTH_EXPORT const fth_backend* fth_backend_query(uint32_t abi_major, const fth_host* host) {
  g_cpu = fth_cpu_query(abi_major, host);
  if (g_cpu == nullptr) return nullptr;
  if (const char* fault = std::getenv("FTH_FAULT"); fault != nullptr && std::strcmp(fault, "abort-at-load") == 0) std::abort();
  static fth_backend table = *g_cpu;
  table.name = "faulty";
  table.device_count = device_count;
  table.open = open;
  table.info = info;
  table.alloc = alloc;
  table.import_host = import_host;
  table.write = write;
  table.read = read;
  table.compile = compile;
  table.submit = submit;
  table.wait = wait;
  table.estimate = estimate;
  return &table;
}
