#pragma once
// The parts that decoder-only architectures share, for their readers to compose. Each fills its fields of `model` and fails as ModelReader does.

#include "core/base/result.h"
#include "core/model/arch/arch.h"

namespace fth {

// n_ctx, n_embd, n_layer, n_head, n_head_kv, head_dim, rms_eps, rope_dims; sizes `layers`.
Result<void> read_sizes(ModelReader& reader, Model& model);

// Every layer's rope_base, and rope_scale: rope.freq_base, rope.scaling.*. Kinds of scaling other than linear are unimplemented.
Result<void> read_rope(ModelReader& reader, Model& model);

// n_vocab, token_embd, output_norm, output (token_embd where the file has none); checks the vocabulary's size against the embedding.
Result<void> read_embedding(ModelReader& reader, Model& model);

// attn_norm, q, k, v (apart, or rows of a merged attn_qkv), their optional biases, attn_output, ffn_norm of layer i.
Result<void> read_attention(ModelReader& reader, Model& model, int64_t i);

// "blk.3.ffn_up.weight"
std::string block_name(int64_t i, std::string_view part);

}  // namespace fth
