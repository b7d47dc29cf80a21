// SmallThinker (arXiv 2507.20984): sparse, router before attention, ReGLU experts, windows and RoPE by layer.

#include <string>

#include "core/model/arch/decoder.h"
#include "core/model/packed.h"

namespace fth {
namespace {

constexpr int64_t kMaxExperts = 4096, kMaxExpertFf = 1 << 22, kMaxWindow = INT32_MAX;
constexpr int64_t kNopePeriod = 4;  // in windowed models the first layer of each four has no position encoding

Result<void> read_gating(ModelReader& reader, Config& c) {
  FTH_ASSIGN_OR_RETURN(const auto stated, reader.find_text("expert_gating_func"));
  const std::string gating = stated.value_or("0");  // ggml's number for "none"
  // The authors' own converter writes the key for softmax only; its sigmoid files have none. Guessing would give fluent nonsense.
  if (gating == "0")
    return reader.undecided(
        "key ", in_quotes(reader.full_key("expert_gating_func")),
        " is missing; converters have been seen to drop it for sigmoid models, the released SmallThinker ones among them. Say which it is: "
        "--override expert_gating_func=sigmoid (or softmax)");
  if (gating == "sigmoid" || gating == "2") {
    c.gating = Gating::sigmoid;
  } else if (gating == "softmax" || gating == "1") {
    c.gating = Gating::softmax;
  } else {
    return reader.unsupported("key ", in_quotes(reader.full_key("expert_gating_func")), " is ", in_quotes(gating),
                              "; supported: softmax (1), sigmoid (2)");
  }
  return {};
}

// Which layers slide: an array of bools, or a period whose first layer is global.
Result<void> read_windows(ModelReader& reader, Model& model, int64_t window) {
  const MetaArray* pattern = reader.find_array("attention.sliding_window_pattern");
  if (pattern == nullptr) {
    FTH_ASSIGN_OR_RETURN(const auto period, reader.find_integer("attention.sliding_window_pattern", 1, 1024));
    for (size_t i = 0; i < model.layers.size(); ++i)
      model.layers[i].window = static_cast<int64_t>(i) % period.value_or(4) == 0 ? 0 : window;
    return {};
  }
  const std::string key = in_quotes(reader.full_key("attention.sliding_window_pattern"));
  if (pattern->count != model.layers.size())
    return reader.bad("key ", key, " has ", pattern->count, " elements; block_count is ", model.layers.size());
  for (size_t i = 0; i < model.layers.size(); ++i) {
    auto slides = pattern->integer(i);
    if (!slides) return tl::unexpected<Error>(std::move(slides).error().context(message(reader.file().name(), ": key ", key)));
    if (*slides != 0 && *slides != 1) return reader.bad("key ", key, " is ", *slides, " for layer ", i, "; it must be 0 or 1");
    model.layers[i].window = *slides == 1 ? window : 0;
  }
  return {};
}

Result<void> read_layout(ModelReader& reader, Model& model) {
  FTH_ASSIGN_OR_RETURN(const auto window, reader.find_integer("attention.sliding_window", 0, kMaxWindow));
  FTH_ASSIGN_OR_RETURN(const auto window_base, reader.find_positive("rope.freq_base_swa"));
  if (window.value_or(0) == 0) {
    // Asked for all the same, so that an override of it is known; it means nothing without a window.
    reader.find_array("attention.sliding_window_pattern");
    return {};
  }
  FTH_RETURN_IF_ERROR(read_windows(reader, model, *window));
  for (size_t i = 0; i < model.layers.size(); ++i) {
    model.layers[i].rope = i % kNopePeriod != 0;
    if (window_base && model.layers[i].window > 0) model.layers[i].rope_base = *window_base;
  }
  if (model.layers.size() == kNopePeriod)
    model.notes.push_back(
        "a windowed model of exactly 4 layers: layer 0 has no position encoding here, as in longer models; llama.cpp rotates it too");
  return {};
}

// Expert down matrices come as [n_embd, n_ff], or transposed, a row per neuron, from the authors' own engine.
Result<void> read_down_layout(ModelReader& reader, Config& c) {
  if (reader.file().find(kPackedVersion) != nullptr) return {};  // stated by layer
  const std::optional<std::string> given = reader.setting("down_layout");
  if (given && *given != "normal" && *given != "transposed")
    return fail(Code::invalid_argument, message("override 'down_layout' = ", in_quotes(*given), ": it must be normal or transposed"));
  const TensorInfo* down = reader.find_tensor(block_name(0, "ffn_down_exps.weight"));
  if (given) {
    c.down_transposed = *given == "transposed";
  } else if (c.n_embd == c.n_ff) {
    return reader.undecided("embedding_length and expert_feed_forward_length are both ", c.n_embd,
                            ", so the shape of ffn_down_exps does not tell whether it is stored transposed. Say which: --override "
                            "down_layout=normal (or transposed)");
  } else {
    c.down_transposed =
        down != nullptr && down->rank >= 2 && down->dims[down->rank - 1] == c.n_embd && down->dims[down->rank - 2] == c.n_ff;
  }
  return {};
}

Result<void> read_experts(ModelReader& reader, Model& model, int64_t i) {
  const Config& c = model.config;
  Layer& layer = model.layers[static_cast<size_t>(i)];
  const int64_t down_rows = c.down_transposed ? c.n_ff : c.n_embd, down_cols = c.down_transposed ? c.n_embd : c.n_ff;
  FTH_ASSIGN_OR_RETURN(layer.router, reader.router(block_name(i, "ffn_gate_inp.weight"), c.n_expert, c.n_embd));
  if (reader.file().find(kPackedVersion) != nullptr) return read_packed_experts(reader, model, i);
  layer.down_layout = c.down_transposed ? DownLayout::by_neuron : DownLayout::row_major;
  FTH_ASSIGN_OR_RETURN(layer.gate, reader.stack(block_name(i, "ffn_gate_exps.weight"), c.n_expert, c.n_ff, c.n_embd));
  FTH_ASSIGN_OR_RETURN(layer.up, reader.stack(block_name(i, "ffn_up_exps.weight"), c.n_expert, c.n_ff, c.n_embd));
  FTH_ASSIGN_OR_RETURN(layer.down, reader.stack(block_name(i, "ffn_down_exps.weight"), c.n_expert, down_rows, down_cols));
  return {};
}

}  // namespace

Result<void> read_smallthinker(ModelReader& reader, Model& model) {
  Config& c = model.config;
  c.activation = Activation::relu;
  c.rope_pairing = RopePairing::neox;
  FTH_RETURN_IF_ERROR(read_sizes(reader, model));
  if (c.rope_dims != c.head_dim)
    return reader.bad("key ", in_quotes(reader.full_key("rope.dimension_count")), " is ", c.rope_dims, "; it must be attention.key_length ",
                      c.head_dim);
  FTH_ASSIGN_OR_RETURN(c.n_expert, reader.integer("expert_count", 1, kMaxExperts));
  FTH_ASSIGN_OR_RETURN(c.top_k, reader.integer("expert_used_count", 1, c.n_expert));
  FTH_ASSIGN_OR_RETURN(c.n_ff, reader.uniform("expert_feed_forward_length", c.n_layer, 1, kMaxExpertFf));
  FTH_RETURN_IF_ERROR(read_gating(reader, c));
  FTH_RETURN_IF_ERROR(read_rope(reader, model));
  FTH_RETURN_IF_ERROR(read_layout(reader, model));
  FTH_RETURN_IF_ERROR(read_down_layout(reader, c));
  FTH_RETURN_IF_ERROR(read_embedding(reader, model));
  for (int64_t i = 0; i < c.n_layer; ++i) {
    FTH_RETURN_IF_ERROR(read_attention(reader, model, i));
    FTH_RETURN_IF_ERROR(read_experts(reader, model, i));
  }
  return {};
}

}  // namespace fth
