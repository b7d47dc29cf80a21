#pragma once
// What Engine and Session hold, shared by engine.cpp, session.cpp and step.cpp. Private to this folder.

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/engine/background_compiler.h"
#include "core/engine/engine.h"
#include "core/engine/kv_pages.h"
#include "core/engine/memory.h"
#include "core/engine/routing.h"
#include "core/engine/segments.h"
#include "core/experts/expert_store.h"
#include "core/profile/recorder.h"

namespace fth {

inline constexpr size_t kPorts = static_cast<size_t>(Port::expert_down) + 1;
inline constexpr size_t kSegmentKinds = static_cast<size_t>(SegmentKind::head) + 1;
inline constexpr int64_t kMaxWanted = 1024;  // logits that a screened head looks for at most
inline constexpr const char* kSecondActivations = "activations of a second step";
inline constexpr int64_t kHeadRows = 32;  // rows of logits per head run when all are asked for

// A segment compiled for one bucket on the device that the plan chose.
struct Compiled {
  Segment segment;
  Executable executable;
  size_t device = 0;                               // index into Registry::devices()
  uint64_t weight_bytes = 0;                       // read by one run; for experts of one expert
  uint64_t workspace_bytes = 0;                    // bound at submit, at the start of the device's workspace
  uint64_t flops_per_row = 0, flops_per_cell = 0;  // Segment's
  std::vector<Buffer> weights;                     // its own, of a segment that was compiled in the background
};

// Whether guessing pays, found out while decoding: of each kPeriod tokens kTrial, after some to fill the slots, alternate in blocks between guessing and not;
// the way that was faster serves the rest. It depends on the disk, the slots and the router's cost; results do not depend on it.
class GuessTrial {
 public:
  bool on(Guess wanted) const {
    if (wanted != Guess::automatic) return wanted == Guess::on;
    const int64_t at = token_ % kPeriod - kBefore;
    return at >= 0 && at < kTrial ? at / kBlock % 2 == 0 : better_;
  }
  void decoded(double seconds) {
    const int64_t at = token_++ % kPeriod - kBefore;
    if (at < 0 || at >= kTrial) return;
    if (at == 0) seconds_[0] = seconds_[1] = 0;
    if (at % kBlock != 0) seconds_[at / kBlock % 2] += seconds;  // the first of a block still profits from the block before
    if (at == kTrial - 1) better_ = seconds_[0] <= seconds_[1];
  }

 private:
  static constexpr int64_t kPeriod = 512, kBefore = 32, kBlock = 8, kTrial = 4 * kBlock;
  int64_t token_ = 0;
  double seconds_[2] = {};
  bool better_ = true;
};

struct ScreenedHead {
  bool ready = false;   // the plane is there, it pays, and it agrees with the exact head
  std::string why_not;  // it was asked for, and the exact head is used
  Weight plane, mean;   // shapes first, data in `memory` when ready
  HostBlock memory;
  HeadErrors errors;
  int64_t k = 0;  // of the compiled segment, with z
  double z = 0;
  uint64_t tokens = 0, rows = 0;  // screened, and rows multiplied for them
  bool check_now() const { return errors.checked < kCheckedFirst || tokens % kCheckedLater == 0; }
  static constexpr int64_t kCheckedFirst = 32;    // screened tokens of a model that are computed by the exact head, too,
  static constexpr uint64_t kCheckedLater = 256;  // and one of so many later
  static constexpr int64_t kMeasuredRows = 8;     // positions at once while errors are measured: their logits take memory
  uint64_t data_bytes() const { return plane.bytes + mean.bytes; }
  // Of a token, where one row in a hundred is multiplied.
  uint64_t expected_bytes(const Weight& head) const { return plane.bytes + head.bytes / 100; }
  uint64_t arena_bytes() const { return data_bytes() + static_cast<uint64_t>(kMeasuredRows * plane.rows) * sizeof(float); }
};

struct Engine::Impl {
  EngineOptions options;
  std::optional<Model> model;
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
  std::string template_note;
  std::unique_ptr<Registry> registry;  // outlives everything below
  Plan plan;
  SegmentShapes shapes;
  KvPagesShape kv_pages;       // of the caches in pages; n_layers 0: there are none
  uint64_t program_bytes = 0;  // resident when the first plan was made
  // What the devices said of a segment, asked once for all the plans that are looked at: by kind, layer, bucket and, for attention, the shape of its cache.
  struct Estimates {
    std::string name;
    uint64_t weight_bytes = 0;
    std::vector<Result<fth_estimate>> by_device;
    std::string shape;  // equal for segments that are equal but for their name
  };
  std::map<std::tuple<SegmentKind, int64_t, int64_t, int64_t, int64_t>, Estimates> estimates;
  const Estimates& estimates_of(SegmentKind kind, int64_t layer, int64_t bucket);
  // Asks options.measure for the segments that several devices may run, and for what it knows of the others.  [decide.cpp]
  void measure_choices();
  std::map<std::pair<size_t, std::string>, SegmentRun> measured_runs;  // by device and shape
  std::vector<double> copy_speed;                                      // [device], measured once
  int64_t ubatch_wanted = 0;                                           // options.ubatch as it was given
  Recorder* recorder = nullptr;                                        // null: nothing is recorded

