#pragma once
// A Vulkan loader between the plugin and the real one: calls of a device fail when a test says so, and its objects are counted. It has the loader's soname,
// so a program that is linked with it has it found when the plugin opens libvulkan. One thread.

#include <string>

namespace fth::vulkan_test {

struct Fault {
  std::string call;  // "vkAllocateMemory", "*" for any that can fail; empty: no fault
  int after = 0;     // calls that succeed first
  int result = 0;    // a VkResult
};
// Set by tests, read by the functions; back to none with Fault{}.
__attribute__((visibility("default"))) Fault& fault();
// Devices, memories, buffers, semaphores, pools, modules, layouts, pipelines and caches that were made and not destroyed.
__attribute__((visibility("default"))) int live_objects();

}  // namespace fth::vulkan_test
