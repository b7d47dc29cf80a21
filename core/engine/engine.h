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
#include "core/engine/session.h"
#include "core/model/config.h"
#include "core/plan/plan.h"
#include "core/profile/recorder.h"
#include "core/text/chat_template.h"
#include "core/text/tokenizer.h"

namespace fth {

// Where the experts' weights live while the model runs.
enum class ExpertPlacement { automatic, resident, streamed };  // automatic: resident when all fit the budget

enum class Guess { automatic, on, off };  // automatic: tried both ways every few hundred tokens; the faster one is kept

struct StreamOptions {  // docs/memory.md
  int64_t slots = 0;    // experts kept in RAM; 0: as many as the budget leaves room for
  std::string reader = "auto", policy = "auto";
  uint32_t queue_depth = 0;        // 0: the reader's default
  bool direct = true;              // past the page cache where the file system can
  Guess guess = Guess::automatic;  // read ahead for the next layer what its router says of this layer's input
  bool verify = false;             // check each expert's checksum as it lands (packed models)
  std::filesystem::path warm_set;  // read at the start when it exists, written by save_warm_set(); empty: none
};

struct EngineOptions {
  std::filesystem::path model;
  std::vector<Override> overrides;
  RegistryOptions registry;
  int64_t n_ctx = 0;            // 0: the model's own, at most 4096
  int64_t ubatch = 512;         // tokens per prefill step, at most 512
  DType kv_dtype = DType::f16;  // or f32
  uint64_t ram_budget = 0;      // bytes; 0: what is free
  uint64_t vram_budget = 0;
  bool cpu_only = false;
  std::string device;
  std::vector<PlacementRule> rules;
  double bytes_per_second = 0;  // measured memory bandwidth of the host, 0 when unknown; feeds the cost model
  ExpertPlacement experts = ExpertPlacement::automatic;
  StreamOptions stream;
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
  const Tokenizer& tokenizer() const;
  // The file's template, or ChatML when it has none or one that cannot be parsed: template_note() says so then.
  const ChatTemplate& chat_template() const;
  const std::string& template_note() const;
  Registry& registry();
  const EngineOptions& options() const;  // with the defaults filled in

  // How experts are read, "io_uring O_DIRECT, queue 16, 96 slots of 1.90 MiB, policy reuse"; empty when they are resident.
  std::string streaming() const;
  // Writes which experts were used how often to options().stream.warm_set. Nothing when experts are resident or there is no such path.
  Result<> save_warm_set() const;

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