  // Devices whose memory is the host's share space 0; every other device has a space of its own.
  std::vector<size_t> space_of;     // [device]
  std::vector<size_t> space_owner;  // [space]; of space 0: device 0
  std::vector<size_t> placed;       // [kind * (n_layer + 1) + layer + 1] -> device

  std::map<std::pair<size_t, const std::byte*>, Buffer> weights;  // by device and data
  std::vector<HostBlock> workspace_blocks;                        // [device], host-memory devices only
  std::vector<Buffer> workspaces;                                 // [device]
  std::vector<std::unique_ptr<Compiled>> compiled;                // see get()

  // Streamed experts only: dense weights read into one block, embedding rows read when a token needs them, experts in the store's slots.
  std::unique_ptr<ExpertStore> store;
  Buffer slots;  // the store's memory
  HostBlock dense, embedding_rows;
  std::map<const std::byte*, std::byte*> dense_place;  // mapped data -> its copy in `dense`
  std::vector<ReadFile> files;                         // of the model
  GuessTrial guess_trial;
  ScreenedHead screen;
  std::vector<HostBlock> reordered;                 // [layer]: down matrices, neuron-major; then what is interleaved
  std::vector<Weight> as_in_file;                   // [layer]: the down matrices before
  std::vector<std::pair<Weight*, Weight>> as_rows;  // of a resident model: what is interleaved, and how it lay before
  std::string repack_note;
  Weight embedding;  // embedding_rows as the embed segment's table; empty: the whole table is at hand
  bool streamed() const { return plan.expert_slots > 0; }

  size_t device_for(SegmentKind kind, int64_t layer) const {
    return placed[static_cast<size_t>(kind) * static_cast<size_t>(model->config.n_layer + 1) + static_cast<size_t>(layer + 1)];
  }
  Device& device(size_t d) { return registry->devices()[d].device; }
  Segment build(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant) const;
  // As plans know it, which are made before weights are interleaved: the same work, whatever the order of rows. Gates are in the order of the file.
  Segment build_planned(SegmentKind kind, int64_t layer, int64_t bucket) const;
  Result<std::unique_ptr<Compiled>> compile(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant, size_t device);
  std::unique_ptr<Compiled> describe(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant, size_t device) const;
  // Why the CPU stands in for the device until its segments are compiled; then a cache needs a buffer of both. Empty: it does not.  [start_on_cpu.cpp]
  std::vector<std::string> late;  // [device]
  void find_late();
  bool starts_on_cpu(size_t d) const { return !late[d].empty(); }
  bool any_late() const;
  void say_late();  // a note of the plan for each such device that it uses
  // What compiling took, for the next start: of segments that one token needs.
  std::string compile_key(size_t d);
  void keep_compile_seconds();
  std::vector<double> compile_seconds;  // [device], until it is kept
  Result<Compiled*> stand_in(size_t index, SegmentKind kind, int64_t layer, int64_t bucket);
  // Between steps: what has been compiled in the background is used from now on, what is still missing begins to be compiled.
  void move_over(bool wait = false);
  // The executable of a segment, compiled at its first use and kept.
  Result<Compiled*> get(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant);
  size_t compiled_at(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant) const;  // its place in `compiled`
  // The buffer of a weight on a device: imported where the device reads host memory, copied there once otherwise.
  Result<const Buffer*> weight(size_t device, const Weight& w);
  std::byte* place(const Weight& w) const;  // its bytes in the host's memory

