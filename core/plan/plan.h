#pragma once
// Where everything runs and what memory it takes: decided once, before a weight is read, and shown always. Pure functions of their arguments: no I/O,
// no threads, no clock. `forethought plan` prints the result.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/result.h"
#include "core/model/config.h"

namespace fth {

// What the planner knows of one device. Index 0 is always the host's own CPU device.
struct PlanDevice {
  std::string name;                  // "cpu", "vulkan:0"
  bool host_memory = true;           // works in RAM; otherwise in device memory, and what crosses is copied
  uint64_t memory_bytes = 0;         // its own memory that may be used; ignored with host_memory
  double copy_bytes_per_second = 0;  // host <-> device; ignored with host_memory
  std::string refusal;               // not empty: listed, never chosen
  bool wrong = false;                // it computes wrong or has failed: refused even when it is named
  bool beside_cpu = false;           // it computes while the CPU does something else; false for what runs on the CPU's own cores
  uint64_t fixed_bytes = 0;          // of its own memory, once any segment is there: activations
};

// One row of work: a segment of the model for a number of tokens. Layers of the same shape share a kind.
enum class SegmentKind { embed, router, attention, experts, combine, head };
constexpr std::string_view kSegmentKindNames[] = {"embed", "router", "attention", "experts", "combine", "head"};
constexpr std::string_view name(SegmentKind k) { return kSegmentKindNames[static_cast<size_t>(k)]; }

struct SegmentCost {  // on one device
  bool supported = false;
  std::string reason;  // when not supported
  double seconds = 0;
  bool measured = false;    // seconds is what runs took, not the device's own estimate
  double step_seconds = 0;  // for one prefill step of PlanOptions::ubatch tokens; 0 for the head, which runs for the last one only
  uint64_t workspace_bytes = 0;
  uint64_t resident_bytes = 0;
  bool by_profile = false;  // seconds is the median of a profile's runs
};

struct PlanSegment {
  std::string name;  // "layer.3.attention"
  SegmentKind kind = SegmentKind::embed;
  int64_t layer = -1;
  uint64_t weight_bytes = 0;             // dense weights bound to it (moved to the device if it has its own memory)
  uint64_t state_bytes = 0;              // KV cache
  uint64_t in_bytes = 0, out_bytes = 0;  // activations that cross its edges, for one decode step
  std::vector<SegmentCost> cost;         // per device, for one decode step
  bool host_only = false;                // router, experts, combine, embed: data that the host needs at once
  double hides_seconds = 0;  // of this segment's prefill step on a device beside the CPU, as much as runs beside the host's of another step
};

struct PlacementRule {          // --place 'layer.*.attention=vulkan:0'
  std::string pattern, device;  // pattern: '*' matches any run of characters
};

// Whether a rule is about a segment of this name.
bool matches_pattern(std::string_view pattern, std::string_view text);

struct PlanOptions {
  uint64_t ram_budget = 0;     // 0: no limit given; then ram_available is the limit
  uint64_t ram_available = 0;  // what the machine and its cgroup leave free
  uint64_t vram_budget = 0;    // 0: each device's memory_bytes
  bool cpu_only = false;
  std::string device;  // --device: use only this one (and the CPU for what it refuses)
  std::vector<PlacementRule> rules;
  int64_t n_ctx = 0, ubatch = 0;
  // Placements are compared by the time of a decoded token and so many prefill steps. 0: decoding alone counts.
  double steps_per_token = 0;
  bool overlap = false;       // two prefill steps at once: what PlanSegment::hides_seconds hides is not counted
  double share_of_pairs = 0;  // of the steps, those that have one beside them
};

struct Arena {         // one row of memory, per device and tier
  std::string name;    // "dense weights (mapped)", "experts (mapped)", "kv", "activations", "workspace", "program"
  std::string device;  // "ram" or the device's name
  uint64_t bytes = 0;
};

struct Placement {
  std::string segment;
  SegmentKind kind = SegmentKind::embed;
  int64_t layer = -1;
  size_t device = 0;
  double seconds = 0;       // of one run while decoding
  double step_seconds = 0;  // of one prefill step; 0 for the head
  bool measured = false, by_profile = false;
  size_t runner_up = 0;          // equal to device when there is none
  double runner_up_seconds = 0;  // with what it copies
};

struct Refusal {
  std::string subject;  // device or "device: segment"
  std::string reason;
};

struct Plan {
  std::vector<PlanDevice> devices;
  std::vector<Placement> placements;  // in execution order
  std::vector<Arena> arenas;
  std::vector<Refusal> refusals;
  std::vector<std::string> notes;  // things to know, with the next step
  int64_t tier_slots = 0;          // more experts in spare memory of tier_device
  size_t tier_device = 0;
  int64_t expert_slots = 0;  // experts in RAM when they are streamed; 0: all are resident
  uint64_t ram_bytes = 0;    // sum of the "ram" arenas: predicted peak RSS
  uint64_t ram_limit = 0;
  uint64_t bytes_per_token = 0;
  double seconds_per_token = 0;  // predicted decode, all experts at hand
  int64_t ubatch = 0;            // tokens of a prefill step
  double step_seconds = 0;       // predicted for one such step, all experts at hand, copies included
  bool overlap = false;          // prompts of two steps or more have two under way at once: PlanOptions::overlap
  double overlap_seconds = 0;    // predicted for each of two such steps; 0 without overlap
  double tokens_per_second() const { return seconds_per_token > 0 ? 1 / seconds_per_token : 0; }
};

// Shortest path over (segment, device): run time of a decoded token and its share of prompts, plus the copies of what changes device; deterministic, the lower
// device index wins ties.
// resource_exhausted when it cannot fit: the message has the smallest budget that would work and the setting that gets there.
// invalid_argument for a rule or device that matches nothing, or places a segment where it is not supported (with the device's reason).
Result<Plan> make_plan(std::vector<PlanDevice> devices, std::vector<PlanSegment> segments, const std::vector<Arena>& fixed,
                       uint64_t bytes_per_token, const PlanOptions& options);

}  // namespace fth
