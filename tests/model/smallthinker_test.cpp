// The smallthinker architecture: layouts, converter quirks, overrides, and keys that contradict tensors.

#include <functional>
#include <limits>

#include "tests/model/files.h"
#include "tests/model/load.h"
#include "tests/model/tiny_models.h"

namespace fth::test {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int64_t> windows(const Model& m) {
  std::vector<int64_t> out;
  for (const Layer& l : m.layers) out.push_back(l.window);
  return out;
}
std::vector<bool> ropes(const Model& m) {
  std::vector<bool> out;
  for (const Layer& l : m.layers) out.push_back(l.rope);
  return out;
}

TEST(SmallThinker, ReadsTheWholeModel) {
  const GgufWriter w = tiny_smallthinker();
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  const Config& c = m->config;
  EXPECT_EQ(c.architecture, "smallthinker");
  EXPECT_EQ(c.name, "tiny test model");
  EXPECT_EQ(c.n_vocab, 48);
  EXPECT_EQ(c.n_ctx, 128);
  EXPECT_EQ(c.n_embd, 32);
  EXPECT_EQ(c.n_layer, 5);
  EXPECT_EQ(c.n_head, 4);
  EXPECT_EQ(c.n_head_kv, 2);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rope_dims, 16);
  EXPECT_EQ(c.n_ff, 64);
  EXPECT_EQ(c.n_expert, 4);
  EXPECT_EQ(c.top_k, 2);
  EXPECT_FLOAT_EQ(static_cast<float>(c.rms_eps), 1e-6f);
  EXPECT_EQ(c.rope_scale, 1);
  EXPECT_EQ(c.rope_pairing, RopePairing::neox);
  EXPECT_EQ(c.activation, Activation::relu);
  EXPECT_EQ(c.gating, Gating::sigmoid);
  EXPECT_FALSE(c.down_transposed);
  EXPECT_TRUE(m->notes.empty()) << m->notes[0];
  const Layer& l = m->layers[3];
  EXPECT_EQ(l.q.rows, 64);
  EXPECT_EQ(l.q.cols, 32);
  EXPECT_EQ(l.gate.experts, 4);
  EXPECT_EQ(l.gate.rows, 64);
  EXPECT_EQ(l.gate.cols, 32);
  EXPECT_EQ(l.down.rows, 32);
  EXPECT_EQ(l.down.cols, 64);
  EXPECT_EQ(l.down.expert_bytes(), 32u * 64 / 32 * 18);
  EXPECT_EQ(l.down.name, "blk.3.ffn_down_exps.weight");
  EXPECT_EQ(l.router.dtype, DType::f32);
  EXPECT_FALSE(l.q_bias);
  const Bytes& down = w.tensors.back().bytes;  // blk.4.ffn_down_exps.weight
  EXPECT_EQ(std::memcmp(m->layers[4].down.data, down.data(), down.size()), 0);
}

TEST(SmallThinker, CountsBytes) {
  const GgufWriter w = tiny_smallthinker();
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  uint64_t all = 0, experts = 0;
  for (const auto& t : w.tensors) {
    all += t.bytes.size();
    if (t.name.find("_exps") != std::string::npos) experts += t.bytes.size();
  }
  const uint64_t embedding = m->token_embd.bytes;
  EXPECT_EQ(m->weight_bytes(), all);
  EXPECT_EQ(m->bytes_per_token(), all - experts + experts / 2 - embedding + embedding / 48);

  TinyShape tied;
  tied.tied = true;
  Loaded t = load(tiny_smallthinker(tied));
  ASSERT_TRUE(t.model) << t.model.error().message;
  EXPECT_EQ(t->output.data, t->token_embd.data);
  EXPECT_EQ(t->weight_bytes(), all - embedding);
  EXPECT_EQ(t->bytes_per_token(), m->bytes_per_token());
}

TEST(SmallThinker, WindowedLayout) {
  Loaded m = load(tiny_smallthinker());
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_THAT(windows(*m.model), ElementsAre(0, 8, 8, 8, 0));
  EXPECT_THAT(ropes(*m.model), ElementsAre(false, true, true, true, false));
}