  // A device that failed while it was in use, until surviving() has dealt with it; and how often that has happened.  [recover.cpp]
  std::optional<size_t> failed_device;
  uint64_t generation = 0;
  // Passes `outcome` on; an error is the device's, unless that is the host's CPU, which nothing can stand in for.
  template <class R>
  R blame(size_t device, R outcome) {
    if (!outcome && device != 0) failed_device = device;
    return outcome;
  }
  // Moves all work of a device to the host's CPU and says so in the log and the plan. Fails with `why` where the CPU cannot run it. What the CPU cannot take over within the
  // RAM that was planned with is planned anew: fewer slots, or experts that were resident are streamed; resource_exhausted where nothing fits.
  Result<> lose_device(size_t device, const Error& why);
  Result<> plan_without(size_t device, const Error& why);  // [replan.cpp]
  Result<> decide_again();
  void let_go();               // everything that was loaded and compiled for the plan before
  uint64_t n_plans = 0;        // made anew since open(): sessions lay out their memory again
  std::optional<Error> ended;  // nothing can run any more, and why
  // Runs `work`; again, without the device that failed, as long as that is why it fails.
  Result<> surviving(const std::function<Result<>()>& work);

  Result<> detect();  // devices and spaces
  Result<> name_missing() const;
  // Experts on the device that is quickest for a bucket.  [expert_choice.cpp]
  ExpertChoice expert_choice;
  std::array<size_t, std::size(kBuckets)> experts_on{};  // where the plan has them on device 0
  std::map<size_t, Buffer> other_slots;                  // the store's memory as devices other than 0 know it
  Result<> choose_experts();
  void add_expert_workspaces(std::vector<Arena>* fixed);
  Result<const Buffer*> slots_on(size_t device);
  // The plan: with the ubatch that options name or the best one; then with the KV cache in memory or on storage; then for one choice of all.  [decide.cpp]
  Result<> decide();
  Result<> decide_with(int64_t ubatch);
  double expected_decode_seconds() const;  // of a token under the plan, reads from storage included
  // page_cells: the caches of layers without a window in pages of so many positions, resident_pages of each in RAM; 0: all caches in one piece.  [engine.cpp]
  Result<> plan_for(int64_t ubatch, int64_t page_cells, int64_t resident_pages);
  Result<> find_tier();  // spare device memory for experts
  // Two steps of a prompt at once.  [overlap.cpp]
  bool works_beside_cpu(size_t d);  // it computes while the engine's thread does something else
  bool may_overlap();               // by the model and the options, if attention is on such a device
  bool overlap_pays() const;        // by the plan: attention is on such a device
  int64_t two_layers_of_experts() const { return 2 * model->config.n_expert; }  // slots that two steps hold at once
  void set_hidden_seconds(std::vector<PlanSegment>* segments) const;
  void weigh_prompts(PlanOptions* p) const;
  // Smaller steps than the largest may pay, although all experts are at hand: a usual prompt has two of them then.
  bool smaller_steps_may_pay() const;
  void say_overlap();
  Result<> make_resident();
  Result<> load_weights();
  Result<> compile_decode();  // what a token needs, so that a device that cannot says so here
  Result<> make_streamed();
  Result<> make_workspaces();
  // Down matrices of a plain file in neuron-major order: wanted before the plan is made, which says whether experts are resident, made after it.  [repack.cpp]
  bool wants_reordered();
  void keep_order(const std::string& why);
  void undo_reorder(const std::string& why);  // after reorder(): the matrices as they are in the file
  Result<> reorder();
  Result<> reorder_down();
  // Weights that the CPU multiplies by a token, in panels of 16 rows: copies of resident ones, streamed models' dense ones where they are.
  Result<> interleave();
  std::optional<size_t> refuses_interleaved_gates();  // a device that experts of some bucket go to
  // The screened head.  [screened_head.cpp]
  void shape_plane();
  Result<> make_plane();
  bool trust_screen();         // false, and the exact head from now on, where the checked tokens do not agree
  void screen_for(int64_t k);  // what the screened segment is built with; one that was compiled for another k or z goes
  bool screens(int64_t k) const { return screen.ready && k > 0 && k <= kMaxWanted && k <= model->config.n_vocab / 16; }
  // Rows of the embedding into embedding_rows, in order.
  Result<> read_embedding_rows(std::span<const int32_t> ids);

