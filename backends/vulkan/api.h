#pragma once
// The Vulkan functions that this backend calls, found at run time: libvulkan is opened by name, so a machine without it has a reason in the list of
// devices and not a plugin that does not load.

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include <memory>
#include <string>
#include <vector>

#include "core/base/result.h"
#include "plugins/sdk/backend.h"
#include "plugins/sdk/text.h"

// Vulkan's structs are filled by name here, and what is not named is meant to be zero.
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"

#define FTH_VK_INSTANCE_FUNCTIONS(X)        \
  X(DestroyInstance)                        \
  X(EnumeratePhysicalDevices)               \
  X(GetPhysicalDeviceProperties2)           \
  X(GetPhysicalDeviceFeatures2)             \
  X(GetPhysicalDeviceMemoryProperties2)     \
  X(GetPhysicalDeviceQueueFamilyProperties) \
  X(EnumerateDeviceExtensionProperties)     \
  X(CreateDevice)                           \
  X(GetDeviceProcAddr)

#define FTH_VK_DEVICE_FUNCTIONS(X) \
  X(DestroyDevice)                 \
  X(DeviceWaitIdle)                \
  X(GetDeviceQueue)                \
  X(AllocateMemory)                \
  X(FreeMemory)                    \
  X(MapMemory)                     \
  X(CreateBuffer)                  \
  X(DestroyBuffer)                 \
  X(GetBufferMemoryRequirements)   \
  X(BindBufferMemory)              \
  X(GetBufferDeviceAddress)        \
  X(CreateCommandPool)             \
  X(DestroyCommandPool)            \
  X(AllocateCommandBuffers)        \
  X(FreeCommandBuffers)            \
  X(BeginCommandBuffer)            \
  X(EndCommandBuffer)              \
  X(CmdPipelineBarrier)            \
  X(CmdBindPipeline)               \
  X(CmdPushConstants)              \
  X(CmdDispatch)                   \
  X(CmdCopyBuffer)                 \
  X(QueueSubmit)                   \
  X(CreateSemaphore)               \
  X(DestroySemaphore)              \
  X(WaitSemaphores)                \
  X(CreateQueryPool)               \
  X(DestroyQueryPool)              \
  X(GetQueryPoolResults)           \
  X(CmdResetQueryPool)             \
  X(CmdWriteTimestamp)             \
  X(CreateShaderModule)            \
  X(DestroyShaderModule)           \
  X(CreatePipelineLayout)          \
  X(DestroyPipelineLayout)         \
  X(CreateComputePipelines)        \
  X(DestroyPipeline)               \
  X(CreatePipelineCache)           \
  X(DestroyPipelineCache)          \
  X(GetPipelineCacheData)

// VK_KHR_cooperative_matrix, which Vulkan's headers have from 1.3.255 on.
#ifndef VK_KHR_cooperative_matrix
inline constexpr auto VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR = static_cast<VkStructureType>(1000506000);
inline constexpr auto VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR = static_cast<VkStructureType>(1000506001);
inline constexpr const char* VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME = "VK_KHR_cooperative_matrix";
enum VkComponentTypeKHR : int32_t { VK_COMPONENT_TYPE_FLOAT16_KHR = 0, VK_COMPONENT_TYPE_FLOAT32_KHR = 1 };
enum VkScopeKHR : int32_t { VK_SCOPE_SUBGROUP_KHR = 3 };
struct VkCooperativeMatrixPropertiesKHR {
  VkStructureType sType;
  void* pNext;
  uint32_t MSize, NSize, KSize;
  VkComponentTypeKHR AType, BType, CType, ResultType;
  VkBool32 saturatingAccumulation;
  VkScopeKHR scope;
};
struct VkPhysicalDeviceCooperativeMatrixFeaturesKHR {
  VkStructureType sType;
  void* pNext;
  VkBool32 cooperativeMatrix, cooperativeMatrixRobustBufferAccess;
};
using PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR = VkResult(VKAPI_PTR*)(VkPhysicalDevice, uint32_t*,
                                                                                   VkCooperativeMatrixPropertiesKHR*);
#endif

namespace fth::vulkan {

struct Api {
#define FTH_VK_MEMBER(name) PFN_vk##name name = nullptr;
  FTH_VK_INSTANCE_FUNCTIONS(FTH_VK_MEMBER)
  FTH_VK_DEVICE_FUNCTIONS(FTH_VK_MEMBER)
#undef FTH_VK_MEMBER
  PFN_vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR GetPhysicalDeviceCooperativeMatrixPropertiesKHR =
      nullptr;  // null: no driver has it
  Result<> load_device(VkDevice device);
};

using sdk::text;

// Ok, or what failed in the driver's words: out of memory is resource_exhausted, a lost device or a broken driver unavailable.
Result<> check(VkResult result, std::string_view what);

// What the validation layer objected to, when it was asked for. Filled from any thread.
class Complaints;

// A VkInstance and the devices behind it. There is one per process, and one more with the validation layer where that was asked for; it lives until
// the process ends, as the plugin does. With the last instance the loader would unmap the drivers, which leak then and have crashed programs at exit.
// Any thread may call it.
class Instance {
 public:
  // unavailable: no libvulkan, no driver behind it, or no validation layer; asking again tries again. The errors of the layer fail complaints().
  static Result<const Instance*> get(sdk::Host host, bool validation);
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  const Api& api() const { return api_; }
  Result<std::vector<VkPhysicalDevice>> physical_devices() const;
  Result<> complaints() const;  // internal with the first complaint of the validation layer, if there is one

 private:
  Instance();
  static Result<std::unique_ptr<Instance>> create(sdk::Host host, bool validation);
  void* library_ = nullptr;
  Api api_;
  VkInstance instance_ = VK_NULL_HANDLE;
  VkDebugUtilsMessengerEXT messenger_ = VK_NULL_HANDLE;
  PFN_vkDestroyDebugUtilsMessengerEXT destroy_messenger_ = nullptr;
  std::unique_ptr<Complaints> complaints_;
};

}  // namespace fth::vulkan
