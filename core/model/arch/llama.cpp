// Llama and the dense models that share its name in GGUF files (SmolLM2, Mistral, ...).

#include "core/model/arch/decoder.h"

namespace fth {

Result<void> read_llama(ModelReader& reader, Model& model) {
  constexpr int64_t kMaxFf = 1 << 22, kMaxExperts = 4096;
  Config& c = model.config;
  c.activation = Activation::silu;
  c.rope_pairing = RopePairing::adjacent;  // the converters permute the rows of q and k for it
  FTH_RETURN_IF_ERROR(read_sizes(reader, model));
  FTH_ASSIGN_OR_RETURN(const auto n_expert, reader.find_integer("expert_count", 0, kMaxExperts));
  if (n_expert.value_or(0) > 0)
    return reader.unsupported("key ", in_quotes(reader.full_key("expert_count")), " is ", *n_expert,
                              "; only dense models of this architecture are supported");
  FTH_ASSIGN_OR_RETURN(c.n_ff, reader.uniform("feed_forward_length", c.n_layer, 1, kMaxFf));
  FTH_RETURN_IF_ERROR(read_rope(reader, model));
  FTH_ASSIGN_OR_RETURN(model.rope_factors, reader.find_vector("rope_freqs.weight", c.rope_dims / 2));
  FTH_ASSIGN_OR_RETURN(const auto window, reader.find_integer("attention.sliding_window", 0, INT32_MAX));
  if (window.value_or(0) > 0) model.notes.push_back("key attention.sliding_window is ignored for this architecture, as in llama.cpp");
  FTH_RETURN_IF_ERROR(read_embedding(reader, model));
  for (int64_t i = 0; i < c.n_layer; ++i) {
    FTH_RETURN_IF_ERROR(read_attention(reader, model, i));
    Layer& layer = model.layers[static_cast<size_t>(i)];
    FTH_ASSIGN_OR_RETURN(layer.gate, reader.matrix(block_name(i, "ffn_gate.weight"), c.n_ff, c.n_embd));
    FTH_ASSIGN_OR_RETURN(layer.up, reader.matrix(block_name(i, "ffn_up.weight"), c.n_ff, c.n_embd));
    FTH_ASSIGN_OR_RETURN(layer.down, reader.matrix(block_name(i, "ffn_down.weight"), c.n_embd, c.n_ff));
  }
  return {};
}

}  // namespace fth
