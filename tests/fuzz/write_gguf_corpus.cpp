// Writes the seeds of gguf_fuzz into the folder given: good-*.gguf load, bad-*.gguf are refused (tests/model/corpus_test.cpp holds them to it).

#include <cstdio>
#include <exception>
#include <limits>

#include "tests/model/packed_models.h"
#include "tests/model/tiny_models.h"

namespace {

using namespace fth;
using namespace fth::test;

// Every matrix a few hundred bytes.
TinyShape smallest() {
  TinyShape s;
  s.n_layer = 1;
  s.n_embd = 8;
  s.n_head = 2;
  s.n_head_kv = 1;
  s.head_dim = 4;
  s.n_ff = 4;
  s.n_expert = 2;
  s.top_k = 1;
  s.n_vocab = 4;
  s.matrix = GgmlType::f32;
  return s;
}

void write_good(const std::filesystem::path& folder) {
  tiny_smallthinker(smallest()).write(folder / "good-smallthinker.gguf");
  tiny_llama(smallest()).tensor("rope_freqs.weight", GgmlType::f32, {2}, weights(GgmlType::f32, 2)).write(folder / "good-llama.gguf");

  TinyShape tied = smallest();
  tied.tied = tied.down_transposed = true;
  tied.router = GgmlType::f16;
  GgufWriter w = tiny_smallthinker(tied);
  w.version = 2;
  for (const char* part : {"q", "k", "v"}) w.erase_tensor(std::string("blk.0.attn_") + part + ".weight");
  w.tensor("blk.0.attn_qkv.weight", GgmlType::f32, {8, 16}, weights(GgmlType::f32, 128));
  w.tensor("blk.0.attn_qkv.bias", GgmlType::f32, {16}, weights(GgmlType::f32, 16));
  w.array<uint8_t>("smallthinker.attention.sliding_window_pattern", MetaType::boolean, {1}).f32("smallthinker.rope.freq_base_swa", 100);
  w.array<uint32_t>("smallthinker.attention.head_count", MetaType::u32, {2}).text("smallthinker.rope.scaling.type", "linear");
  w.f32("smallthinker.rope.scaling.factor", 2).texts("tokenizer.ggml.tokens", {"a", "b", "\xff"});
  w.write(folder / "good-merged.gguf");

  TinyShape quantised = smallest();
  quantised.n_embd = quantised.head_dim = 32;
  quantised.n_head = 1;
  quantised.n_ff = 64;
  quantised.n_expert = 1;
  quantised.matrix = GgmlType::q4_0;
  GgufWriter q = tiny_smallthinker(quantised);
  q.alignment = 64;
  q.u32("general.alignment", 64).write(folder / "good-q4_0.gguf");
  tiny_packed(quantised, DownLayout::neuron_major, 1).write(folder / "good-packed-q4_0.gguf");
  tiny_packed(quantised, DownLayout::neuron_major).write(folder / "good-packed-interleaved.gguf");
}

void write_bad(const std::filesystem::path& folder) {
  const auto changed = [&](const char* name, auto change) {
    GgufWriter w = tiny_smallthinker(smallest());
    change(w);
    w.write(folder / (std::string("bad-") + name + ".gguf"));
  };
  changed("big-endian", [](auto& w) { w.version = 0x03000000; });
  changed("counts", [](auto& w) { w.n_keys = ~0ull; });
  changed("array-of-arrays", [](auto& w) { w.template array<uint8_t>("n", MetaType::array, {0, 0, 0, 0}); });
  changed("long-string", [](auto& w) { w.key("s", MetaType::string, encoded<uint64_t>(1ull << 40)); });
  changed("overlap", [](auto& w) { w.tensors[2].offset = 0; });
  changed("wrapping-sizes", [](auto& w) { w.tensors[0].dims = {1ull << 61}, w.tensors[1].dims = {1ull << 61}; });
  changed("unsupported-type", [](auto& w) { w.tensors[0].type = 23; });
  changed("past-the-end", [](auto& w) { w.tensors.back().bytes.resize(4); });
  changed("top-k", [](auto& w) { w.u32("smallthinker.expert_used_count", 3); });
  const auto changed_packed = [&](const char* name, auto change) {
    GgufWriter w = tiny_packed(smallest(), DownLayout::row_major);
    change(w);
    w.write(folder / (std::string("bad-packed-") + name + ".gguf"));
  };
  changed_packed("version", [](auto& w) { w.u32(kPackedVersion, 3); });
  changed_packed("sums", [](auto& w) { w.template array<uint64_t>(kPackedXxh3, MetaType::u64, {1}); });
  changed_packed("gate", [](auto& w) { w.texts(kPackedGate, {"interleaved"}); });
  changed_packed("layout", [](auto& w) { w.texts(kPackedDown, {"sideways"}); });
  changed("nan-router", [](auto& w) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(w.at("blk.0.ffn_gate_inp.weight").bytes.data() + 8, &nan, 4);
  });
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 2) {
    std::fprintf(stderr, "use: write_gguf_corpus FOLDER\n");
    return 2;
  }
  write_good(argv[1]);
  write_bad(argv[1]);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "write_gguf_corpus: %s\n", e.what());
  return 1;
}
