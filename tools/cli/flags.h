#pragma once
// The options that several subcommands share, as values, and the functions that register them. Defaults are the members' initial values.

#include <boost/program_options/options_description.hpp>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"
#include "core/text/sampler.h"

namespace fth::cli {

struct CommonFlags {
  bool verbose = false, quiet = false, json = false;
  std::vector<std::string> positional;
};

// Which devices are opened, and how.
struct DeviceFlags {
  int64_t threads = 0;
  bool cpu_only = false;
  std::string cpu_isa, cpus;
  std::vector<std::string> plugins, device_options;
};

struct EngineFlags : DeviceFlags {
  std::string model;
  std::vector<std::string> overrides, places;
  int64_t ctx = 0, ubatch = 0;  // ubatch 0: the planner chooses
  std::string ram, vram, device;
  std::string start_on_cpu = "auto";
  std::string kv_type = "f16", kv_place = "auto", kv_directory;
  // Experts streamed from storage: docs/memory.md.
  std::string experts = "auto", reader = "auto", policy = "auto";
  int64_t slots = 0, queue_depth = 0;
  std::string prefetch = "on", guess = "auto";
  bool verify_experts = false, buffered = false;
  std::string tier = "auto", early_gates = "on", overlap = "on";
  std::string lm_head = "exact", repack = "auto", gather = "auto";
  std::string storage_speed;   // of plan alone: overrules what was measured
  bool wants_storage = false;  // of plan --sweep: some of its budgets stream, even if the largest does not
};

// Which experts a run begins with: warm.h.
struct WarmFlags {
  std::string set = "auto", task;
  int64_t pin = 0;
};

struct SamplingFlags {
  float temperature = 0, top_p = 1, min_p = 0, repeat_penalty = 1;
  int32_t top_k = 0;
  int64_t seed = -1;  // -1: drawn
};

struct PromptFlags {
  std::string prompt, file;
};

namespace po = boost::program_options;
void add_common(CommonFlags& flags, po::options_description& options, const char* json_help = nullptr);  // no --json without its help
void add_devices(DeviceFlags& flags, po::options_description& options);
void add_engine(EngineFlags& flags, po::options_description& options);  // add_devices and the rest
void add_warm(WarmFlags& flags, po::options_description& options);
void add_sampling(SamplingFlags& flags, po::options_description& options);
void add_prompt(PromptFlags& flags, po::options_description& options);

// `forethought plan model.gguf`: the word is the model, if -m does not name one. invalid_argument for two models.
template <class HasModel>
Result<> take_positional_model(const CommonFlags& common, HasModel& flags) {
  if (common.positional.empty()) return {};
  if (!flags.model.empty() || common.positional.size() > 1)
    return fail(Code::invalid_argument, "more than one model is named: '" + common.positional.back() + "' is too much");
  flags.model = common.positional[0];
  return {};
}

// Options of the sampler; draws a seed when there is none. Warns when an option has no effect.
Result<SamplerOptions> sampler_options(const SamplingFlags& flags, const CommonFlags& common);
// The text of -p, -f, the positional words (joined by spaces), or standard input when it is not a terminal. Empty: none of them.
// not_found-like failures of a file are failed_precondition: the model is not to blame.
Result<std::optional<std::string>> prompt_text(const PromptFlags& flags, const std::vector<std::string>& positional);
Result<std::string> read_text(const std::filesystem::path& path);  // "-": standard input
// Token ids: every run of digits in the file, in order. invalid_argument when there are none or one does not fit 32 bits.
Result<std::vector<int32_t>> read_tokens(const std::filesystem::path& path);
// "512,128": positive numbers.
Result<std::vector<int64_t>> parse_counts(std::string_view option, std::string_view list);
Result<uint64_t> parse_size(std::string_view option, std::string_view size);

}  // namespace fth::cli
