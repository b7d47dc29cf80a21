#pragma once
// The public face: open a model on the hardware that is there, then run sessions on it.
//
//   auto engine = fth::Engine::open({.model = "model.gguf"});
//   auto session = (*engine)->new_session();
//   auto ids = (*engine)->tokenizer().encode("Hello", fth::SpecialTokens::parse);
//   session->prefill(ids);  ...  session->decode(id);
//
// An Engine may have several Sessions; one thread at a time uses an engine and all of its sessions.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/result.h"
#include "core/device/registry.h"
#include "core/engine/expert_choice.h"
#include "core/engine/session.h"
#include "core/model/config.h"
#include "core/plan/stream_model.h"
#include "core/profile/recorder.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"

namespace fth {

// Where the experts' weights live while the model runs.
enum class ExpertPlacement { automatic, resident, streamed };  // automatic: resident when all fit the budget

// Where the KV cache of layers without a window lives. storage: the newest part in RAM, the rest in a file (docs/memory.md); automatic: that only where the
// budget has no room for the cache, or with it for two tokens' experts.
enum class KvPlacement { automatic, memory, storage };

struct KvOptions {
  DType dtype = DType::f16;  // or f32, or q8_0: half the bytes of f16, and its rounding
  KvPlacement placement = KvPlacement::automatic;
  std::filesystem::path directory = "/var/tmp";  // of that file; it has no name and goes with the session
  int64_t page_tokens = 256;                     // a multiple of 32
};

// Whether the host's CPU runs a device's segments until the device has compiled them, in a thread of its own. It takes over between two steps; which steps ran where depends on
// time then, and with it the last bits of results. Devices that work in the host's memory only, and not experts.
// automatic: an NPU, or a device that is no CPU and took more than kSlowCompile seconds for what a token needs when it last compiled it.
enum class StartOnCpu { off, automatic, on };
inline constexpr double kSlowCompile = 1;

enum class Guess { automatic, on, off };  // automatic: tried both ways every few hundred tokens; the faster one is kept

struct StreamOptions {  // docs/memory.md
  int64_t slots = 0;    // experts kept in RAM; 0: as many as the budget leaves room for
  std::string reader = "auto", policy = "auto";
  uint32_t queue_depth = 0;        // reads in flight at most; 0: the reader's default
  uint64_t request_bytes = 0;      // longest single read, a multiple of 4096; 0: the store's default
  StorageSpeed storage;            // measured; 0 when unknown: the plan's choices then rest on 1 GB/s
  std::string tuning;              // where depth, length and speed come from, for Engine::streaming(); may be empty
  bool direct = true;              // past the page cache where the file system can
  Guess guess = Guess::automatic;  // read ahead for the next layer what its router says of this layer's input
  bool early_gates = true;         // compute the gate of an expert while its up and down are still being read
  std::string tier =
      "auto";  // device whose spare memory holds more experts; "off"; auto: the first in use that has memory of its own and copies at twice the speed of storage
  bool prefetch = true;  // ask for a layer's experts before its attention; false: after it, as a router behind attention would have to
  bool verify = false;   // check each expert's checksum as it lands (packed models)
};

// What one run of a segment takes on a device; 0 where that is not known. by_profile: the median of a profile's runs of this model, not of made-up data.
struct SegmentRun {
  double seconds = 0;
  bool by_profile = false;
};
enum class IfUnmeasured { measure, leave };
// Asked while a plan is made: to measure segments whose place is a choice, and for what is known of all the others.
using MeasureSegments =
    std::function<std::vector<SegmentRun>(const Registry& registry, size_t device, std::span<const fth_segment> segments, IfUnmeasured)>;

// How far the screened head's estimates are from the products, in their own deviations, at the rows of the largest logits: measured over tokens of the model
// itself (screened_head.h). Kept by the caller from run to run.
struct HeadErrors {
  int64_t positions = 0, samples = 0;
  double sum = 0, squares = 0, largest = 0;
  int64_t checked = 0,
          same = 0;      // screened positions that were computed by the exact head, too; those with the same wanted logits, to the bit
  bool enough() const;   // to screen by
  bool trusted() const;  // at least 99.99 % of the checked ones are the same
  double z() const;      // a row is skipped when its estimate is so many deviations too small
  bool operator==(const HeadErrors&) const = default;
};

enum class HeadMode {
  exact,
  screened
};  // screened: logits that cannot be among the wanted ones (Session::set_wanted_logits) are not computed

// Orders in memory: the down matrices of a plain file's experts neuron-major (core/model/neuron_major.h), so that decoding reads live neurons only, when all
// experts are resident; and what the CPU multiplies whole interleaved (core/model/interleaved.h). Results keep their bits. memory is about down matrices.
enum class Repack { automatic, memory, off };

struct EngineOptions {
  std::filesystem::path model;
  std::vector<Override> overrides;
  RegistryOptions registry;
  int64_t n_ctx = 0;   // 0: the model's own, at most 4096
  int64_t ubatch = 0;  // tokens per prefill step, at most 512; 0: the planner chooses
  KvOptions kv;
  uint64_t ram_budget = 0;  // bytes; 0: what is free
  uint64_t vram_budget = 0;
  bool cpu_only = false;
  std::string device;
  std::vector<PlacementRule> rules;
  MeasureSegments measure;      // null: the plan rests on the devices' own estimates
  double bytes_per_second = 0;  // measured memory bandwidth of the host, 0 when unknown; feeds the cost model
  ExpertPlacement experts = ExpertPlacement::automatic;
  StreamOptions stream;
  KeptExpertTimes expert_times;
  // off: a device's segments are compiled before the first step, and a failure is an error of open(). Else one that it cannot compile stays on the CPU, and the log says so.
  StartOnCpu start_on_cpu = StartOnCpu::off;
  KeptExpertTimes compile_times;  // likewise one figure for each device: seconds that compiling what a token needs took
  // Prompts of two steps or more have two under way at once where attention is on a device beside the CPU: the same bits, sooner.
  bool overlap = true;
  HeadMode head = HeadMode::exact;
  Repack repack = Repack::automatic;                           // memory: automatic, and failed_precondition where that is not possible
  bool plan_only = false;                                      // stop after the plan: no weight is touched, sessions are refused
  std::function<void(uint64_t done, uint64_t total)> on_load;  // bytes made resident, from open()'s thread
};

class Engine {
 public:
  // Errors: those of load_model, make_plan, Registry::open; unavailable when a device fails while it is set up.
  static Result<std::unique_ptr<Engine>> open(const EngineOptions& options);
  ~Engine();

