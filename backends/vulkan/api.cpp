// Opening libvulkan, the instance, and the names of results.

#include "backends/vulkan/api.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <mutex>

namespace fth::vulkan {

class Complaints {
 public:
  explicit Complaints(sdk::Host host) : host_(host) {}
  void add(VkDebugUtilsMessageSeverityFlagBitsEXT severity, const char* message) {
    const bool error = severity >= VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT;
    host_.log(error ? FTH_LOG_ERROR : FTH_LOG_WARNING, text("vulkan: validation: ", message));
    const std::lock_guard lock(mutex_);
    if (error && first_.empty()) first_ = message;
  }
  std::string first() const {
    const std::lock_guard lock(mutex_);
    return first_;
  }

 private:
  sdk::Host host_;
  mutable std::mutex mutex_;
  std::string first_;
};

namespace {

const char* name(VkResult r) {
  switch (r) {
    case VK_SUCCESS: return "success";
    case VK_NOT_READY: return "not ready";
    case VK_TIMEOUT: return "timeout";
    case VK_INCOMPLETE: return "incomplete";
    case VK_ERROR_OUT_OF_HOST_MEMORY: return "out of host memory";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY: return "out of device memory";
    case VK_ERROR_INITIALIZATION_FAILED: return "initialisation failed";
    case VK_ERROR_DEVICE_LOST: return "device lost";
    case VK_ERROR_MEMORY_MAP_FAILED: return "memory map failed";
    case VK_ERROR_LAYER_NOT_PRESENT: return "layer not present";
    case VK_ERROR_EXTENSION_NOT_PRESENT: return "extension not present";
    case VK_ERROR_FEATURE_NOT_PRESENT: return "feature not present";
    case VK_ERROR_INCOMPATIBLE_DRIVER: return "no driver, or an incompatible one";
    case VK_ERROR_TOO_MANY_OBJECTS: return "too many objects";
    default: return "error";
  }
}

Code code_of(VkResult r) {
  switch (r) {
    case VK_ERROR_OUT_OF_HOST_MEMORY:
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_TOO_MANY_OBJECTS: return Code::resource_exhausted;
    case VK_ERROR_LAYER_NOT_PRESENT:
    case VK_ERROR_EXTENSION_NOT_PRESENT:
    case VK_ERROR_FEATURE_NOT_PRESENT: return Code::unimplemented;
    case VK_TIMEOUT:
    case VK_ERROR_INITIALIZATION_FAILED:
    case VK_ERROR_INCOMPATIBLE_DRIVER:
    case VK_ERROR_DEVICE_LOST: return Code::unavailable;
    default: return Code::internal;
  }
}

VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity, VkDebugUtilsMessageTypeFlagsEXT,
                                          const VkDebugUtilsMessengerCallbackDataEXT* message, void* self) {
  static_cast<Complaints*>(self)->add(severity, message->pMessage);
  return VK_FALSE;
}

}  // namespace

Result<> check(VkResult result, std::string_view what) {
  if (result == VK_SUCCESS) return {};
  return fail(code_of(result), text("vulkan: ", what, ": ", name(result), " (", static_cast<int>(result), ")"));
}

