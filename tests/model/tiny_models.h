#pragma once
// Complete models of a few kilobytes, for tests that need a file which loads. Random weights.

#include <string>

#include "tests/model/gguf_writer.h"

namespace fth::test {

struct TinyShape {
  uint32_t n_layer = 5, n_embd = 32, n_head = 4, n_head_kv = 2, head_dim = 16, n_ff = 64, n_expert = 4, top_k = 2, n_vocab = 48;
  uint32_t window = 8;  // 0: none
  GgmlType matrix = GgmlType::q4_0;
  GgmlType router = GgmlType::f32;
  bool tied = false;
  bool down_transposed = false;
};

inline void tiny_matrix(GgufWriter& w, const std::string& name, GgmlType type, std::vector<uint64_t> dims) {
  uint64_t count = 1;
  for (const uint64_t d : dims) count *= d;
  w.tensor(name, type, std::move(dims), weights(type, count, static_cast<uint32_t>(w.tensors.size() + 1)));
}

inline void tiny_common(GgufWriter& w, const TinyShape& s, const std::string& arch) {
  w.text("general.architecture", arch).text("general.name", "tiny test model");
  w.u32(arch + ".context_length", 128).u32(arch + ".embedding_length", s.n_embd).u32(arch + ".block_count", s.n_layer);
  w.u32(arch + ".attention.head_count", s.n_head).u32(arch + ".attention.head_count_kv", s.n_head_kv);
  w.u32(arch + ".attention.key_length", s.head_dim).u32(arch + ".attention.value_length", s.head_dim);
  w.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-6f).f32(arch + ".rope.freq_base", 10000.0f);
  tiny_matrix(w, "token_embd.weight", s.matrix, {s.n_embd, s.n_vocab});
  tiny_matrix(w, "output_norm.weight", GgmlType::f32, {s.n_embd});
  if (!s.tied) tiny_matrix(w, "output.weight", s.matrix, {s.n_embd, s.n_vocab});
  for (uint32_t i = 0; i < s.n_layer; ++i) {
    const std::string b = "blk." + std::to_string(i) + ".";
    const uint64_t q = static_cast<uint64_t>(s.n_head) * s.head_dim, kv = static_cast<uint64_t>(s.n_head_kv) * s.head_dim;
    tiny_matrix(w, b + "attn_norm.weight", GgmlType::f32, {s.n_embd});
    tiny_matrix(w, b + "attn_q.weight", s.matrix, {s.n_embd, q});
    tiny_matrix(w, b + "attn_k.weight", s.matrix, {s.n_embd, kv});
    tiny_matrix(w, b + "attn_v.weight", s.matrix, {s.n_embd, kv});
    tiny_matrix(w, b + "attn_output.weight", s.matrix, {q, s.n_embd});
    tiny_matrix(w, b + "ffn_norm.weight", GgmlType::f32, {s.n_embd});
  }
}

inline GgufWriter tiny_smallthinker(const TinyShape& s = {}) {
  GgufWriter w;
  const std::string a = "smallthinker";
  tiny_common(w, s, a);
  w.u32(a + ".expert_count", s.n_expert).u32(a + ".expert_used_count", s.top_k).u32(a + ".expert_feed_forward_length", s.n_ff);
  w.u32(a + ".expert_gating_func", 2).u32(a + ".vocab_size", s.n_vocab);
  if (s.window > 0) w.u32(a + ".attention.sliding_window", s.window);
  for (uint32_t i = 0; i < s.n_layer; ++i) {
    const std::string b = "blk." + std::to_string(i) + ".";
    const std::vector<uint64_t> in{s.n_embd, s.n_ff, s.n_expert}, out{s.n_ff, s.n_embd, s.n_expert};
    tiny_matrix(w, b + "ffn_gate_inp.weight", s.router, {s.n_embd, s.n_expert});
    tiny_matrix(w, b + "ffn_gate_exps.weight", s.matrix, in);
    tiny_matrix(w, b + "ffn_up_exps.weight", s.matrix, in);
    tiny_matrix(w, b + "ffn_down_exps.weight", s.matrix, s.down_transposed ? in : out);
  }
  return w;
}

inline GgufWriter tiny_llama(const TinyShape& s = {}) {
  GgufWriter w;
  tiny_common(w, s, "llama");
  w.u32("llama.feed_forward_length", s.n_ff).u32("llama.rope.dimension_count", s.head_dim);
  for (uint32_t i = 0; i < s.n_layer; ++i) {
    const std::string b = "blk." + std::to_string(i) + ".";
    tiny_matrix(w, b + "ffn_gate.weight", s.matrix, {s.n_embd, s.n_ff});
    tiny_matrix(w, b + "ffn_up.weight", s.matrix, {s.n_embd, s.n_ff});
    tiny_matrix(w, b + "ffn_down.weight", s.matrix, {s.n_ff, s.n_embd});
  }
  return w;
}

}  // namespace fth::test