TEST(SmallThinker, UnwindowedLayout) {
  TinyShape shape;
  shape.window = 0;
  GgufWriter w = tiny_smallthinker(shape);
  for (int absent = 0; absent < 2; ++absent) {
    if (absent == 0) w.u32("smallthinker.attention.sliding_window", 0);
    if (absent == 1) w.erase("smallthinker.attention.sliding_window");
    Loaded m = load(w);
    ASSERT_TRUE(m.model) << m.model.error().message;
    EXPECT_THAT(windows(*m.model), ElementsAre(0, 0, 0, 0, 0));
    EXPECT_THAT(ropes(*m.model), ElementsAre(true, true, true, true, true));
  }
}

TEST(SmallThinker, PatternMovesWindowsButNotRope) {
  GgufWriter w = tiny_smallthinker();
  w.u32("smallthinker.attention.sliding_window_pattern", 2);
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_THAT(windows(*m.model), ElementsAre(0, 8, 0, 8, 0));
  EXPECT_THAT(ropes(*m.model), ElementsAre(false, true, true, true, false));
  w.array<uint8_t>("smallthinker.attention.sliding_window_pattern", MetaType::boolean, {1, 0, 1, 0, 1})
      .f32("smallthinker.rope.freq_base_swa", 500);
  m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_THAT(windows(*m.model), ElementsAre(8, 0, 8, 0, 8));
  EXPECT_THAT(ropes(*m.model), ElementsAre(false, true, true, true, false));
  EXPECT_EQ(m->layers[1].rope_base, 10000);
  EXPECT_EQ(m->layers[2].rope_base, 500);
  m = load(w, {{"attention.sliding_window_pattern", "1"}});
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_THAT(windows(*m.model), ElementsAre(0, 0, 0, 0, 0));
}

TEST(SmallThinker, FourWindowedLayersAreNoted) {
  TinyShape shape;
  shape.n_layer = 4;
  Loaded m = load(tiny_smallthinker(shape));
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_THAT(ropes(*m.model), ElementsAre(false, true, true, true));
  EXPECT_THAT(m->notes, Contains(HasSubstr("exactly 4 layers")));
}

TEST(SmallThinker, MissingGatingNamesTheOverride) {
  GgufWriter w = tiny_smallthinker();
  w.erase("smallthinker.expert_gating_func");
  expect_refused(w, Code::failed_precondition, "--override expert_gating_func=sigmoid");
  const std::pair<const char*, Gating> cases[] = {
      {"sigmoid", Gating::sigmoid}, {"2", Gating::sigmoid}, {"softmax", Gating::softmax}, {"1", Gating::softmax}};
  for (const auto& [value, gating] : cases) {
    Loaded m = load(w, {{"expert_gating_func", value}});
    ASSERT_TRUE(m.model) << m.model.error().message;
    EXPECT_EQ(m->config.gating, gating);
  }
  expect_refused(w, Code::unimplemented, "expert_gating_func' is '3'; supported: softmax (1), sigmoid (2)", {{"expert_gating_func", "3"}});
  w.u32("smallthinker.expert_gating_func", 1);
  EXPECT_EQ(load(w)->config.gating, Gating::softmax);
  EXPECT_EQ(load(w, {{"expert_gating_func", "sigmoid"}})->config.gating, Gating::sigmoid);
}

TEST(SmallThinker, TransposedDownIsToldByShape) {
  TinyShape shape;
  shape.down_transposed = true;
  const GgufWriter w = tiny_smallthinker(shape);
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_TRUE(m->config.down_transposed);
  EXPECT_EQ(m->layers[0].down.rows, 64);
  EXPECT_EQ(m->layers[0].down.cols, 32);
  expect_refused(w, Code::data_loss, "has the shape [4, 64, 32]; the model's keys ask for [4, 32, 64]", {{"down_layout", "normal"}});
  expect_refused(w, Code::invalid_argument, "must be normal or transposed", {{"down_layout", "sideways"}});
  // One layer stored the other way.
  GgufWriter mixed = tiny_smallthinker(shape);
  mixed.at("blk.2.ffn_down_exps.weight").dims = {64, 32, 4};
  expect_refused(mixed, Code::data_loss, "'blk.2.ffn_down_exps.weight'");
}