Result<> Api::load_device(VkDevice device) {
#define FTH_VK_LOAD(name)                                                       \
  name = reinterpret_cast<PFN_vk##name>(GetDeviceProcAddr(device, "vk" #name)); \
  if (!name) return fail(Code::unavailable, "vulkan: the driver has no function vk" #name);
  FTH_VK_DEVICE_FUNCTIONS(FTH_VK_LOAD)
#undef FTH_VK_LOAD
  return {};
}

Instance::Instance() = default;

Result<std::unique_ptr<Instance>> Instance::create(sdk::Host host, bool validation) {
  std::unique_ptr<Instance> self(new Instance);
  self->library_ = dlopen("libvulkan.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!self->library_) {
    const char* const why = dlerror();
    return fail(Code::unavailable, text("vulkan: no loader: ", why ? why : "libvulkan.so.1"));
  }
  const auto get = reinterpret_cast<PFN_vkGetInstanceProcAddr>(dlsym(self->library_, "vkGetInstanceProcAddr"));
  if (!get) return fail(Code::unavailable, "vulkan: libvulkan.so.1 has no vkGetInstanceProcAddr");
  const auto version = reinterpret_cast<PFN_vkEnumerateInstanceVersion>(get(nullptr, "vkEnumerateInstanceVersion"));
  const auto create = reinterpret_cast<PFN_vkCreateInstance>(get(nullptr, "vkCreateInstance"));
  uint32_t have = VK_API_VERSION_1_0;
  if (version) FTH_RETURN_IF_ERROR(check(version(&have), "vkEnumerateInstanceVersion"));
  if (!create || have < VK_API_VERSION_1_2)
    return fail(Code::unavailable, text("vulkan: the loader is of version 1.", VK_API_VERSION_MINOR(have), ", need 1.2"));

  const VkApplicationInfo app{.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                              .pApplicationName = "forethought",
                              .pEngineName = "forethought",
                              .apiVersion = VK_API_VERSION_1_3};
  const char* const layer = "VK_LAYER_KHRONOS_validation";
  const char* const debug_utils = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;
  const uint32_t extras = validation ? 1 : 0;
  const VkInstanceCreateInfo info{.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                  .pApplicationInfo = &app,
                                  .enabledLayerCount = extras,
                                  .ppEnabledLayerNames = &layer,
                                  .enabledExtensionCount = extras,
                                  .ppEnabledExtensionNames = &debug_utils};
  const VkResult created = create(&info, nullptr, &self->instance_);
  if (created == VK_ERROR_LAYER_NOT_PRESENT)
    return fail(Code::unavailable, "vulkan: validation=on needs VK_LAYER_KHRONOS_validation; install vulkan-validationlayers");
  FTH_RETURN_IF_ERROR(check(created, "vkCreateInstance"));
#define FTH_VK_LOAD(name)                                                             \
  self->api_.name = reinterpret_cast<PFN_vk##name>(get(self->instance_, "vk" #name)); \
  if (!self->api_.name) return fail(Code::unavailable, "vulkan: the loader has no function vk" #name);
  FTH_VK_INSTANCE_FUNCTIONS(FTH_VK_LOAD)
#undef FTH_VK_LOAD
  self->api_.GetPhysicalDeviceCooperativeMatrixPropertiesKHR = reinterpret_cast<PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR>(
      get(self->instance_, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
  if (!validation) return self;

  const auto make = reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(get(self->instance_, "vkCreateDebugUtilsMessengerEXT"));
  self->destroy_messenger_ = reinterpret_cast<PFN_vkDestroyDebugUtilsMessengerEXT>(get(self->instance_, "vkDestroyDebugUtilsMessengerEXT"));
  if (!make || !self->destroy_messenger_) return fail(Code::unavailable, "vulkan: no debug messenger to listen to the validation layer");
  self->complaints_ = std::make_unique<Complaints>(host);
  const VkDebugUtilsMessengerCreateInfoEXT listen{
      .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
      .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
      .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,  // the loader chats in GENERAL
      .pfnUserCallback = on_message,
      .pUserData = self->complaints_.get()};
  FTH_RETURN_IF_ERROR(check(make(self->instance_, &listen, nullptr, &self->messenger_), "vkCreateDebugUtilsMessengerEXT"));
  return self;
}

Result<const Instance*> Instance::get(sdk::Host host, bool validation) {
  // Never freed: reachable, and gone with the process.
  static std::mutex mutex;
  static std::array<const Instance*, 2> made{};
  const std::lock_guard lock(mutex);
  const Instance*& one = made[validation ? 1 : 0];
  if (!one) {
    FTH_ASSIGN_OR_RETURN(std::unique_ptr<Instance> created, create(host, validation));
    one = created.release();
  }
  return one;
}

// Of one that could not be completed.
Instance::~Instance() {
  if (messenger_) destroy_messenger_(instance_, messenger_, nullptr);
  if (instance_ && api_.DestroyInstance) api_.DestroyInstance(instance_, nullptr);
}

Result<std::vector<VkPhysicalDevice>> Instance::physical_devices() const {
  uint32_t n = 0;
  FTH_RETURN_IF_ERROR(check(api_.EnumeratePhysicalDevices(instance_, &n, nullptr), "vkEnumeratePhysicalDevices"));
  std::vector<VkPhysicalDevice> devices(n);
  if (n > 0) FTH_RETURN_IF_ERROR(check(api_.EnumeratePhysicalDevices(instance_, &n, devices.data()), "vkEnumeratePhysicalDevices"));
  devices.resize(n);
  return devices;
}

Result<> Instance::complaints() const {
  if (!complaints_) return {};
  const std::string first = complaints_->first();
  if (first.empty()) return {};
  return fail(Code::internal, text("vulkan: validation: ", first));
}

}  // namespace fth::vulkan
