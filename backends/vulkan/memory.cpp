// Buffers of a device, and the way between them and the host.

#include <algorithm>
#include <cstring>

#include "backends/vulkan/context.h"
#include "core/base/bytes.h"

namespace fth::vulkan {
namespace {

constexpr uint64_t kStaging = 8 * kMiB;
// Where the host can map all of the device's memory, buffers of up to this size are mapped: activations then need no copy command.
constexpr uint64_t kMapped = 64 * kMiB;
constexpr uint64_t kSmallWindow = 1 * kGiB;  // below it the mappable part of device memory is a window too small to fill with weights
constexpr uint64_t kSmall = 1 * kMiB;

}  // namespace

// Types in the order to try them, best first.
std::vector<uint32_t> Context::memory_types(uint64_t bytes, Use use) const {
  constexpr VkMemoryPropertyFlags kLocal = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, kVisible = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT,
                                  kCoherent = VK_MEMORY_PROPERTY_HOST_COHERENT_BIT, kCached = VK_MEMORY_PROPERTY_HOST_CACHED_BIT;
  const bool unified =
      properties_.deviceType == VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU || properties_.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU;
  std::vector<std::pair<int, uint32_t>> ranked;
  for (uint32_t i = 0; i < memory_.memoryTypeCount; ++i) {
    const VkMemoryPropertyFlags flags = memory_.memoryTypes[i].propertyFlags;
    // Protected, lazily allocated and vendors' uncached memory is for other uses.
    if ((flags & ~(kLocal | kVisible | kCoherent | kCached)) != 0) continue;
    const bool mapped = (flags & (kVisible | kCoherent)) == (kVisible | kCoherent), local = (flags & kLocal) != 0;
    const uint64_t heap = memory_.memoryHeaps[memory_.memoryTypes[i].heapIndex].size;
    int rank = 0;
    if (use == Use::shared) {
      // Read by every workgroup: in the device's memory if there is a window onto it.
      if (!mapped) continue;
      rank = (local ? 4 : 0) + ((flags & kCached) != 0 ? 2 : 0);
    } else if (use == Use::staging) {
      if (!mapped) continue;
      rank = ((flags & kCached) != 0 ? 4 : 0) + (local ? 0 : 2);
    } else {
      if (!local && !unified) continue;
      // A mapping that is affordable, then no mapping, then one out of a window that others need.
      const bool affordable = unified || bytes <= (heap < kSmallWindow ? kSmall : kMapped);
      rank = (local ? 8 : 0) + (!mapped ? 2 : affordable ? 4 : 0) + (mapped && (flags & kCached) != 0 ? 1 : 0);
    }
    ranked.emplace_back(-rank, i);
  }
  std::sort(ranked.begin(), ranked.end());
  std::vector<uint32_t> types;
  types.reserve(ranked.size());
  for (const auto& [rank, type] : ranked) types.push_back(type);
  return types;
}

Result<Memory> Context::allocate(uint64_t bytes, Use use) {
  // Whole words, and one at least: shaders read words.
  if (bytes > limits_.max_buffer || align_up(std::max<uint64_t>(bytes, 1), 16) > limits_.max_buffer)
    return fail(Code::resource_exhausted,
                text(label_, ": a buffer of ", format_bytes(bytes), ": the device allows ", format_bytes(limits_.max_buffer)));
  const uint64_t size = align_up(std::max<uint64_t>(bytes, 1), 16);
  Result<Memory> made = fail(Code::resource_exhausted, text(label_, ": no memory type fits"));
  for (const uint32_t type : memory_types(size, use)) {
    made = allocate_of(size, type, settings_.mapped || use != Use::storage);
    if (made) {
      allocated_ += size;
      return made;
    }
    if (made.error().code != Code::resource_exhausted) break;
  }
  const auto now = info();
  return tl::unexpected<Error>(std::move(made).error().context(
      text(label_, ": a buffer of ", format_bytes(bytes), " with ", format_bytes(now ? now->free_bytes : 0), " free")));
}

Result<Memory> Context::allocate_of(uint64_t bytes, uint32_t type, bool map) {
  Memory m;
  m.bytes = bytes;
  const VkBufferCreateInfo info{.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                .size = bytes,
                                .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                         VK_BUFFER_USAGE_TRANSFER_DST_BIT | VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT,
                                .sharingMode = VK_SHARING_MODE_EXCLUSIVE};
  const auto build = [&]() -> Result<> {
    FTH_RETURN_IF_ERROR(check(api_.CreateBuffer(device_, &info, nullptr, &m.buffer), "vkCreateBuffer"));
    VkMemoryRequirements need{};
    api_.GetBufferMemoryRequirements(device_, m.buffer, &need);
    if ((need.memoryTypeBits & (1u << type)) == 0) return fail(Code::resource_exhausted, text("memory type ", type, " takes no buffers"));
    const VkMemoryAllocateFlagsInfo flags{.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                          .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    const VkMemoryAllocateInfo allocate{
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = &flags, .allocationSize = need.size, .memoryTypeIndex = type};
    FTH_RETURN_IF_ERROR(check(api_.AllocateMemory(device_, &allocate, nullptr, &m.memory), "vkAllocateMemory"));
    FTH_RETURN_IF_ERROR(check(api_.BindBufferMemory(device_, m.buffer, m.memory, 0), "vkBindBufferMemory"));
    const VkMemoryPropertyFlags have = memory_.memoryTypes[type].propertyFlags;
    if (map && (have & VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT) != 0 && (have & VK_MEMORY_PROPERTY_HOST_COHERENT_BIT) != 0) {
      void* p = nullptr;
      FTH_RETURN_IF_ERROR(check(api_.MapMemory(device_, m.memory, 0, VK_WHOLE_SIZE, 0, &p), "vkMapMemory"));
      m.mapped = static_cast<std::byte*>(p);
      m.fast_read = (have & VK_MEMORY_PROPERTY_HOST_CACHED_BIT) != 0;
    }
    const VkBufferDeviceAddressInfo address{.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = m.buffer};
    m.address = api_.GetBufferDeviceAddress(device_, &address);
    if (m.address == 0 || m.address % 16 != 0) return fail(Code::internal, "the driver gave a buffer no address, or an unaligned one");
    return {};
  };
  Result<> built = build();
  if (built) return m;
  if (m.buffer) api_.DestroyBuffer(device_, m.buffer, nullptr);
  if (m.memory) api_.FreeMemory(device_, m.memory, nullptr);
  return tl::unexpected<Error>(std::move(built).error());
}

void Context::free(Memory& m) {
  if (!m.buffer) return;
  api_.DestroyBuffer(device_, m.buffer, nullptr);
  api_.FreeMemory(device_, m.memory, nullptr);
  allocated_ -= std::min(allocated_, m.bytes);
  m = {};
}

Result<> Context::run_once(VkCommandBuffer commands) {
  FTH_ASSIGN_OR_RETURN(const uint64_t done, submit(commands));
  return wait(done);
}

Result<> Context::copy(VkBuffer src, uint64_t src_at, VkBuffer dst, uint64_t dst_at, uint64_t bytes) {
  FTH_ASSIGN_OR_RETURN(const VkCommandBuffer commands, begin(VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT));
  const VkBufferCopy region{.srcOffset = src_at, .dstOffset = dst_at, .size = bytes};
  barrier(commands, Between::anything);
  api_.CmdCopyBuffer(commands, src, dst, 1, &region);
  barrier(commands, Between::anything);
  const Result<> ended = end(commands);
  Result<> ran = ended ? run_once(commands) : ended;
  free(commands);
  return ran;
}

Result<> Context::upload(const Memory& m, uint64_t offset, const void* src, uint64_t bytes) {
  if (bytes == 0) return {};
  if (m.mapped) {
    std::memcpy(m.mapped + offset, src, bytes);
    return {};
  }
  if (!staging_.memory.buffer) {
    FTH_ASSIGN_OR_RETURN(staging_.memory, allocate(kStaging, Use::staging));
  }
  for (uint64_t done = 0; done < bytes; done += kStaging) {
    const uint64_t n = std::min(kStaging, bytes - done);
    std::memcpy(staging_.memory.mapped, static_cast<const std::byte*>(src) + done, n);
    FTH_RETURN_IF_ERROR(copy(staging_.memory.buffer, 0, m.buffer, offset + done, n));
  }
  return {};
}

// Reading through a mapping of device memory goes word by word over the bus: unless it is cached, a copy is faster.
Result<> Context::download(const Memory& m, uint64_t offset, void* dst, uint64_t bytes) {
  if (bytes == 0) return {};
  if (m.mapped && (m.fast_read || bytes <= 256)) {
    std::memcpy(dst, m.mapped + offset, bytes);
    return {};
  }
  if (!staging_.memory.buffer) {
    FTH_ASSIGN_OR_RETURN(staging_.memory, allocate(kStaging, Use::staging));
  }
  for (uint64_t done = 0; done < bytes; done += kStaging) {
    const uint64_t n = std::min(kStaging, bytes - done);
    FTH_RETURN_IF_ERROR(copy(m.buffer, offset + done, staging_.memory.buffer, 0, n));
    std::memcpy(static_cast<std::byte*>(dst) + done, staging_.memory.mapped, n);
  }
  return {};
}

}  // namespace fth::vulkan
