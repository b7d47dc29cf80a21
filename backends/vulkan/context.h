#pragma once
// One open Vulkan device: its queue, its memory, its pipelines. All of a device's objects are made and freed through its Context, which outlives
// them. One thread at a time, as the boundary promises.

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/vulkan/api.h"
#include "backends/vulkan/coop.h"

namespace fth::vulkan {

// Options of open(), see docs/vulkan.md.
enum class CoopMode { automatic, on, off };
struct Settings {
  CoopMode coop = CoopMode::automatic;
  bool subgroups = true;
  bool validation = false;
  bool mapped = true;          // storage is mapped where that costs nothing; off: through copies, as where it would
  bool measure = false;        // time a software device as well
  std::string pipeline_cache;  // a file; empty: pipelines are cached in memory only
  double bytes_per_second = 0, flops_per_second = 0;
};

// What the planner and the plans of segments need to know of a device.
struct Limits {
  uint32_t max_groups_x = 0, max_groups_y = 0;
  uint32_t lanes = 32;      // threads that share a row of a product
  uint32_t groups = 1;      // of `lanes` threads, per workgroup of a product
  bool subgroups = false;   // lanes are subgroups
  uint64_t max_buffer = 0;  // bytes of one allocation
  Coop coop;                // products of several tokens; none: as products of one
};

enum class Shader : uint32_t {
  matmul,
  matmul_subgroup,
  matmul_coop,
  row_scales,
  to_f16,
  rms_norm,
  rope,
  kv_store,
  attention,
  elementwise,
  combine,
  embed
};
inline constexpr size_t kShaders = 12;

// The specialisation constants of a pipeline, by constant_id; [0] is the local size. Unused ones are 0.
using Constants = std::array<uint32_t, 11>;

struct Memory {
  VkBuffer buffer = VK_NULL_HANDLE;
  VkDeviceMemory memory = VK_NULL_HANDLE;
  uint64_t bytes = 0;
  VkDeviceAddress address = 0;
  std::byte* mapped = nullptr;  // null: the host cannot see it
  bool fast_read = false;       // mapped, and reads of it go through the processor's cache
};

class Context {
 public:
  // index: among the physical devices. not_found beyond them, unimplemented for one that lacks what the shaders need.
  static Result<std::unique_ptr<Context>> open(sdk::Host host, uint32_t index, const Settings& settings);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  const Api& api() const { return api_; }
  VkDevice device() const { return device_; }
  VkPipelineLayout layout() const { return layout_; }
  const Limits& limits() const { return limits_; }
  const std::string& label() const { return label_; }  // "vulkan:0"
  Result<fth_device_info> info() const;
  double dispatch_seconds() const { return dispatch_seconds_; }
  double launch_seconds() const { return launch_seconds_; }
  double bytes_per_second() const { return bytes_per_second_; }
  double flops_per_second() const { return flops_per_second_; }
  double coop_flops_per_second() const { return coop_flops_per_second_; }  // of products in cooperative matrices
  CoopMode coop_mode() const { return settings_.coop; }
  bool software() const { return properties_.deviceType == VK_PHYSICAL_DEVICE_TYPE_CPU; }
  bool measured() const { return !software() || settings_.measure; }
  void set_coop_speed(double flops_per_second, std::string how);
  // From here on products go the plain way, because of `why`, which the description and, with `detail`, the log repeat. What is compiled stays as it is.
  void drop_coop(int32_t level, const std::string& why, const std::string& detail = "");
  void say(int32_t level, const std::string& message) const { host_.log(level, text(label_, ": ", message)); }

  enum class Use {
    storage,  // weights, activations, caches: where the device reads it fastest; mapped where that costs nothing
    shared,   // small, written by the host before each submit and read back after it; always mapped
    staging   // the host reads and writes it at the full speed of its memory; the device copies
  };
  Result<Memory> allocate(uint64_t bytes, Use use);
  void free(Memory& m);
  // Between host and device memory; return when done. The range is the caller's to check.
  Result<> upload(const Memory& m, uint64_t offset, const void* src, uint64_t bytes);
  Result<> download(const Memory& m, uint64_t offset, void* dst, uint64_t bytes);