TEST(SmallThinker, SquareDownAsks) {
  TinyShape shape;
  shape.n_ff = 32;
  const GgufWriter w = tiny_smallthinker(shape);
  expect_refused(w, Code::failed_precondition, "--override down_layout=normal");
  EXPECT_FALSE(load(w, {{"down_layout", "normal"}})->config.down_transposed);
  EXPECT_TRUE(load(w, {{"down_layout", "transposed"}})->config.down_transposed);
}

TEST(SmallThinker, MergedQkvAndBiases) {
  GgufWriter w = tiny_smallthinker();
  Bytes merged, bias;
  for (const char* part : {"q", "k", "v"}) {
    const std::string name = std::string("blk.1.attn_") + part + ".weight";
    merged.insert(merged.end(), w.at(name).bytes.begin(), w.at(name).bytes.end());
    w.erase_tensor(name);
  }
  w.tensor("blk.1.attn_qkv.weight", GgmlType::q4_0, {32, 64 + 2 * 32}, merged);
  w.tensor("blk.1.attn_qkv.bias", GgmlType::f32, {128}, weights(GgmlType::f32, 128));
  w.tensor("blk.2.attn_k.bias", GgmlType::f32, {32}, weights(GgmlType::f32, 32));
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  const Layer &l = m->layers[1], &two = m->layers[2];
  EXPECT_EQ(l.q.rows, 64);
  EXPECT_EQ(l.k.rows, 32);
  EXPECT_EQ(l.k.cols, 32);
  EXPECT_EQ(l.k.data, l.q.data + l.q.bytes);
  EXPECT_EQ(l.v.data, l.k.data + l.k.bytes);
  EXPECT_EQ(l.q.bytes + l.k.bytes + l.v.bytes, merged.size());
  EXPECT_EQ(l.v.name, "blk.1.attn_qkv.weight:v");
  EXPECT_EQ(l.q_bias.rows, 1);
  EXPECT_EQ(l.q_bias.cols, 64);
  EXPECT_EQ(l.v_bias.cols, 32);
  EXPECT_EQ(l.v_bias.data, l.q_bias.data + (64 + 32) * 4);
  EXPECT_EQ(two.k_bias.cols, 32);
  EXPECT_FALSE(two.q_bias);
  EXPECT_EQ(m->weight_bytes(), load(tiny_smallthinker())->weight_bytes() + (128 + 32) * 4);
  w.tensor("blk.1.attn_q.bias", GgmlType::f32, {64}, weights(GgmlType::f32, 64));
  expect_refused(w, Code::data_loss, "layer 1 has both attn_qkv.bias and a bias of its parts");
}

TEST(SmallThinker, UnknownTensorsAreNotedUnknownBiasesRefused) {
  GgufWriter w = tiny_smallthinker();
  w.tensor("lm_head_predictor.0.weight", GgmlType::f16, {32, 8}, weights(GgmlType::f16, 256));
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_THAT(m->notes, Contains(HasSubstr("not used: 1 tensor: 'lm_head_predictor.0.weight'")));
  w.tensor("blk.0.attn_output.bias", GgmlType::f32, {32}, weights(GgmlType::f32, 32));
  expect_refused(w, Code::unimplemented, "'blk.0.attn_output.bias'");
}

TEST(SmallThinker, RouterTypes) {
  for (const GgmlType type : {GgmlType::f32, GgmlType::f16, GgmlType::bf16}) {
    TinyShape shape;
    shape.router = type;
    EXPECT_TRUE(load(tiny_smallthinker(shape)).model);
  }
  TinyShape shape;
  shape.router = GgmlType::q8_0;
  expect_refused(tiny_smallthinker(shape), Code::unimplemented, "router 'blk.0.ffn_gate_inp.weight' is q8_0; it must be f32, f16 or bf16");
}

TEST(SmallThinker, RopeScaling) {
  GgufWriter w = tiny_smallthinker();
  w.f32("smallthinker.rope.scaling.factor", 4);
  EXPECT_EQ(load(w)->config.rope_scale, 0.25);
  w.text("smallthinker.rope.scaling.type", "linear");
  EXPECT_EQ(load(w)->config.rope_scale, 0.25);
  w.text("smallthinker.rope.scaling.type", "none");
  EXPECT_EQ(load(w)->config.rope_scale, 1);
  w.text("smallthinker.rope.scaling.type", "yarn");
  expect_refused(w, Code::unimplemented, "'smallthinker.rope.scaling.type' is 'yarn'; supported: none, linear");
}