  std::vector<std::unique_ptr<Compiled>> stand_ins;  // as `compiled`, on the CPU
  uint64_t stand_in_workspace = 0;                   // the largest that they need
  BackgroundCompiler background;                     // last: its worker uses the devices
};

ExpertSource expert_source(const Model& model);  // [streaming.cpp]

enum class Want { nothing, last_logits, all_logits };

using OnRows = std::function<Result<>(int64_t first_pos, int64_t rows, const float* values)>;

// The KV cache of one layer, in the memory of the device that runs its attention.
struct LayerCache {
  size_t device = 0;
  int64_t paged = -1;  // its index in Session::Impl::pages; -1: it is in one piece, below
  HostBlock block;     // host-memory devices: k then v
  Buffer k, v;
  Buffer cpu_k, cpu_v;  // the same memory for the CPU, where that stands in for the device
  int64_t cells = 0;
};

// One activation: its place in every space's block, and which spaces hold its current value.
struct Area {
  uint64_t offset = 0;
  uint64_t row_bytes = 0;
  uint64_t bytes = 0;
  uint32_t valid = 0;  // bit s: space s is current
};

// An expert that an EXPERTS run uses: its place in the routing, and where its matrices lie.
struct BoundExpert {
  size_t slot = 0;  // index into Routing::experts
  uint64_t gate = 0, up = 0, down = 0;
};

// What one step works on: its activations, its routing, its tables.
struct StepMemory {
  HostBlock activations;            // space 0
  std::vector<Buffer> act_buffers;  // [device] that works in host memory: the block imported; others: their own copy
  std::array<Area, kPorts> areas;
  Routing routing;
  std::vector<fth_binding> bindings;
  std::vector<BoundExpert> bound;    // of the EXPERTS run at hand
  std::vector<int32_t> begin, rows;  // its tables
  std::vector<int32_t> order;        // the layer's experts as they are requested
  std::vector<int32_t> gates_done;   // experts of the layer whose gate values are there, the rest not yet
  Routing guessed;

  template <class T>
  T* host(Port p) const {
    return reinterpret_cast<T*>(activations.data() + areas[static_cast<size_t>(p)].offset);
  }
};

struct Session::Impl {
  Engine::Impl* engine = nullptr;
  static constexpr uint64_t kNoGeneration = UINT64_MAX;
  uint64_t generation = 0;  // of the engine, when caches and activations were made
  uint64_t n_plans = 0;     // likewise
  std::vector<int32_t> tokens;
  std::vector<LayerCache> caches;  // [layer]
  std::unique_ptr<KvPages> pages;  // of the layers that have theirs in pages
  Buffer page_memory;              // theirs
  KvPagesStats kv_before;          // when the figures were reset
  StepMemory memory,
      earlier;  // earlier: of the first of two steps that are under way at once, without logits; empty where the plan has none
  Stats stats;
  std::map<std::pair<size_t, SegmentKind>, SegmentTime> times;
  Inspect inspect;
  ForceRouting force_routing;
  OnRouting on_routing;
  int64_t wanted_logits = 0;   // 0: all
  bool head_again_ok = false;  // the last step was a decode

  static Result<std::unique_ptr<Impl>> make(Engine::Impl& engine);
  Result<> lay_down();  // activations and pages of the shapes that the plan has, then make_memory()
  // Activations and caches where the engine's segments run now; those that are in the right place already stay.
  Result<> make_memory();
  Result<> restore();  // [recover.cpp]
  // step() after the tokens so far, on other devices if one fails.
  Result<uint64_t> run_step(std::span<const int32_t> ids, Want want, const OnRows& on_rows);
  // Whether two steps of a prompt may be under way at once now.  [overlap.cpp]
  bool overlaps() const;
};

// Activations of a session, for the plan: bytes that are touched in the host's memory, and all that a device with memory of its own takes.  [session.cpp]
struct ActivationBytes {
  uint64_t touched = 0, all = 0, earlier = 0;  // earlier: Session::Impl::earlier, in either memory
};
ActivationBytes activation_bytes(const Engine::Impl& engine);

// The heads side by side at rows of the step at hand, which has `ids` from `pos` on; `exact` are their logits.  [screened_head.cpp]
Result<> compare_head_rows(Session::Impl& session, std::span<const int32_t> ids, int64_t pos, int64_t first_row, int64_t rows,
                           const float* exact, int64_t k, HeadAgreement* sum);

// The head of the last step's only position, with k wanted logits.  [screened_head.cpp]
Result<> run_head_again(Session::Impl& session, int64_t k);

// Runs the model over ids at positions pos .. pos + n - 1 and returns the bytes of weights and KV read: the token loop. n <= the engine's ubatch, or up to twice
// that where session.overlaps(): then two steps are under way at once, one's attention on its device while the CPU runs the other's experts, with the same bits.
// With last_logits, row 0 of Port::logits is the last position's; with all_logits on_rows is called for each block of rows.  [step.cpp]
Result<uint64_t> step(Session::Impl& session, std::span<const int32_t> ids, int64_t pos, Want want, const OnRows& on_rows);

}  // namespace fth