  // Owned by the context, made at its first use.
  Result<VkPipeline> pipeline(Shader shader, const Constants& constants);

  Result<VkCommandBuffer> begin(VkCommandBufferUsageFlags usage);
  Result<> end(VkCommandBuffer commands);
  void free(VkCommandBuffer commands) { api_.FreeCommandBuffers(device_, pool_, 1, &commands); }
  // What the earlier commands wrote is visible to the later ones, which start after them. Between dispatches alone it is cheaper.
  enum class Between { dispatches, anything };
  void barrier(VkCommandBuffer commands, Between between) const;
  Result<> run_once(VkCommandBuffer commands);  // ended; returns when it is done
  // Queues the commands; the device's timeline reaches the returned value when they are done.
  Result<uint64_t> submit(VkCommandBuffer commands);
  Result<> wait(uint64_t value);

  // Two timestamps around the commands of a buffer, where the queue has them: null pools are ignored.
  Result<VkQueryPool> make_timer();
  void free_timer(VkQueryPool timer) { api_.DestroyQueryPool(device_, timer, nullptr); }
  void start(VkCommandBuffer commands, VkQueryPool timer) const;
  void stop(VkCommandBuffer commands, VkQueryPool timer) const;
  double seconds(VkQueryPool timer) const;  // of the last run, which is done; negative: not known
  Result<> complaints() const { return instance_->complaints(); }

 private:
  struct Staging {
    Memory memory;
    VkCommandBuffer commands = VK_NULL_HANDLE;
  };
  Context(sdk::Host host, Settings settings) : host_(host), settings_(std::move(settings)) {}
  Result<> check_device(uint32_t index);
  Result<> make_device();
  Result<> make_pipeline_cache();
  void save_pipeline_cache();
  Result<> measure();
  Result<> copy(VkBuffer src, uint64_t src_at, VkBuffer dst, uint64_t dst_at, uint64_t bytes);
  Result<Memory> allocate_of(uint64_t bytes, uint32_t type, bool map);
  std::vector<uint32_t> memory_types(uint64_t bytes, Use use) const;
  // Fills limits_.coop, or coop_note_ with the reason why not. Behind the other limits.
  Result<> find_coop(bool has_extension, const VkPhysicalDeviceVulkan12Features& f12, uint32_t subgroup_size, uint32_t max_subgroups);
  static bool has_coop_shader();

  sdk::Host host_;
  Settings settings_;
  const Instance* instance_ = nullptr;
  Api api_;
  VkPhysicalDevice physical_ = VK_NULL_HANDLE;
  VkPhysicalDeviceProperties properties_{};
  VkPhysicalDeviceMemoryProperties memory_{};
  std::string label_, driver_;
  std::string coop_note_;  // for the description: what is used, or why not
  Limits limits_;
  bool has_budget_ = false;
  uint32_t family_ = 0;
  uint32_t timestamp_bits_ = 0;  // of the queue's; 0: it has none
  VkSemaphore timeline_ = VK_NULL_HANDLE;
  uint64_t submitted_ = 0;  // the value that the last submit will set
  VkDevice device_ = VK_NULL_HANDLE;
  VkQueue queue_ = VK_NULL_HANDLE;
  VkCommandPool pool_ = VK_NULL_HANDLE;
  VkPipelineLayout layout_ = VK_NULL_HANDLE;
  VkPipelineCache cache_ = VK_NULL_HANDLE;
  std::array<VkShaderModule, kShaders> modules_{};
  std::map<std::pair<Shader, Constants>, VkPipeline> pipelines_;
  Staging staging_;
  uint64_t allocated_ = 0;  // bytes of storage
  double bytes_per_second_ = 0, flops_per_second_ = 0, coop_flops_per_second_ = 0, dispatch_seconds_ = 0, launch_seconds_ = 0;
};

}  // namespace fth::vulkan