TEST(SmallThinker, Overrides) {
  const GgufWriter w = tiny_smallthinker();
  Loaded m = load(w, {{"context_length", "64"},
                      {"attention.sliding_window", "16"},
                      {"rope.freq_base", "1e6"},
                      {"expert_used_count", "1"},
                      {"expert_used_count", "3"}});
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_EQ(m->config.n_ctx, 64);
  EXPECT_EQ(m->layers[1].window, 16);
  EXPECT_EQ(m->layers[1].rope_base, 1e6);
  EXPECT_EQ(m->config.top_k, 3);
  expect_refused(w, Code::invalid_argument,
                 "override 'contxt_length': the architecture smallthinker has no such key; it has attention.head_count, ",
                 {{"contxt_length", "64"}});
  expect_refused(w, Code::invalid_argument, "override 'context_length' = '64k': it must be an integer", {{"context_length", "64k"}});
  expect_refused(w, Code::invalid_argument, "override 'context_length' = '0': it must be 1 to", {{"context_length", "0"}});
  expect_refused(w, Code::invalid_argument, "override 'rope.freq_base' = 'nan': it must be finite", {{"rope.freq_base", "nan"}});
  expect_refused(w, Code::invalid_argument, "override 'rope.freq_base' = 'x': it must be a number", {{"rope.freq_base", "x"}});
}

TEST(SmallThinker, PerLayerArraysMustAgree) {
  GgufWriter w = tiny_smallthinker();
  w.array<uint32_t>("smallthinker.attention.head_count", MetaType::u32, {4, 4, 4, 4, 4});
  EXPECT_EQ(load(w)->config.n_head, 4);
  w.array<uint32_t>("smallthinker.attention.head_count", MetaType::u32, {4, 4, 2, 4, 4});
  expect_refused(w, Code::unimplemented, "differs from layer to layer (4 in layer 0, 2 in layer 2)");
  w.array<uint32_t>("smallthinker.attention.head_count", MetaType::u32, {4, 4});
  expect_refused(w, Code::data_loss, "'smallthinker.attention.head_count' has 2 elements; block_count is 5");
  w.texts("smallthinker.attention.head_count", {"4", "4", "4", "4", "4"});
  expect_refused(w, Code::data_loss, "'smallthinker.attention.head_count'");
}

