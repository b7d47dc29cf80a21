// Opening a device, its command buffers and its clock.

#include "backends/vulkan/context.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "core/base/bytes.h"

namespace fth::vulkan {
namespace {

// What a product reaches on a rasteriser. It is not timed unless asked: it is listed and not chosen, and its compiler costs every program memory.
constexpr double kSoftwareBytesPerSecond = 0.5e9, kSoftwareFlopsPerSecond = 2e9, kSoftwareLaunchSeconds = 30e-6,
                 kSoftwareDispatchSeconds = 10e-6;
// The shaders multiply in f32 outside of the matrix units; a GPU is built with a few such operations per byte of its memory's speed.
constexpr double kFlopsPerByte = 4;
constexpr uint64_t kWaitNs = 600'000'000'000;  // a driver that takes ten minutes for a segment hangs

const char* kind_name(VkPhysicalDeviceType type) {
  switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: return "discrete GPU";
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: return "integrated GPU";
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: return "virtual GPU";
    case VK_PHYSICAL_DEVICE_TYPE_CPU: return "software on the CPU";
    default: return "device of another kind";
  }
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Result<std::unique_ptr<Context>> Context::open(sdk::Host host, uint32_t index, const Settings& settings) {
  std::unique_ptr<Context> self(new Context(host, settings));
  FTH_ASSIGN_OR_RETURN(self->instance_, Instance::get(host, settings.validation));
  self->api_ = self->instance_->api();
  FTH_RETURN_IF_ERROR(self->check_device(index));
  FTH_RETURN_IF_ERROR(self->make_device());
  FTH_RETURN_IF_ERROR(self->make_pipeline_cache());
  FTH_RETURN_IF_ERROR(self->measure());
  FTH_RETURN_IF_ERROR(self->complaints());
  FTH_ASSIGN_OR_RETURN(const fth_device_info info, self->info());
  host.log(FTH_LOG_DEBUG, text(self->label_, ": ", info.description, "; ", info.bytes_per_second / 1e9, " GB/s, launch ",
                               self->launch_seconds_ * 1e6, " us, dispatch ", self->dispatch_seconds_ * 1e6, " us"));
  return self;
}

// Picks the physical device and fills limits_ and the descriptions; refuses what cannot run the shaders.
Result<> Context::check_device(uint32_t index) {
  FTH_ASSIGN_OR_RETURN(const std::vector<VkPhysicalDevice> all, instance_->physical_devices());
  if (index >= all.size()) return fail(Code::not_found, text("vulkan: device ", index, " of ", all.size()));
  physical_ = all[index];
  label_ = text("vulkan:", index);

  VkPhysicalDeviceVulkan13Properties p13{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES};
  VkPhysicalDeviceDriverProperties driver{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES};
  VkPhysicalDeviceSubgroupProperties subgroup{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES, .pNext = &driver};
  VkPhysicalDeviceMaintenance3Properties m3{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = &subgroup};
  VkPhysicalDeviceProperties2 properties{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
  api_.GetPhysicalDeviceProperties2(physical_, &properties);
  const bool is_13 = properties.properties.apiVersion >= VK_API_VERSION_1_3;
  const std::string title = text(label_, " (", properties.properties.deviceName, ")");
  if (properties.properties.apiVersion < VK_API_VERSION_1_2)
    return fail(Code::unimplemented,
                text(title, ": Vulkan 1.", VK_API_VERSION_MINOR(properties.properties.apiVersion), ", need 1.2: update the driver"));
  p13.pNext = &m3;
  properties.pNext = is_13 ? static_cast<void*>(&p13) : static_cast<void*>(&m3);
  api_.GetPhysicalDeviceProperties2(physical_, &properties);
  properties_ = properties.properties;
  driver_ = text(driver.driverName, " ", driver.driverInfo);

  VkPhysicalDeviceVulkan13Features f13{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES};
  VkPhysicalDeviceVulkan12Features f12{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES, .pNext = is_13 ? &f13 : nullptr};
  VkPhysicalDeviceFeatures2 features{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &f12};
  api_.GetPhysicalDeviceFeatures2(physical_, &features);
  if (!f12.bufferDeviceAddress) return fail(Code::unimplemented, text(title, ": no bufferDeviceAddress, which the shaders need"));
  if (!f12.timelineSemaphore) return fail(Code::unimplemented, text(title, ": no timelineSemaphore, which Vulkan 1.2 requires"));

  VkPhysicalDeviceMemoryProperties2 memory{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
  api_.GetPhysicalDeviceMemoryProperties2(physical_, &memory);
  memory_ = memory.memoryProperties;

  uint32_t n = 0;
  FTH_RETURN_IF_ERROR(
      check(api_.EnumerateDeviceExtensionProperties(physical_, nullptr, &n, nullptr), "vkEnumerateDeviceExtensionProperties"));
  std::vector<VkExtensionProperties> extensions(n);
  if (n > 0)
    FTH_RETURN_IF_ERROR(
        check(api_.EnumerateDeviceExtensionProperties(physical_, nullptr, &n, extensions.data()), "vkEnumerateDeviceExtensionProperties"));
  const auto has = [&](const char* name) {
    return std::any_of(extensions.begin(), extensions.end(),
                       [&](const VkExtensionProperties& e) { return std::strcmp(e.extensionName, name) == 0; });
  };
  has_budget_ = has(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);

  const bool software = properties_.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  limits_.max_groups_x = properties_.limits.maxComputeWorkGroupCount[0];
  limits_.max_groups_y = properties_.limits.maxComputeWorkGroupCount[1];
  limits_.max_buffer = m3.maxMemoryAllocationSize;
  if (is_13) limits_.max_buffer = std::min<uint64_t>(limits_.max_buffer, p13.maxBufferSize);
  // A size that is required and full subgroups: only then do lanes and invocations agree on every driver.
  const VkSubgroupFeatureFlags wanted = VK_SUBGROUP_FEATURE_BASIC_BIT | VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
  const bool usable = is_13 && f13.subgroupSizeControl && f13.computeFullSubgroups &&
                      (p13.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0 &&
                      (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) != 0 && (subgroup.supportedOperations & wanted) == wanted &&
                      p13.minSubgroupSize <= p13.maxSubgroupSize && p13.maxSubgroupSize <= 64 && p13.minSubgroupSize >= 4;
  if (usable && settings_.subgroups) {
    limits_.subgroups = true;
    limits_.lanes = std::clamp(32u, p13.minSubgroupSize, p13.maxSubgroupSize);
    limits_.groups = software ? 1 : std::min(4u, p13.maxComputeWorkgroupSubgroups);
  }
  // The sizes are listed for subgroups of the device's own choice.
  return find_coop(has(VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME), f12,
                   std::clamp(subgroup.subgroupSize, p13.minSubgroupSize, p13.maxSubgroupSize), p13.maxComputeWorkgroupSubgroups);
}

Result<> Context::find_coop(bool has_extension, const VkPhysicalDeviceVulkan12Features& f12, uint32_t subgroup_size,
                            uint32_t max_subgroups) {
  const auto none = [&](const std::string& why) -> Result<> {
    coop_note_ = text("no cooperative matrices: ", why);
    if (settings_.coop != CoopMode::on) return {};
    return fail(Code::unimplemented, text(label_, " (", properties_.deviceName, "): coopmat=on: ", why));
  };
  if (settings_.coop == CoopMode::off) return none("coopmat=off");
  if (!has_coop_shader()) return none("built without a shader compiler that knows them");
  if (!has_extension || !api_.GetPhysicalDeviceCooperativeMatrixPropertiesKHR) return none("the driver does not have them");
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR};
  VkPhysicalDeviceFeatures2 features{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &matrices};
  api_.GetPhysicalDeviceFeatures2(physical_, &features);
  if (!matrices.cooperativeMatrix || !f12.shaderFloat16 || !f12.vulkanMemoryModel)
    return none("they need cooperativeMatrix, shaderFloat16 and vulkanMemoryModel");
  if (!limits_.subgroups) return none("they need subgroups of a required size");

  uint32_t n = 0;
  const auto list = api_.GetPhysicalDeviceCooperativeMatrixPropertiesKHR;
  FTH_RETURN_IF_ERROR(check(list(physical_, &n, nullptr), "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
  std::vector<VkCooperativeMatrixPropertiesKHR> lines(n, {.sType = VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR});
  if (n > 0) FTH_RETURN_IF_ERROR(check(list(physical_, &n, lines.data()), "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"));
  std::vector<CoopSize> sizes;
  for (const VkCooperativeMatrixPropertiesKHR& l : lines)
    sizes.push_back({.m = l.MSize,
                     .n = l.NSize,
                     .k = l.KSize,
                     .f16_factors = l.AType == VK_COMPONENT_TYPE_FLOAT16_KHR && l.BType == VK_COMPONENT_TYPE_FLOAT16_KHR,
                     .f32_sums = l.CType == VK_COMPONENT_TYPE_FLOAT32_KHR && l.ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR,
                     .subgroup_scope = l.scope == VK_SCOPE_SUBGROUP_KHR,
                     .saturating = l.saturatingAccumulation != VK_FALSE});
  const std::optional<CoopSize> size = choose_coop_size(sizes);
  if (!size) return none(text("none of the ", n, " sizes multiplies f16 into f32 in tiles of 8, 16 or 32"));
  const uint32_t most = std::min({max_subgroups, properties_.limits.maxComputeWorkGroupInvocations / subgroup_size,
                                  properties_.limits.maxComputeWorkGroupSize[0] / subgroup_size});
  limits_.coop = {.m = size->m,
                  .n = size->n,
                  .k = size->k,
                  .lanes = subgroup_size,
                  .subgroups = most,
                  .shared_bytes = properties_.limits.maxComputeSharedMemorySize};
  coop_note_ = text("cooperative matrices ", size->m, "x", size->n, "x", size->k);
  return {};
}

void Context::drop_coop(int32_t level, const std::string& why, const std::string& detail) {
  limits_.coop = {};
  coop_note_ = text("no cooperative matrices: ", why);
  say(level, text("products without cooperative matrices: ", why, detail));
}

void Context::set_coop_speed(double flops_per_second, std::string how) {
  coop_flops_per_second_ = flops_per_second;
  say(FTH_LOG_DEBUG, text("products in cooperative matrices: ", how));
}

Result<> Context::make_device() {
  uint32_t n = 0;
  api_.GetPhysicalDeviceQueueFamilyProperties(physical_, &n, nullptr);
  std::vector<VkQueueFamilyProperties> families(n);
  api_.GetPhysicalDeviceQueueFamilyProperties(physical_, &n, families.data());
  // A family that computes and does not draw leaves the queue of the desktop alone.
  std::optional<uint32_t> best;
  for (uint32_t i = 0; i < n; ++i) {
    if (families[i].queueCount == 0 || (families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) == 0) continue;
    if (!best || ((families[*best].queueFlags & VK_QUEUE_GRAPHICS_BIT) != 0 && (families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT) == 0))
      best = i;
  }
  if (!best) return fail(Code::unimplemented, text(label_, ": no queue family computes"));
  family_ = *best;
  timestamp_bits_ = families[family_].timestampValidBits;

  VkPhysicalDeviceVulkan13Features f13{
      .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES, .subgroupSizeControl = VK_TRUE, .computeFullSubgroups = VK_TRUE};
  VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrices{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR,
                                                        .cooperativeMatrix = VK_TRUE};
  if (limits_.coop) f13.pNext = &matrices;
  const VkPhysicalDeviceVulkan12Features f12{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                             .pNext = limits_.subgroups ? &f13 : nullptr,
                                             .shaderFloat16 = limits_.coop ? VK_TRUE : VK_FALSE,
                                             .timelineSemaphore = VK_TRUE,
                                             .bufferDeviceAddress = VK_TRUE,
                                             .vulkanMemoryModel = limits_.coop ? VK_TRUE : VK_FALSE};
  const float priority = 1;
  const VkDeviceQueueCreateInfo queue{
      .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueFamilyIndex = family_, .queueCount = 1, .pQueuePriorities = &priority};
  std::vector<const char*> extensions;
  if (has_budget_) extensions.push_back(VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
  if (limits_.coop) extensions.push_back(VK_KHR_COOPERATIVE_MATRIX_EXTENSION_NAME);
  const VkDeviceCreateInfo info{.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                .pNext = &f12,
                                .queueCreateInfoCount = 1,
                                .pQueueCreateInfos = &queue,
                                .enabledExtensionCount = static_cast<uint32_t>(extensions.size()),
                                .ppEnabledExtensionNames = extensions.data()};
  FTH_RETURN_IF_ERROR(check(api_.CreateDevice(physical_, &info, nullptr, &device_), text(label_, ": vkCreateDevice")));
  FTH_RETURN_IF_ERROR(api_.load_device(device_));
  api_.GetDeviceQueue(device_, family_, 0, &queue_);
  const VkCommandPoolCreateInfo pool{.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                     .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                     .queueFamilyIndex = family_};
  FTH_RETURN_IF_ERROR(check(api_.CreateCommandPool(device_, &pool, nullptr, &pool_), "vkCreateCommandPool"));
  const VkSemaphoreTypeCreateInfo type{.sType = VK_STRUCTURE_TYPE_SEMAPHORE_TYPE_CREATE_INFO, .semaphoreType = VK_SEMAPHORE_TYPE_TIMELINE};
  const VkSemaphoreCreateInfo semaphore{.sType = VK_STRUCTURE_TYPE_SEMAPHORE_CREATE_INFO, .pNext = &type};
  return check(api_.CreateSemaphore(device_, &semaphore, nullptr, &timeline_), "vkCreateSemaphore");
}

Context::~Context() {
  if (!device_) return;
  if (api_.DestroyCommandPool) {  // else the device's functions were not found
    (void)api_.DeviceWaitIdle(device_);
    save_pipeline_cache();
    free(staging_.memory);
    if (timeline_) api_.DestroySemaphore(device_, timeline_, nullptr);
    for (const auto& [key, pipeline] : pipelines_) api_.DestroyPipeline(device_, pipeline, nullptr);
    for (const VkShaderModule m : modules_)
      if (m) api_.DestroyShaderModule(device_, m, nullptr);
    if (cache_) api_.DestroyPipelineCache(device_, cache_, nullptr);
    if (layout_) api_.DestroyPipelineLayout(device_, layout_, nullptr);
    if (pool_) api_.DestroyCommandPool(device_, pool_, nullptr);
  }
  if (api_.DestroyDevice) api_.DestroyDevice(device_, nullptr);
}

Result<fth_device_info> Context::info() const {
  fth_device_info i{};
  const bool software = properties_.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  i.kind = software ? FTH_KIND_CPU : FTH_KIND_GPU;
  i.flags = software ? FTH_DEVICE_SOFTWARE : 0;
  std::snprintf(i.name, sizeof i.name, "%s", label_.c_str());
  const std::string description = text(properties_.deviceName, "; ", kind_name(properties_.deviceType), "; ", driver_, "; Vulkan 1.",
                                       VK_API_VERSION_MINOR(properties_.apiVersion), "; ", limits_.lanes, " lanes ",
                                       limits_.subgroups ? "in subgroups" : "through shared memory", "; ", coop_note_);
  std::snprintf(i.description, sizeof i.description, "%s", description.c_str());

  VkPhysicalDeviceMemoryBudgetPropertiesEXT budget{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
  VkPhysicalDeviceMemoryProperties2 memory{.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                           .pNext = has_budget_ ? &budget : nullptr};
  api_.GetPhysicalDeviceMemoryProperties2(physical_, &memory);
  for (uint32_t h = 0; h < memory_.memoryHeapCount; ++h) {
    if ((memory_.memoryHeaps[h].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) == 0 || memory_.memoryHeaps[h].size <= i.memory_bytes) continue;
    i.memory_bytes = memory_.memoryHeaps[h].size;
    const uint64_t limit = has_budget_ ? budget.heapBudget[h] : i.memory_bytes, used = has_budget_ ? budget.heapUsage[h] : allocated_;
    i.free_bytes = limit - std::min(limit, used);
  }
  i.alignment = 16;
  i.bytes_per_second = bytes_per_second_;
  i.flops_per_second = flops_per_second_;
  i.launch_seconds = launch_seconds_;
  return i;
}

Result<VkCommandBuffer> Context::begin(VkCommandBufferUsageFlags usage) {
  const VkCommandBufferAllocateInfo info{.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                         .commandPool = pool_,
                                         .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
                                         .commandBufferCount = 1};
  VkCommandBuffer commands = VK_NULL_HANDLE;
  FTH_RETURN_IF_ERROR(check(api_.AllocateCommandBuffers(device_, &info, &commands), "vkAllocateCommandBuffers"));
  const VkCommandBufferBeginInfo start{.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO, .flags = usage};
  if (Result<> begun = check(api_.BeginCommandBuffer(commands, &start), "vkBeginCommandBuffer"); !begun) {
    free(commands);
    return tl::unexpected<Error>(std::move(begun).error());
  }
  return commands;
}

Result<> Context::end(VkCommandBuffer commands) { return check(api_.EndCommandBuffer(commands), "vkEndCommandBuffer"); }

void Context::barrier(VkCommandBuffer commands, Between between) const {
  const bool dispatches = between == Between::dispatches;
  const VkAccessFlags all = VK_ACCESS_MEMORY_READ_BIT | VK_ACCESS_MEMORY_WRITE_BIT;
  const VkMemoryBarrier memory{.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
                               .srcAccessMask = dispatches ? VkAccessFlags{VK_ACCESS_SHADER_WRITE_BIT} : all,
                               .dstAccessMask = dispatches ? VkAccessFlags{VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT} : all};
  VkPipelineStageFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
  if (!dispatches) stages |= VK_PIPELINE_STAGE_TRANSFER_BIT | VK_PIPELINE_STAGE_HOST_BIT;
  api_.CmdPipelineBarrier(commands, stages, stages, 0, 1, &memory, 0, nullptr, 0, nullptr);
}

Result<uint64_t> Context::submit(VkCommandBuffer commands) {
  const uint64_t value = submitted_ + 1;
  const VkTimelineSemaphoreSubmitInfo timeline{
      .sType = VK_STRUCTURE_TYPE_TIMELINE_SEMAPHORE_SUBMIT_INFO, .signalSemaphoreValueCount = 1, .pSignalSemaphoreValues = &value};
  const VkSubmitInfo info{.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
                          .pNext = &timeline,
                          .commandBufferCount = 1,
                          .pCommandBuffers = &commands,
                          .signalSemaphoreCount = 1,
                          .pSignalSemaphores = &timeline_};
  FTH_RETURN_IF_ERROR(check(api_.QueueSubmit(queue_, 1, &info, VK_NULL_HANDLE), text(label_, ": vkQueueSubmit")));
  return submitted_ = value;
}

Result<> Context::wait(uint64_t value) {
  const VkSemaphoreWaitInfo info{
      .sType = VK_STRUCTURE_TYPE_SEMAPHORE_WAIT_INFO, .semaphoreCount = 1, .pSemaphores = &timeline_, .pValues = &value};
  FTH_RETURN_IF_ERROR(check(api_.WaitSemaphores(device_, &info, kWaitNs), text(label_, ": waiting for the device")));
  return complaints();
}

Result<VkQueryPool> Context::make_timer() {
  VkQueryPool timer = VK_NULL_HANDLE;
  if (timestamp_bits_ == 0) return timer;
  const VkQueryPoolCreateInfo info{
      .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = 2};
  FTH_RETURN_IF_ERROR(check(api_.CreateQueryPool(device_, &info, nullptr, &timer), "vkCreateQueryPool"));
  return timer;
}

void Context::start(VkCommandBuffer commands, VkQueryPool timer) const {
  if (!timer) return;
  api_.CmdResetQueryPool(commands, timer, 0, 2);
  api_.CmdWriteTimestamp(commands, VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, timer, 0);
}

void Context::stop(VkCommandBuffer commands, VkQueryPool timer) const {
  if (timer) api_.CmdWriteTimestamp(commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, timer, 1);
}

double Context::seconds(VkQueryPool timer) const {
  std::array<uint64_t, 2> ticks{};
  if (!timer ||
      api_.GetQueryPoolResults(device_, timer, 0, 2, sizeof ticks, ticks.data(), sizeof ticks[0], VK_QUERY_RESULT_64_BIT) != VK_SUCCESS)
    return -1;
  // The counter has that many bits, and wraps.
  const uint64_t mask = timestamp_bits_ >= 64 ? UINT64_MAX : (uint64_t{1} << timestamp_bits_) - 1;
  return static_cast<double>((ticks[1] - ticks[0]) & mask) * static_cast<double>(properties_.limits.timestampPeriod) * 1e-9;
}

// Three short timings, so that placement rests on this machine's numbers: an empty submit, a dispatch behind a barrier, a copy within the device.
Result<> Context::measure() {
  constexpr uint32_t kDispatches = 64, kCopies = 8;
  constexpr uint64_t kBytes = 64 * kMiB;  // two of these pass the largest cache on a device
  if (properties_.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU && !settings_.measure) {
    launch_seconds_ = kSoftwareLaunchSeconds;
    dispatch_seconds_ = kSoftwareDispatchSeconds;
    bytes_per_second_ = settings_.bytes_per_second > 0 ? settings_.bytes_per_second : kSoftwareBytesPerSecond;
    flops_per_second_ = settings_.flops_per_second > 0 ? settings_.flops_per_second : kSoftwareFlopsPerSecond;
    return {};
  }
  const auto best_of = [&](int times, const auto& record) -> Result<double> {
    double best = 1e9;
    for (int i = 0; i < times; ++i) {
      FTH_ASSIGN_OR_RETURN(const VkCommandBuffer commands, begin(VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT));
      record(commands);
      const Result<> ended = end(commands);
      const auto start = std::chrono::steady_clock::now();
      const Result<> ran = ended ? run_once(commands) : ended;
      best = std::min(best, seconds_since(start));
      free(commands);
      FTH_RETURN_IF_ERROR(ran);
    }
    return best;
  };
  FTH_ASSIGN_OR_RETURN(launch_seconds_, best_of(5, [](VkCommandBuffer) {}));

  FTH_ASSIGN_OR_RETURN(const VkPipeline pipeline_to_time, pipeline(Shader::elementwise, {64, 0}));
  FTH_ASSIGN_OR_RETURN(Memory parameters, allocate(64, Use::shared));
  std::memset(parameters.mapped, 0, 64);  // no tokens: every thread returns at once
  std::array<uint32_t, 16> push{};
  std::memcpy(push.data(), &parameters.address, sizeof parameters.address);
  const auto dispatches = best_of(3, [&](VkCommandBuffer commands) {
    api_.CmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline_to_time);
    api_.CmdPushConstants(commands, layout_, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, push.data());
    for (uint32_t i = 0; i < kDispatches; ++i) {
      api_.CmdDispatch(commands, 1, 1, 1);
      barrier(commands, Between::dispatches);
    }
  });
  free(parameters);
  FTH_RETURN_IF_ERROR(dispatches);
  dispatch_seconds_ = std::max(1e-7, (*dispatches - launch_seconds_) / kDispatches);

  double copied = settings_.bytes_per_second;
  if (copied == 0) {
    auto a = allocate(kBytes, Use::storage);
    auto b = allocate(kBytes, Use::storage);
    Result<double> seconds = 0.0;
    if (a && b) {
      seconds = best_of(3, [&](VkCommandBuffer commands) {
        const VkBufferCopy whole{.size = kBytes};
        for (uint32_t i = 0; i < kCopies; ++i) {
          api_.CmdCopyBuffer(commands, i % 2 == 0 ? a->buffer : b->buffer, i % 2 == 0 ? b->buffer : a->buffer, 1, &whole);
          barrier(commands, Between::anything);
        }
      });
    }
    if (a) free(*a);
    if (b) free(*b);
    FTH_RETURN_IF_ERROR(seconds);
    if (a && b) copied = 2.0 * kCopies * static_cast<double>(kBytes) / std::max(1e-7, *seconds - launch_seconds_);  // read and written
  }
  if (copied == 0) return fail(Code::resource_exhausted, text(label_, ": no ", format_bytes(2 * kBytes), " of memory to time it with"));
  bytes_per_second_ = copied;
  flops_per_second_ = settings_.flops_per_second > 0 ? settings_.flops_per_second : kFlopsPerByte * copied;
  return {};
}

}  // namespace fth::vulkan
