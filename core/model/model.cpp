// From a parsed file to a checked Model: finds the architecture, lets its reader ask, and sees that every override was answered.

#include <new>

#include "core/model/arch/arch.h"
#include "core/model/config.h"
#include "core/model/model_reader.h"

namespace fth {
namespace {

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& a : architectures())
    if (a.name == name) return &a;
  return nullptr;
}

// Every weight of a layer, in the order of use.
template <class Visit>
void for_each_weight(const Layer& l, Visit visit) {
  for (const Weight* w :
       {&l.attn_norm, &l.q, &l.k, &l.v, &l.q_bias, &l.k_bias, &l.v_bias, &l.attn_output, &l.ffn_norm, &l.router, &l.gate, &l.up, &l.down})
    if (*w) visit(*w);
}

}  // namespace

uint64_t Model::weight_bytes() const {
  uint64_t total = token_embd.bytes + output_norm.bytes + rope_factors.bytes;
  if (output.data != token_embd.data) total += output.bytes;
  for (const Layer& layer : layers) for_each_weight(layer, [&](const Weight& w) { total += w.bytes; });
  return total;
}

uint64_t Model::bytes_per_token() const {
  uint64_t total = token_embd.bytes / static_cast<uint64_t>(token_embd.rows) + output_norm.bytes + rope_factors.bytes + output.bytes;
  for (const Layer& layer : layers) {
    for_each_weight(layer, [&](const Weight& w) {
      const bool routed = config.is_sparse() && (&w == &layer.gate || &w == &layer.up || &w == &layer.down);
      total += routed ? w.expert_bytes() * static_cast<uint64_t>(config.top_k) : w.bytes;
    });
  }
  return total;
}

Result<Model> load_model(Gguf file, std::span<const Override> overrides) try {
  if (file.find("general.architecture") == nullptr)
    return fail(Code::data_loss, message(file.name(), ": key 'general.architecture' is missing: not a model, or a damaged one"));
  FTH_ASSIGN_OR_RETURN(const std::string_view wanted, file.string("general.architecture"));
  const Architecture* architecture = find_architecture(wanted);
  if (architecture == nullptr) {
    std::string known;
    for (const Architecture& a : architectures()) known += message(known.empty() ? "" : ", ", a.name);
    return fail(Code::unimplemented, message(file.name(), ": architecture ", in_quotes(wanted), " is not supported; supported: ", known));
  }
  Config config;
  config.architecture = architecture->name;
  const auto name = file.string("general.name");
  config.name = name ? *name : file.name();
  Model model{std::move(file), std::move(config), {}, {}, {}, {}, {}, {}};
  ModelReader reader(model.file, architecture->name, overrides);
  FTH_RETURN_IF_ERROR(architecture->read(reader, model));
  FTH_RETURN_IF_ERROR(reader.finish(model.notes));
  return model;
} catch (const std::bad_alloc&) {
  return fail(Code::resource_exhausted, "model: out of memory for the model's description");
}

Result<Model> load_model(const std::filesystem::path& path, std::span<const Override> overrides) {
  FTH_ASSIGN_OR_RETURN(Gguf file, Gguf::open(path));
  return load_model(std::move(file), overrides);
}

}  // namespace fth