TEST(SmallThinker, KeysThatMustNotLoad) {
  struct Case {
    const char* key;
    std::function<void(GgufWriter&, const std::string&)> set;
    const char* says;
  };
  const auto u32 = [](uint32_t v) { return [v](GgufWriter& w, const std::string& k) { w.u32(k, v); }; };
  const auto f32 = [](float v) { return [v](GgufWriter& w, const std::string& k) { w.f32(k, v); }; };
  const auto gone = [](GgufWriter& w, const std::string& k) { w.erase(k); };
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  const Case cases[] = {
      {"attention.head_count", u32(0), "is 0; it must be 1 to 4096"},
      {"attention.head_count", u32(1u << 31), "is 2147483648"},
      {"attention.head_count_kv", u32(0), "is 0;"},
      {"attention.head_count_kv", u32(3), "is 3, which does not divide attention.head_count 4"},
      {"attention.head_count_kv", u32(8), "is 8, which does not divide"},
      {"attention.key_length", u32(0), "is 0;"},
      {"attention.key_length", u32(32), "attention.value_length"},
      {"context_length", u32(0), "is 0;"},
      {"context_length", u32(1u << 31), "is 2147483648; it must be 1 to 268435456"},
      {"context_length", gone, "is missing; if you know its value, give it with --override context_length=VALUE"},
      {"context_length", [](GgufWriter& w, const std::string& k) { w.text(k, "128"); }, "is not an integer"},
      {"context_length", f32(128), "is not an integer"},
      {"context_length", [](GgufWriter& w, const std::string& k) { w.i32(k, -1); }, "is -1"},
      {"context_length", [](GgufWriter& w, const std::string& k) { w.u64(k, ~0ull); }, "18446744073709551615"},
      {"embedding_length", u32(0), "is 0;"},
      {"embedding_length", u32(96), "the model's keys ask for [48, 96]"},
      {"block_count", u32(0), "is 0; it must be 1 to 1024"},
      {"block_count", u32(4000000000u), "is 4000000000"},
      {"block_count", u32(6), "tensor 'blk.5.attn_norm.weight' is missing"},
      {"attention.layer_norm_rms_epsilon", f32(0), "is 0; it must be finite and above 0"},
      {"attention.layer_norm_rms_epsilon", f32(-1), "is -1;"},
      {"attention.layer_norm_rms_epsilon", f32(kNan), "is nan;"},
      {"attention.layer_norm_rms_epsilon", f32(2), "it must be below 1"},
      {"rope.freq_base", f32(0), "is 0;"},
      {"rope.freq_base", f32(kInf), "is inf;"},
      {"rope.freq_base", f32(-5), "is -5;"},
      {"rope.dimension_count", u32(15), "it must be even"},
      {"rope.dimension_count", u32(8), "it must be attention.key_length 16"},
      {"rope.dimension_count", u32(32), "it must be 2 to 16"},
      {"rope.scaling.factor", f32(0), "is 0;"},
      {"rope.scaling.attn_factor", f32(2), "only 1 is supported"},
      {"expert_count", u32(0), "is 0;"},
      {"expert_count", u32(8), "'blk.0.ffn_gate_inp.weight' has the shape [4, 32]; the model's keys ask for [8, 32]"},
      {"expert_used_count", u32(0), "is 0;"},
      {"expert_used_count", u32(5), "is 5; it must be 1 to 4"},
      {"expert_feed_forward_length", u32(0), "is 0;"},
      {"expert_feed_forward_length", u32(96),
       "'blk.0.ffn_gate_exps.weight' has the shape [4, 64, 32]; the model's keys ask for [4, 96, 32]"},
      {"expert_feed_forward_length", gone, "is missing"},
      {"vocab_size", u32(49), "is 49; tensor 'token_embd.weight' has 48 rows"},
      {"attention.sliding_window", u32(0x80000000u), "is 2147483648"},
      {"attention.sliding_window_pattern", u32(0), "is 0;"},
      {"attention.sliding_window_pattern",
       [](GgufWriter& w, const std::string& k) {
         w.array<uint8_t>(k, MetaType::boolean, {0, 1});
       },
       "has 2 elements"},
      {"attention.sliding_window_pattern",
       [](GgufWriter& w, const std::string& k) {
         w.array<uint32_t>(k, MetaType::u32, {0, 1, 7, 0, 0});
       },
       "is 7 for layer 2"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << c.key << ": " << c.says);
    GgufWriter w = tiny_smallthinker();
    c.set(w, std::string("smallthinker.") + c.key);
    const Loaded loaded = load(w);
    ASSERT_FALSE(loaded.model);
    const Error& e = loaded.model.error();
    EXPECT_TRUE(e.code == Code::data_loss || e.code == Code::unimplemented) << code_name(e.code);
    EXPECT_THAT(e.message, HasSubstr(c.says));
    EXPECT_THAT(e.message, HasSubstr("mem.gguf: "));
  }
}

TEST(SmallThinker, DefaultsOfKeys) {
  GgufWriter w = tiny_smallthinker();
  w.erase("smallthinker.rope.freq_base").erase("smallthinker.vocab_size");
  Loaded m = load(w);
  ASSERT_TRUE(m.model) << m.model.error().message;
  EXPECT_EQ(m->layers[1].rope_base, 10000);
  EXPECT_THAT(m->notes, Contains(HasSubstr("rope.freq_base is missing")));
  // Heads of 32 / 4 = 8, as llama.cpp would assume: the shapes contradict it.
  w.erase("smallthinker.attention.key_length").erase("smallthinker.attention.value_length");
  expect_refused(w, Code::data_loss, "'blk.0.attn_q.weight' has the shape [64, 32]; the model's keys ask for [32, 32]");
  w.u32("smallthinker.attention.head_count", 5).u32("smallthinker.attention.head_count_kv", 5);
  expect_refused(w, Code::data_loss, "embedding_length 32 does not split into attention.head_count 5");
}

