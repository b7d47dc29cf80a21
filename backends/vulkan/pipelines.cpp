// The shaders, compiled by glslc when the project was built, and the pipelines made of them on each device. One layout serves all: 64 bytes of push
// constants and no descriptor. The driver's compiled code is kept in a file if the device was opened with pipeline_cache=FILE.

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "backends/vulkan/context.h"
#include "core/base/bytes.h"

namespace fth::vulkan {
namespace {

constexpr uint32_t kMatmul[] =
#include "shaders/matmul.inc"
    ;
constexpr uint32_t kMatmulSubgroup[] =
#include "shaders/matmul_subgroup.inc"
    ;
#ifdef FTH_VULKAN_COOP  // the list alone, from whichever compiler knows the extension
constexpr uint32_t kMatmulCoop[] = {
#include "shaders/matmul_coop.inc"
};
constexpr bool kHasCoop = true;
#else
constexpr uint32_t kMatmulCoop[] = {0};
constexpr bool kHasCoop = false;
#endif
constexpr uint32_t kRowScales[] =
#include "shaders/row_scales.inc"
    ;
constexpr uint32_t kToF16[] =
#include "shaders/to_f16.inc"
    ;
constexpr uint32_t kRmsNorm[] =
#include "shaders/rms_norm.inc"
    ;
constexpr uint32_t kRope[] =
#include "shaders/rope.inc"
    ;
constexpr uint32_t kKvStore[] =
#include "shaders/kv_store.inc"
    ;
constexpr uint32_t kAttention[] =
#include "shaders/attention.inc"
    ;
constexpr uint32_t kElementwise[] =
#include "shaders/elementwise.inc"
    ;
constexpr uint32_t kCombine[] =
#include "shaders/combine.inc"
    ;
constexpr uint32_t kEmbed[] =
#include "shaders/embed.inc"
    ;
constexpr std::array<std::span<const uint32_t>, kShaders> kCode{kMatmul, kMatmulSubgroup, kMatmulCoop, kRowScales,   kToF16,   kRmsNorm,
                                                                kRope,   kKvStore,        kAttention,  kElementwise, kCombine, kEmbed};
constexpr const char* kNames[] = {"matmul", "matmul_subgroup", "matmul_coop", "row_scales",  "to_f16",  "rms_norm",
                                  "rope",   "kv_store",        "attention",   "elementwise", "combine", "embed"};

constexpr uint64_t kMaxCacheFile = 64 * kMiB;

}  // namespace

bool Context::has_coop_shader() { return kHasCoop; }

Result<VkPipeline> Context::pipeline(Shader shader, const Constants& constants) {
  const auto key = std::make_pair(shader, constants);
  if (const auto found = pipelines_.find(key); found != pipelines_.end()) return found->second;
  const size_t index = static_cast<size_t>(shader);
  VkShaderModule& code = modules_[index];
  if (!code) {
    const VkShaderModuleCreateInfo info{
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO, .codeSize = kCode[index].size_bytes(), .pCode = kCode[index].data()};
    FTH_RETURN_IF_ERROR(check(api_.CreateShaderModule(device_, &info, nullptr, &code), text("shader ", kNames[index])));
  }
  std::array<VkSpecializationMapEntry, std::tuple_size_v<Constants>> entries{};
  for (uint32_t i = 0; i < entries.size(); ++i) entries[i] = {.constantID = i, .offset = 4 * i, .size = 4};
  const VkSpecializationInfo values{.mapEntryCount = static_cast<uint32_t>(entries.size()),
                                    .pMapEntries = entries.data(),
                                    .dataSize = sizeof constants,
                                    .pData = constants.data()};
  const VkPipelineShaderStageRequiredSubgroupSizeCreateInfo lanes{
      .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
      .requiredSubgroupSize = shader == Shader::matmul_coop ? limits_.coop.lanes : limits_.lanes};
  const bool subgroups = shader == Shader::matmul_subgroup || shader == Shader::matmul_coop;
  const VkComputePipelineCreateInfo info{
      .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
      .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                .pNext = subgroups ? &lanes : nullptr,
                .flags = subgroups ? VkPipelineShaderStageCreateFlags{VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT} : 0,
                .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                .module = code,
                .pName = "main",
                .pSpecializationInfo = &values},
      .layout = layout_,
      .basePipelineIndex = -1};
  VkPipeline made = VK_NULL_HANDLE;
  FTH_RETURN_IF_ERROR(check(api_.CreateComputePipelines(device_, cache_, 1, &info, nullptr, &made), text("pipeline ", kNames[index])));
  pipelines_.emplace(key, made);
  return made;
}

// A file that is not there, too large or of another driver is no error: the driver checks the header, and makes what is missing.
Result<> Context::make_pipeline_cache() {
  const VkPushConstantRange range{.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 64};
  const VkPipelineLayoutCreateInfo layout{
      .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .pushConstantRangeCount = 1, .pPushConstantRanges = &range};
  FTH_RETURN_IF_ERROR(check(api_.CreatePipelineLayout(device_, &layout, nullptr, &layout_), "vkCreatePipelineLayout"));

  std::vector<char> old;
  std::error_code e;
  const std::filesystem::path path = settings_.pipeline_cache;
  if (!path.empty() && std::filesystem::is_regular_file(path, e) && std::filesystem::file_size(path, e) <= kMaxCacheFile && !e) {
    std::ifstream in(path, std::ios::binary);
    old.assign(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>());
  }
  // The header says for which driver build the rest is. Drivers should check it themselves, and have not always.
  VkPipelineCacheHeaderVersionOne header{};
  if (old.size() >= sizeof header) std::memcpy(&header, old.data(), sizeof header);
  if (header.headerVersion != VK_PIPELINE_CACHE_HEADER_VERSION_ONE || header.vendorID != properties_.vendorID ||
      header.deviceID != properties_.deviceID || std::memcmp(header.pipelineCacheUUID, properties_.pipelineCacheUUID, VK_UUID_SIZE) != 0)
    old.clear();
  const VkPipelineCacheCreateInfo info{
      .sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO, .initialDataSize = old.size(), .pInitialData = old.data()};
  return check(api_.CreatePipelineCache(device_, &info, nullptr, &cache_), "vkCreatePipelineCache");
}

// Through a temporary file and a rename: two programs that end together leave one whole file. What fails here costs only time at the next start.
void Context::save_pipeline_cache() {
  if (settings_.pipeline_cache.empty() || !cache_) return;
  size_t n = 0;
  if (api_.GetPipelineCacheData(device_, cache_, &n, nullptr) != VK_SUCCESS || n > kMaxCacheFile) return;
  std::vector<char> data(n);
  if (api_.GetPipelineCacheData(device_, cache_, &n, data.data()) != VK_SUCCESS) return;
  const std::string temporary = text(settings_.pipeline_cache, ".", static_cast<int>(getpid()));
  std::ofstream out(temporary, std::ios::binary);
  out.write(data.data(), static_cast<std::streamsize>(n));
  out.close();
  if (!out || std::rename(temporary.c_str(), settings_.pipeline_cache.c_str()) != 0) {
    host_.log(FTH_LOG_WARNING, text(label_, ": the pipeline cache ", settings_.pipeline_cache, " could not be written"));
    std::remove(temporary.c_str());
  }
}

}  // namespace fth::vulkan
