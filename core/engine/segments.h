#pragma once
// Builds the segments that devices compile: each a short op list with static shapes for a bucket of tokens (docs/architecture.md). The same five kinds
// serve every model; what differs between models is data in Config and Layer.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/model/config.h"
#include "core/plan/plan.h"
#include "plugins/abi/fth_backend.h"

namespace fth {

// Token counts that segments are compiled for; a step of n tokens uses the smallest that holds n.
inline constexpr int64_t kBuckets[] = {1, 8, 32, 128, 512};
int64_t bucket_for(int64_t n_tokens);  // n_tokens <= 512

// What a bound tensor of a segment is. The token loop has one area of memory per port that is an activation.
enum class Port : uint8_t {
  ids,            // i32 [N]
  x,              // f32 [N, n_embd]  the residual stream that enters a layer
  y,              // f32 [N, n_embd]  the stream after attention (after the whole layer when it is dense)
  h,              // f32 [N, n_embd]  y normalised: the experts' input
  router_logits,  // f32 [N, n_expert]
  slot_begin,     // i32 [slots + 1]
  rows,           // i32 [N * top_k]
  gates,          // f32 [N, top_k]   weights of the chosen experts
  expert_out,     // f32 [N * top_k, n_embd]
  gate_values,    // f32 [N * top_k, n_ff]  products with the gates, before the activation, of experts that come in two
  logits,         // f32 [N, n_vocab]
  norm,           // f32 [N, n_embd]  a norm inside a segment, when it is exposed
  k_cache,        // [cells, n_head_kv * head_dim]
  v_cache,
  expert_gate,  // SLOTS
  expert_up,
  expert_down,
};

struct Segment {
  std::string name;
  SegmentKind kind = SegmentKind::embed;
  int64_t layer = -1;
  int64_t n_tokens = 0;  // the bucket
  int64_t n_slots = 0;   // experts segments
  bool fine = false;     // products keep about 16 bits of their activations
  std::vector<fth_tensor> tensors;
  std::vector<fth_op> ops;
  std::vector<const Weight*> weights;  // of the WEIGHT tensors, in tensor order
  std::vector<Port> ports;             // of the other bound tensors, in tensor order
  fth_segment view() const;            // valid while this object lives unchanged
  uint64_t weight_bytes() const;       // of all dense weights bound
  // Two for each multiplication and addition of the products, for each row of tokens; experts: for each row of a token and expert, as if no neuron
  // were dead. flops_per_cell: of attention, for each position that a row attends to.
  uint64_t flops_per_row() const;
  uint64_t flops_per_cell() const;
};

// norms: attn_norm and result_norm become outputs (Port::norm), for comparisons. An experts segment in two: gates fills Port::gate_values while up and down are
// still being read, after_gates is the rest. screened: of the head.
enum class Variant { plain, norms, gates, after_gates, screened };
inline constexpr size_t kVariants = 5;

struct SegmentShapes {
  DType kv_dtype = DType::f16;
  int64_t n_ctx = 0;
  int64_t max_bucket = 0;  // of the largest step: sizes the rings of sliding-window layers
  int64_t page_cells = 0;  // of the caches that are in pages (kv_pages.h); 0: none is
};

// Cells of a layer's KV ring: all positions for a global layer, window + max_bucket - 1 for a sliding one if that is fewer.
int64_t kv_cells(const Layer& layer, const SegmentShapes& shapes);
// Whether a layer's cache is in pages: those of layers that see every position, when any is.
bool kv_in_pages(const Layer& layer, const SegmentShapes& shapes);

// table: the model's, or some of its rows under other ids.
Segment embed_segment(const Model& model, const Weight& table, int64_t n_tokens);
Segment router_segment(const Model& model, int64_t layer, int64_t n_tokens);
// Attention, and for a dense layer its feed-forward part too.
Segment attention_segment(const Model& model, int64_t layer, int64_t n_tokens, const SegmentShapes& shapes, Variant variant);
Segment experts_segment(const Model& model, int64_t layer, int64_t n_tokens, Variant variant);
Segment combine_segment(const Model& model, int64_t layer, int64_t n_tokens);
Segment head_segment(const Model& model, int64_t n_tokens, Variant variant);
// One token's logits, of which only those that can be among the k largest are there: HEAD_SCREENED of fth_ops.def.
Segment screened_head_segment(const Model& model, const Weight& plane, const Weight& mean, int64_t k, double z);

}  // namespace fth
