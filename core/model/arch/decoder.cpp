// Keys and tensors that decoder-only architectures share.

#include "core/model/arch/decoder.h"

#include <string>

namespace fth {
namespace {

// Finite and generous: each is several times the largest model known, and products of any three stay far below 2^63.
constexpr int64_t kMaxEmbd = 1 << 20, kMaxLayers = 1024, kMaxHeads = 4096, kMaxHeadDim = 4096, kMaxContext = 1 << 28, kMaxVocab = 1 << 24;

}  // namespace

std::string block_name(int64_t i, std::string_view part) { return message("blk.", i, ".", part); }

Result<void> read_sizes(ModelReader& reader, Model& model) {
  Config& c = model.config;
  FTH_ASSIGN_OR_RETURN(c.n_ctx, reader.integer("context_length", 1, kMaxContext));
  FTH_ASSIGN_OR_RETURN(c.n_embd, reader.integer("embedding_length", 1, kMaxEmbd));
  FTH_ASSIGN_OR_RETURN(c.n_layer, reader.integer("block_count", 1, kMaxLayers));
  FTH_ASSIGN_OR_RETURN(c.n_head, reader.uniform("attention.head_count", c.n_layer, 1, kMaxHeads));
  FTH_ASSIGN_OR_RETURN(const auto n_head_kv, reader.find_uniform("attention.head_count_kv", c.n_layer, 1, kMaxHeads));
  c.n_head_kv = n_head_kv.value_or(c.n_head);
  if (c.n_head % c.n_head_kv != 0)
    return reader.bad("key ", in_quotes(reader.full_key("attention.head_count_kv")), " is ", c.n_head_kv,
                      ", which does not divide attention.head_count ", c.n_head);

  FTH_ASSIGN_OR_RETURN(const auto key_length, reader.find_integer("attention.key_length", 1, kMaxHeadDim));
  if (!key_length && (c.n_embd % c.n_head != 0 || c.n_embd / c.n_head > kMaxHeadDim))
    return reader.bad("key ", in_quotes(reader.full_key("attention.key_length")), " is missing, and embedding_length ", c.n_embd,
                      " does not split into attention.head_count ", c.n_head, " heads of at most ", kMaxHeadDim);
  c.head_dim = key_length ? *key_length : c.n_embd / c.n_head;
  FTH_ASSIGN_OR_RETURN(const auto value_length, reader.find_integer("attention.value_length", 1, kMaxHeadDim));
  if (value_length && *value_length != c.head_dim)
    return reader.unsupported("key ", in_quotes(reader.full_key("attention.value_length")), " is ", *value_length,
                              " and attention.key_length ", c.head_dim, "; only equal ones are supported");

  FTH_ASSIGN_OR_RETURN(c.rms_eps, reader.positive("attention.layer_norm_rms_epsilon"));
  if (c.rms_eps >= 1)
    return reader.bad("key ", in_quotes(reader.full_key("attention.layer_norm_rms_epsilon")), " is ", c.rms_eps, "; it must be below 1");
  FTH_ASSIGN_OR_RETURN(const auto rope_dims, reader.find_integer("rope.dimension_count", 2, c.head_dim));
  c.rope_dims = rope_dims.value_or(c.head_dim);
  if (c.rope_dims % 2 != 0)
    return reader.bad("key ", in_quotes(reader.full_key("rope.dimension_count")), " is ", c.rope_dims,
                      "; rotation takes pairs, it must be even");
  model.layers.resize(static_cast<size_t>(c.n_layer));
  return {};
}

Result<void> read_rope(ModelReader& reader, Model& model) {
  FTH_ASSIGN_OR_RETURN(const auto base, reader.find_positive("rope.freq_base"));
  if (!base) model.notes.push_back("key rope.freq_base is missing: 10000 is used");
  for (Layer& layer : model.layers) layer.rope_base = base.value_or(10000);

  FTH_ASSIGN_OR_RETURN(const auto stated, reader.find_text("rope.scaling.type"));
  const std::string kind = stated.value_or("linear");
  if (kind != "none" && kind != "linear")
    return reader.unsupported("key ", in_quotes(reader.full_key("rope.scaling.type")), " is ", in_quotes(kind),
                              "; supported: none, linear");
  FTH_ASSIGN_OR_RETURN(const auto factor, reader.find_positive("rope.scaling.factor"));
  FTH_ASSIGN_OR_RETURN(const auto old_factor, reader.find_positive("rope.scale_linear"));  // its name before 2024
  const double scale = factor ? *factor : old_factor.value_or(1);
  model.config.rope_scale = kind == "none" ? 1 : 1 / scale;
  FTH_ASSIGN_OR_RETURN(const auto magnitude, reader.find_positive("rope.scaling.attn_factor"));
  if (magnitude && *magnitude != 1)
    return reader.unsupported("key ", in_quotes(reader.full_key("rope.scaling.attn_factor")), " is ", *magnitude, "; only 1 is supported");
  return {};
}

Result<void> read_embedding(ModelReader& reader, Model& model) {
  Config& c = model.config;
  const TensorInfo* embedding = reader.find_tensor("token_embd.weight");
  const int64_t rows = embedding != nullptr && embedding->rank == 2 ? embedding->dims[0] : 1;
  if (rows > kMaxVocab) return reader.bad("tensor 'token_embd.weight' has ", rows, " rows; the limit is ", kMaxVocab);
  FTH_ASSIGN_OR_RETURN(model.token_embd, reader.matrix("token_embd.weight", rows, c.n_embd));
  c.n_vocab = rows;
  FTH_ASSIGN_OR_RETURN(const auto stated, reader.find_integer("vocab_size", 1, kMaxVocab));
  if (stated && *stated != rows)
    return reader.bad("key ", in_quotes(reader.full_key("vocab_size")), " is ", *stated, "; tensor 'token_embd.weight' has ", rows,
                      " rows");
  const MetaValue* tokens = reader.file().find("tokenizer.ggml.tokens");
  if (const MetaArray* list = tokens == nullptr ? nullptr : std::get_if<MetaArray>(&tokens->value)) {
    const uint64_t n_rows = static_cast<uint64_t>(rows);
    if (list->count > n_rows)
      return reader.bad("key 'tokenizer.ggml.tokens' has ", list->count, " tokens; tensor 'token_embd.weight' has only ", rows, " rows");
    if (list->count < n_rows)
      model.notes.push_back(message("the embedding has ", rows, " rows for ", list->count, " tokens: the last ones have no text"));
  }
  FTH_ASSIGN_OR_RETURN(model.output_norm, reader.vector("output_norm.weight", c.n_embd));
  if (reader.find_tensor("output.weight") == nullptr) {
    model.output = model.token_embd;
    return {};
  }
  FTH_ASSIGN_OR_RETURN(model.output, reader.matrix("output.weight", c.n_vocab, c.n_embd));
  return {};
}

Result<void> read_attention(ModelReader& reader, Model& model, int64_t i) {
  const Config& c = model.config;
  Layer& layer = model.layers[static_cast<size_t>(i)];
  const int64_t q_rows = c.n_head * c.head_dim, kv_rows = c.n_head_kv * c.head_dim;
  const auto block = [i](std::string_view part) { return block_name(i, part); };
  struct Split {
    Weight &q, &k, &v;
    void from(const Weight& whole, int64_t n_q, int64_t n_kv) const {
      q = ModelReader::rows_of(whole, "q", 0, n_q);
      k = ModelReader::rows_of(whole, "k", n_q, n_kv);
      v = ModelReader::rows_of(whole, "v", n_q + n_kv, n_kv);
    }
  };
  FTH_ASSIGN_OR_RETURN(layer.attn_norm, reader.vector(block("attn_norm.weight"), c.n_embd));
  if (reader.find_tensor(block("attn_qkv.weight")) != nullptr) {
    FTH_ASSIGN_OR_RETURN(const Weight whole, reader.matrix(block("attn_qkv.weight"), q_rows + 2 * kv_rows, c.n_embd));
    Split{layer.q, layer.k, layer.v}.from(whole, q_rows, kv_rows);
  } else {
    FTH_ASSIGN_OR_RETURN(layer.q, reader.matrix(block("attn_q.weight"), q_rows, c.n_embd));
    FTH_ASSIGN_OR_RETURN(layer.k, reader.matrix(block("attn_k.weight"), kv_rows, c.n_embd));
    FTH_ASSIGN_OR_RETURN(layer.v, reader.matrix(block("attn_v.weight"), kv_rows, c.n_embd));
  }
  FTH_ASSIGN_OR_RETURN(layer.q_bias, reader.find_vector(block("attn_q.bias"), q_rows));
  FTH_ASSIGN_OR_RETURN(layer.k_bias, reader.find_vector(block("attn_k.bias"), kv_rows));
  FTH_ASSIGN_OR_RETURN(layer.v_bias, reader.find_vector(block("attn_v.bias"), kv_rows));
  FTH_ASSIGN_OR_RETURN(Weight bias, reader.find_vector(block("attn_qkv.bias"), q_rows + 2 * kv_rows));
  if (bias) {
    if (layer.q_bias || layer.k_bias || layer.v_bias) return reader.bad("layer ", i, " has both attn_qkv.bias and a bias of its parts");
    // A vector is one row; seen as a column it splits like the matrix.
    bias.rows = bias.cols, bias.cols = 1;
    Split{layer.q_bias, layer.k_bias, layer.v_bias}.from(bias, q_rows, kv_rows);
    for (Weight* part : {&layer.q_bias, &layer.k_bias, &layer.v_bias}) std::swap(part->rows, part->cols);
  }
  FTH_ASSIGN_OR_RETURN(layer.attn_output, reader.matrix(block("attn_output.weight"), c.n_embd, q_rows));
  FTH_ASSIGN_OR_RETURN(layer.ffn_norm, reader.vector(block("ffn_norm.weight"), c.n_embd));
  return {};
}

}  // namespace fth
