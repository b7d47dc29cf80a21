#pragma once
// A model as data: sizes, per-layer choices, and where each weight lies. Everything that the rest of the program knows of a model is here; the
// names of architectures and their keys stay in core/model/arch/. Values are checked against each other and against the tensors' shapes before a
// Model exists (arXiv 2507.20984; docs/adding-a-model.md).

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/result.h"
#include "core/model/gguf.h"

namespace fth {

enum class Gating { softmax = 1, sigmoid = 2 };
enum class Activation { relu = 0, silu = 1 };
enum class RopePairing { neox = 0, adjacent = 1 };
// How an expert's down matrix is stored; the numbers are those of the EXPERTS op (plugins/abi/fth_ops.def). The last: core/model/neuron_major.h.
enum class DownLayout { row_major = 0, by_neuron = 1, neuron_major = 2 };

// A matrix, stack of matrices or vector in the mapped file; or some rows of one.
struct Weight {
  std::string name;
  DType dtype = DType::f32;
  int64_t experts = 1;  // matrices of the same shape; each is rows x cols, contiguous
  int64_t rows = 0;     // outputs (1 for a vector)
  int64_t cols = 0;     // inputs
  const std::byte* data = nullptr;
  uint64_t bytes = 0;   // all experts
  uint64_t stride = 0;  // from one expert to the next: expert_bytes(), or more where something lies between (packed models)
  uint32_t file = 0;    // where the data lies: which part of the model's file, and the offset in it
  uint64_t offset = 0;
  bool interleaved = false;  // rows in panels of 16 (core/model/interleaved.h), else row-major
  bool interleaved_in_file = false;
  explicit operator bool() const { return data != nullptr; }
  uint64_t expert_bytes() const { return bytes / static_cast<uint64_t>(experts); }
  uint64_t span_bytes() const {
    return static_cast<uint64_t>(experts - 1) * stride + expert_bytes();
  }  // from data, what lies between included
};

struct Layer {
  bool rope = true;  // rotate q and k
  double rope_base = 10000;
  int64_t window = 0;  // keys visible, the own one included; 0 = all
  Weight attn_norm, q, k, v, q_bias, k_bias, v_bias, attn_output, ffn_norm;
  // Sparse: router and expert stacks. Dense (experts == 0 in Config): gate, up, down with experts = 1.
  Weight router, gate, up, down;
  DownLayout down_layout = DownLayout::row_major;
  std::vector<uint64_t> xxh3;  // packed models: the checksum of each expert (core/model/packed.h)
};

struct Config {
  std::string architecture, name;
  int64_t n_vocab = 0, n_ctx = 0, n_embd = 0, n_layer = 0;
  int64_t n_head = 0, n_head_kv = 0, head_dim = 0;
  int64_t n_ff = 0;                 // of one expert, or of the dense layer
  int64_t n_expert = 0, top_k = 0;  // 0: dense
  double rms_eps = 0;
  int64_t rope_dims = 0;
  double rope_scale = 1;  // position multiplier (linear scaling: 1 / factor)
  RopePairing rope_pairing = RopePairing::neox;
  Activation activation = Activation::relu;
  Gating gating = Gating::sigmoid;  // when n_expert > 0
  bool down_transposed = false;     // expert down stored [n_ff, n_embd], a row per neuron; of unpacked files
  int32_t packed = 0;  // version of the format in which an expert's matrices lie together (core/model/packed.h); 0: they do not
  bool is_sparse() const { return n_expert > 0; }
};

struct Model {
  Gguf file;
  Config config;
  std::vector<Layer> layers;
  Weight token_embd, output_norm, output;  // output is token_embd when the file ties them
  Weight rope_factors;                     // optional, f32[rope_dims / 2]
  std::vector<std::string> notes;          // things the user should know: ignored tensors, converter quirks

  uint64_t weight_bytes() const;     // all
  uint64_t bytes_per_token() const;  // read to decode one token: dense parts, top_k experts, one embedding row, the head
};

// "expert_gating_func=sigmoid", "context_length=8192", "down_layout=transposed": the key without the architecture's prefix.
struct Override {
  std::string key, value;
};

// Errors: as Gguf::open, and data_loss when keys and tensors contradict each other, unimplemented for an architecture that is not in the table
// (the message lists those that are), invalid_argument for an override that no key answers to.
Result<Model> load_model(const std::filesystem::path& path, std::span<const Override> overrides = {});
Result<Model> load_model(Gguf file, std::span<const Override> overrides = {});

}  // namespace fth