TEST(SmallThinker, TensorsThatMustNotLoad) {
  GgufWriter w = tiny_smallthinker();
  for (const std::string name :
       {"token_embd.weight", "output_norm.weight", "blk.4.attn_norm.weight", "blk.1.attn_q.weight", "blk.2.attn_output.weight",
        "blk.3.ffn_norm.weight", "blk.0.ffn_gate_inp.weight", "blk.4.ffn_down_exps.weight", "blk.4.ffn_up_exps.weight"}) {
    w = tiny_smallthinker();
    w.erase_tensor(name);
    expect_refused(w, Code::data_loss, "tensor '" + name + "' is missing");
  }
  w = tiny_smallthinker();
  w.tensor("output_norm.weight", GgmlType::f16, {32}, weights(GgmlType::f16, 32));
  expect_refused(w, Code::unimplemented, "'output_norm.weight' is f16; norms and biases must be f32");
  w = tiny_smallthinker();
  w.tensor("blk.0.attn_q.weight", GgmlType::i32, {32, 64}, Bytes(32 * 64 * 4));
  expect_refused(w, Code::data_loss, "'blk.0.attn_q.weight' is of integers");
  w = tiny_smallthinker();
  w.texts("tokenizer.ggml.tokens", std::vector<std::string>(49, "t"));
  expect_refused(w, Code::data_loss, "has 49 tokens; tensor 'token_embd.weight' has only 48 rows");
  w.texts("tokenizer.ggml.tokens", std::vector<std::string>(40, "t"));
  EXPECT_THAT(load(w)->notes, Contains(HasSubstr("48 rows for 40 tokens")));
}

TEST(SmallThinker, ValuesThatAreNotFinite) {
  struct Case {
    const char* tensor;
    size_t index;
    float value;
    const char* says;
  };
  const Case cases[] = {
      {"blk.2.ffn_gate_inp.weight", 37, std::numeric_limits<float>::quiet_NaN(),
       "'blk.2.ffn_gate_inp.weight' holds a NaN or an infinity at row 1, column 5"},
      {"blk.2.ffn_gate_inp.weight", 127, -std::numeric_limits<float>::infinity(), "at row 3, column 31"},
      {"blk.4.ffn_norm.weight", 3, std::numeric_limits<float>::quiet_NaN(), "'blk.4.ffn_norm.weight'"},
      {"output_norm.weight", 31, std::numeric_limits<float>::infinity(), "'output_norm.weight'"},
  };
  for (const Case& c : cases) {
    GgufWriter w = tiny_smallthinker();
    std::memcpy(w.at(c.tensor).bytes.data() + c.index * 4, &c.value, 4);
    expect_refused(w, Code::data_loss, c.says);
  }
  for (const auto& [type, nan] : {std::pair{GgmlType::f16, uint16_t{0x7e00}}, std::pair{GgmlType::bf16, uint16_t{0x7fc0}}}) {
    TinyShape shape;
    shape.router = type;
    GgufWriter w = tiny_smallthinker(shape);
    std::memcpy(w.at("blk.0.ffn_gate_inp.weight").bytes.data(), &nan, 2);
    expect_refused(w, Code::data_loss, "holds a NaN");
  }
}

TEST(SmallThinker, LoadsTheReferenceModels) {
  const std::filesystem::path folder = reference_folder() / "models";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no reference models at " << folder;
  for (const char* name : {"tiny-F32", "tiny-F16", "tiny-Q8_0", "tiny-Q4_0", "tiny-softmax-F32"}) {
    SCOPED_TRACE(name);
    auto m = load_model(folder / (std::string(name) + ".gguf"));
    ASSERT_TRUE(m) << m.error().message;
    EXPECT_EQ(m->config.n_layer, 5);
    EXPECT_THAT(windows(*m), ElementsAre(0, 4096, 4096, 4096, 0));
    EXPECT_EQ(m->config.gating, std::string_view(name) == "tiny-softmax-F32" ? Gating::softmax : Gating::sigmoid);
    EXPECT_NE(m->output.data, m->token_embd.data);
  }
  for (const char* name : {"tiny-rope-F32", "tiny-rope-Q4_0"}) {
    SCOPED_TRACE(name);
    auto m = load_model(folder / (std::string(name) + ".gguf"));
    ASSERT_TRUE(m) << m.error().message;
    EXPECT_THAT(ropes(*m), ElementsAre(true, true, true, true));
    EXPECT_EQ(m->output.data, m->token_embd.data);
    EXPECT_TRUE(m->notes.empty());
  }
}

}  // namespace
}  // namespace fth::test
