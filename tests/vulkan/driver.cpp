// See driver.h.

#include "tests/vulkan/driver.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "backends/vulkan/api.h"

namespace fth::vulkan_test {

Fault& fault() {
  static Fault f;
  return f;
}

namespace {

int g_live = 0;

PFN_vkGetInstanceProcAddr real_loader() {
  static const auto get = [] {
    void* const library = dlopen(FTH_VULKAN_LOADER, RTLD_NOW | RTLD_LOCAL);
    void* const found = library ? dlsym(library, "vkGetInstanceProcAddr") : nullptr;
    if (!found) {
      std::fprintf(stderr, "%s has no vkGetInstanceProcAddr\n", FTH_VULKAN_LOADER);
      std::abort();
    }
    return reinterpret_cast<PFN_vkGetInstanceProcAddr>(found);
  }();
  return get;
}

bool fails(std::string_view name) {
  if (fault().call != name && fault().call != "*") return false;
  if (fault().after-- > 0) return false;
  fault() = {.call = {}, .after = 0, .result = fault().result};  // one call, then none
  return true;
}

bool begins(std::string_view name, std::string_view with) { return name.substr(0, with.size()) == with; }

// The function `Tag` names, with the fault and the count around it.
template <class Tag, class F>
struct Hook;
template <class Tag, class R, class... A>
struct Hook<Tag, R(VKAPI_PTR*)(A...)> {
  static inline R(VKAPI_PTR* real)(A...) = nullptr;
  static R VKAPI_PTR call(A... a) {
    constexpr std::string_view kName = Tag::kName;
    if constexpr (std::is_same_v<R, VkResult>) {
      // A device that is lost does nothing any more; this one must have ended before the plugin frees what it worked on.
      constexpr bool kWaits = kName == "vkWaitSemaphores" || kName == "vkDeviceWaitIdle";
      const bool failing = fails(kName);
      if (failing && !kWaits) return static_cast<VkResult>(fault().result);
      const VkResult result = real(a...);
      if (failing) return static_cast<VkResult>(fault().result);
      if (result == VK_SUCCESS && (begins(kName, "vkCreate") || kName == "vkAllocateMemory")) ++g_live;  // pipelines are made one by one
      return result;
    } else {
      if constexpr (sizeof...(A) == 3) {
        if ((begins(kName, "vkDestroy") || kName == "vkFreeMemory") && std::get<1>(std::tuple(a...))) --g_live;
      }
      if (kName == "vkDestroyDevice") --g_live;
      return real(a...);
    }
  }
};

#define FTH_VK_TAG(name)                             \
  struct name##Tag {                                 \
    static constexpr const char* kName = "vk" #name; \
  };
FTH_VK_TAG(CreateDevice)
FTH_VK_DEVICE_FUNCTIONS(FTH_VK_TAG)

PFN_vkVoidFunction hooked(std::string_view name, PFN_vkVoidFunction real) {
  if (!real) return real;
#define FTH_VK_HOOK(f)                                     \
  if (name == f##Tag::kName) {                             \
    using H = Hook<f##Tag, PFN_vk##f>;                     \
    H::real = reinterpret_cast<PFN_vk##f>(real);           \
    return reinterpret_cast<PFN_vkVoidFunction>(&H::call); \
  }
  FTH_VK_HOOK(CreateDevice)
  FTH_VK_DEVICE_FUNCTIONS(FTH_VK_HOOK)
  return real;
}

PFN_vkGetDeviceProcAddr g_device_functions = nullptr;
PFN_vkVoidFunction VKAPI_PTR device_function(VkDevice device, const char* name) { return hooked(name, g_device_functions(device, name)); }

}  // namespace

int live_objects() { return g_live; }

}  // namespace fth::vulkan_test

extern "C" __attribute__((visibility("default"))) PFN_vkVoidFunction VKAPI_PTR vkGetInstanceProcAddr(VkInstance instance,
                                                                                                     const char* name) {
  using namespace fth::vulkan_test;
  const PFN_vkVoidFunction real = real_loader()(instance, name);
  if (std::string_view(name) != "vkGetDeviceProcAddr" || !real) return hooked(name, real);
  g_device_functions = reinterpret_cast<PFN_vkGetDeviceProcAddr>(real);
  return reinterpret_cast<PFN_vkVoidFunction>(&device_function);
}
