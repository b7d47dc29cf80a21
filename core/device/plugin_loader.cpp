// Boost.DLL opens the file: its throwing overload has dlerror's text, the error_code one loses it.

#include "core/device/plugin_loader.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <exception>
#include <string>

#define BOOST_DLL_USE_STD_FS
#include <boost/dll/shared_library.hpp>

#include "core/device/elf_file.h"

namespace fth {
namespace {

struct Function {
  const char* name;
  size_t offset;
};
#define FTH_FUNCTION(f) \
  Function { #f, offsetof(fth_backend, f) }
constexpr std::array kFunctions{FTH_FUNCTION(device_count), FTH_FUNCTION(open),     FTH_FUNCTION(close),       FTH_FUNCTION(info),
                                FTH_FUNCTION(alloc),        FTH_FUNCTION(free),     FTH_FUNCTION(import_host), FTH_FUNCTION(write),
                                FTH_FUNCTION(read),         FTH_FUNCTION(estimate), FTH_FUNCTION(compile),     FTH_FUNCTION(release),
                                FTH_FUNCTION(submit),       FTH_FUNCTION(wait)};
#undef FTH_FUNCTION
// Those of the first version; what came later may be absent.
static_assert(offsetof(fth_backend, device_count) + kFunctions.size() * sizeof(void*) == offsetof(fth_backend, live_neurons),
              "a function is not in the list");

std::string version(uint32_t major, uint32_t minor) { return std::to_string(major) + "." + std::to_string(minor); }
std::string own_version() { return version(FTH_ABI_MAJOR, FTH_ABI_MINOR); }

bool is_name(const char* name) {
  const size_t n = strnlen(name, 33);
  if (n == 0 || n > 32) return false;
  for (size_t i = 0; i < n; ++i) {
    const char c = name[i];
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-')) return false;
  }
  return true;
}

}  // namespace

Result<> check_table(const fth_backend* api) {
  constexpr uint32_t kHead = offsetof(fth_backend, device_count), kMost = 64 * 1024;
  if (api->struct_size < kHead || api->struct_size > kMost)
    return fail(Code::failed_precondition, "its table says struct_size " + std::to_string(api->struct_size) + ", expected " +
                                               std::to_string(sizeof(fth_backend)) + " (ABI " + own_version() + ")");
  if (api->abi_major != FTH_ABI_MAJOR)
    return fail(Code::failed_precondition,
                "built for ABI " + version(api->abi_major, api->abi_minor) + ", this program serves " + own_version());
  if (api->name == nullptr || !is_name(api->name))
    return fail(Code::failed_precondition, "its table has no usable name (1 to 32 of a-z, 0-9, '_', '-')");
  if (api->build == nullptr) return fail(Code::failed_precondition, "its table has no build string");
  std::string missing;
  for (const Function& f : kFunctions) {
    void* p = nullptr;
    if (f.offset + sizeof p <= api->struct_size) std::memcpy(&p, reinterpret_cast<const char*>(api) + f.offset, sizeof p);
    if (p == nullptr) missing += (missing.empty() ? "" : ", ") + std::string(f.name);
  }
  if (!missing.empty())
    return fail(Code::failed_precondition, "ABI " + version(api->abi_major, api->abi_minor) + ", struct_size " +
                                               std::to_string(api->struct_size) + ": its table lacks " + missing);
  return {};
}

Result<const fth_backend*> query_backend(fth_backend_query_fn query, const fth_host* host) {
  try {
    if (const fth_backend* api = query(FTH_ABI_MAJOR, host)) {
      FTH_RETURN_IF_ERROR(check_table(api));
      return api;
    }
    // For the message only: what another major's table holds beyond its version is not ours to read.
    std::string served;
    for (uint32_t major = 0; major < 16; ++major)
      if (major != FTH_ABI_MAJOR && query(major, host) != nullptr) served += (served.empty() ? "" : ", ") + std::to_string(major);
    return fail(Code::failed_precondition,
                (served.empty() ? "serves no ABI of 0 to 15" : "serves ABI " + served) + ", this program serves " + own_version());
  } catch (const std::exception& e) {
    return fail(Code::unavailable, std::string(FTH_BACKEND_QUERY_SYMBOL) + " threw: " + e.what());
  } catch (...) {
    return fail(Code::unavailable, std::string(FTH_BACKEND_QUERY_SYMBOL) + " threw");
  }
}

Result<const fth_backend*> load_plugin(const std::filesystem::path& file, const fth_host* host) {
  FTH_RETURN_IF_ERROR(check_elf(file));
  try {
    namespace dll = boost::dll;
    // rtld_now: a symbol that is missing is a reason here, not a crash at its first call.
    const auto mode = dll::load_mode::rtld_now | dll::load_mode::rtld_local | static_cast<dll::load_mode::type>(RTLD_NODELETE);
    dll::shared_library library(file, mode);
    if (!library.has(FTH_BACKEND_QUERY_SYMBOL))
      return fail(Code::failed_precondition, std::string("has no symbol ") + FTH_BACKEND_QUERY_SYMBOL + ": not a forethought plugin");
    return query_backend(library.get<std::remove_pointer_t<fth_backend_query_fn>>(FTH_BACKEND_QUERY_SYMBOL), host);
  } catch (const std::exception& e) {
    return fail(Code::unavailable, e.what());
  }
}

}  // namespace fth
