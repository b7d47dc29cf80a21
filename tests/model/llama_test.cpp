// The llama architecture and what load_model decides before any architecture is asked.

#include "tests/model/files.h"
#include "tests/model/load.h"
#include "tests/model/tiny_models.h"

namespace fth::test {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

TEST(LoadModel, UnknownArchitectures) {
  GgufWriter w = tiny_llama();
  w.text("general.architecture", "gpt-oss");
  expect_refused(w, Code::unimplemented, "architecture 'gpt-oss' is not supported; supported: llama, smallthinker");
  w.u32("general.architecture", 3);
  expect_refused(w, Code::data_loss, "key 'general.architecture' is not a string");
  w.erase("general.architecture");
  expect_refused(w, Code::data_loss, "key 'general.architecture' is missing");
  w.text("general.architecture", std::string(100000, 'x'));
  const Loaded loaded = load(w);
  ASSERT_FALSE(loaded.model);
  EXPECT_LT(loaded.model.error().message.size(), 300u);
}

TEST(LoadModel, TakesAPath) {
  const TempDir dir;
  GgufWriter w = tiny_llama();
  w.erase("general.name");
  w.write(dir / "l.gguf");
  auto m = load_model(dir / "l.gguf");
  ASSERT_TRUE(m) << m.error().message;
  EXPECT_EQ(m->config.name, (dir / "l.gguf").string());
  // Views stay valid when the model moves.
  const Model moved = std::move(*m);
  EXPECT_EQ(moved.layers[0].q.data, moved.file.tensor("blk.0.attn_q.weight")->data);
  m = load_model(dir / "none.gguf");
  ASSERT_FALSE(m);
  EXPECT_EQ(m.error().code, Code::not_found);
}

TEST(Llama, ReadsTheWholeModel) {
  TinyShape shape;
  shape.tied = true;
  GgufWriter w = tiny_llama(shape);
  w.tensor("rope_freqs.weight", GgmlType::f32, {8}, weights(GgmlType::f32, 8));
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  const Config& c = m->config;
  EXPECT_FALSE(c.is_sparse());
  EXPECT_EQ(c.top_k, 0);
  EXPECT_EQ(c.activation, Activation::silu);
  EXPECT_EQ(c.rope_pairing, RopePairing::adjacent);
  EXPECT_EQ(c.n_ff, 64);
  EXPECT_EQ(m->output.data, m->token_embd.data);
  EXPECT_EQ(m->rope_factors.cols, 8);
  const Layer& l = m->layers[4];
  EXPECT_TRUE(l.rope);
  EXPECT_EQ(l.window, 0);
  EXPECT_EQ(l.gate.experts, 1);
  EXPECT_EQ(l.gate.rows, 64);
  EXPECT_EQ(l.down.rows, 32);
  EXPECT_EQ(l.down.cols, 64);
  EXPECT_FALSE(l.router);
  uint64_t all = 0;
  for (const auto& t : w.tensors) all += t.bytes.size();
  EXPECT_EQ(m->weight_bytes(), all);
  EXPECT_EQ(m->bytes_per_token(), all + m->token_embd.bytes / 48);
}

TEST(Llama, DefaultsAndRefusals) {
  TinyShape shape;
  shape.head_dim = 8;  // embedding_length 32 / 4 heads
  GgufWriter w = tiny_llama(shape);
  w.erase("llama.attention.key_length")
      .erase("llama.attention.value_length")
      .erase("llama.rope.dimension_count")
      .erase("llama.attention.head_count_kv");
  w.u32("llama.attention.head_count_kv", 2);
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_EQ(m->config.head_dim, 8);
  EXPECT_EQ(m->config.rope_dims, 8);
  w.u32("llama.rope.dimension_count", 4);
  EXPECT_EQ(load(w)->config.rope_dims, 4);
  w.u32("llama.attention.sliding_window", 16);
  EXPECT_THAT(load(w)->notes, Contains(HasSubstr("sliding_window is ignored")));
  w.u32("llama.expert_count", 8);
  expect_refused(w, Code::unimplemented, "'llama.expert_count' is 8; only dense models");
  w.u32("llama.expert_count", 0);
  EXPECT_TRUE(load(w).model);
  w.tensor("rope_freqs.weight", GgmlType::f32, {8}, weights(GgmlType::f32, 8));
  expect_refused(w, Code::data_loss, "'rope_freqs.weight' has the shape [8]; the model's keys ask for [2]");
  expect_refused(tiny_llama(), Code::invalid_argument, "override 'expert_gating_func'", {{"expert_gating_func", "sigmoid"}});
}

TEST(Llama, SquareFeedForwardNeedsNoOverride) {
  TinyShape shape;
  shape.n_ff = 32;
  EXPECT_TRUE(load(tiny_llama(shape)).model);
}

}  // namespace
}  // namespace fth::test