  const Model& model() const;
  const Plan& plan() const;
  // The plan that another --ram would give, all else equal; Engine's own stays. Errors: those of make_plan.
  Result<Plan> plan_within(uint64_t ram_budget);
  const Tokenizer& tokenizer() const;
  // The file's template, or ChatML when it has none or one that cannot be parsed: template_note() says so then.
  const ChatTemplate& chat_template() const;
  const std::string& template_note() const;
  Registry& registry();
  // Which device runs the experts of each bucket where several could; no candidates: the plan alone says.
  const ExpertChoice& expert_choice() const;
  const EngineOptions& options() const;  // with the defaults filled in

  // How experts are read, "io_uring O_DIRECT, queue 16, 96 slots of 1.90 MiB, policy reuse; " and StreamOptions::tuning; empty when they are resident.
  std::string streaming() const;

  // The warm set, which experts were used how often: a file that one process leaves and the next begins with (docs/memory.md). Results never depend on it.
  uint64_t fingerprint() const;  // of the model file; names its warm sets
  // Fills free slots with the most used experts; how many were read. not_found, data_loss (damaged), failed_precondition (another model, or resident
  // experts): nothing has changed then. unavailable when reading an expert fails.
  Result<int64_t> load_warm_set(const std::filesystem::path& path);
  // A whole file or none; unavailable when it cannot be written. Writes nothing when no expert was ever used.
  Result<> save_warm_set(const std::filesystem::path& path) const;
  // Keeps the n most used experts in their slots as long as the engine lives; how many there were (fewer than n when fewer are known).
  // resource_exhausted, and nothing is pinned, when fewer than top_k slots would be left; failed_precondition when experts are resident.
  Result<int64_t> pin_most_used(int64_t n);

  // The screened head: "2 bits a weight, 57 MiB, z 5.9 from 64 positions" or why the exact one is used; empty when it was not asked for.
  std::string screened_head() const;
  const HeadErrors& head_errors() const;
  void set_head_errors(const HeadErrors& errors);  // of this model, by its fingerprint; what was measured before is forgotten

  // "down matrices of 21 layers in neuron-major order, 0.30 s; 64 weights interleaved (99.0 MiB), 0.10 s", or why they are as the file has them; empty where
  // there is nothing to put in order.
  const std::string& repacked() const;

  uint64_t slot_bytes() const;  // of one streamed expert, blocks included; 0 for a dense model

  // Neurons of one layer's experts that the devices have counted since open(): of tokens that had an expert to themselves, as in decode.
  struct LiveNeurons {
    uint64_t live = 0, all = 0;
  };
  // By layer; empty where no device counts them: no experts, or an activation that leaves no neuron at zero.
  std::vector<LiveNeurons> live_neurons() const;

  // For each device and shape of segment in a record of this engine, the median of its runs with every row in use. Between steps.
  void each_profiled(const Recorder& recorder,
                     const std::function<void(size_t device, const fth_segment& segment, double median_s)>& tell) const;
  // A recorder with a lane for each thread and device of this engine.
  std::unique_ptr<Recorder> new_recorder() const;
  // Where all of this engine's sessions note what they do when; null (as at the start): nowhere. Between steps, from the thread that runs them. It was made
  // by new_recorder() of this engine and lives until it is replaced.
  void set_recorder(Recorder* recorder);

  // resource_exhausted when the KV cache cannot be allocated.
  Result<Session> new_session();

  struct Impl;

 private:
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fth
