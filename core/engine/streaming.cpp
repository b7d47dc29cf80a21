// Streamed experts: what stays in RAM, and the store that reads the rest.
#include <algorithm>
#include <vector>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"

namespace fth {
namespace {

constexpr uint64_t kWeightAlignment = 64;

// FNV-1a over what identifies a file's contents without reading them: ties a saved warm set to its model.
uint64_t fingerprint(const Model& model) {
  uint64_t hash = 0xcbf29ce484222325u;
  const auto mix = [&](uint64_t v) {
    for (int i = 0; i < 8; ++i, v >>= 8) hash = (hash ^ (v & 0xff)) * 0x100000001b3u;
  };
  mix(model.file.file_bytes());
  for (const TensorInfo& t : model.file.tensors()) {
    for (const char c : t.name) mix(static_cast<unsigned char>(c));
    mix(t.offset);
  }
  for (const Layer& layer : model.layers)
    for (const uint64_t sum : layer.xxh3) mix(sum);
  return hash;
}

// Every weight that is read whole. The embedding only where the head is the same matrix.
std::vector<const Weight*> dense_weights(const Model& model) {
  std::vector<const Weight*> out = {&model.output_norm, &model.output, &model.rope_factors};
  for (const Layer& l : model.layers)
    out.insert(out.end(), {&l.attn_norm, &l.q, &l.k, &l.v, &l.q_bias, &l.k_bias, &l.v_bias, &l.attn_output, &l.ffn_norm, &l.router});
  out.erase(std::remove_if(out.begin(), out.end(), [](const Weight* w) { return !*w; }), out.end());
  return out;
}

}  // namespace

ExpertSource expert_source(const Model& model) {
  ExpertSource source;
  source.files.assign(model.file.parts().begin(), model.file.parts().end());
  source.top_k = model.config.top_k;
  source.fingerprint = fingerprint(model);
  const auto part = [](const Weight& w) { return ExpertSource::Part{w.file, w.offset, w.expert_bytes(), w.stride}; };
  for (const Layer& l : model.layers) source.layers.push_back({model.config.n_expert, part(l.gate), part(l.up), part(l.down), l.xxh3});
  return source;
}

Result<> Engine::Impl::make_streamed() {
  for (const auto& path : model->file.parts()) {
    FTH_ASSIGN_OR_RETURN(ReadFile file, ReadFile::open(path));
    files.push_back(std::move(file));
  }
  const auto weights_read = dense_weights(*model);
  uint64_t total = 0, done = 0;
  for (const Weight* w : weights_read) total += align_up(w->bytes, kWeightAlignment);
  FTH_ASSIGN_OR_RETURN(dense, HostBlock::allocate(total, "dense weights"));
  for (const Weight* w : weights_read) {
    std::byte* const to = dense.data() + done;
    if (!dense_place.emplace(w->data, to).second) continue;
    FTH_RETURN_IF_ERROR(files[w->file].read(w->offset, to, w->bytes));
    done += align_up(w->bytes, kWeightAlignment);
    if (options.on_load) options.on_load(done, total);
  }
  if (model->output.data != model->token_embd.data) {
    embedding = model->token_embd;
    embedding.rows = shapes.max_bucket;
    embedding.bytes = static_cast<uint64_t>(embedding.rows) * row_bytes(embedding.dtype, embedding.cols);
    FTH_ASSIGN_OR_RETURN(embedding_rows, HostBlock::allocate(embedding.bytes, "embedding rows"));
    embedding.data = embedding_rows.data();
  }
  model->file.release_pages();  // what reading the metadata touched

  ExpertSource source = expert_source(*model);
  ExpertStoreOptions o;
  FTH_ASSIGN_OR_RETURN(const uint64_t slot, ExpertStore::slot_bytes(source));
  o.bytes = slot * static_cast<uint64_t>(plan.expert_slots);
  o.reader = options.stream.reader;
  o.policy = options.stream.policy;
  o.queue_depth = options.stream.queue_depth;
  o.request_bytes = options.stream.request_bytes;
  o.direct = options.stream.direct;
  o.verify = options.stream.verify;
  FTH_ASSIGN_OR_RETURN(store, ExpertStore::open(std::move(source), o));
  const std::span<std::byte> memory = store->memory();
  FTH_ASSIGN_OR_RETURN(slots, device(0).import_host(memory.data(), memory.size()));
  if (!options.stream.warm_set.empty() && std::filesystem::exists(options.stream.warm_set)) {
    if (auto warmed = store->load_warm(options.stream.warm_set); !warmed)
      plan.notes.push_back("warm set not used: " + warmed.error().message);
  }
  return {};
}

Result<> Engine::Impl::read_embedding_rows(std::span<const int32_t> ids) {
  const Weight& table = model->token_embd;
  const uint64_t row = row_bytes(table.dtype, table.cols);
  std::byte* to = embedding_rows.data();
  for (const int32_t id : ids) {
    FTH_RETURN_IF_ERROR(files[table.file].read(table.offset + static_cast<uint64_t>(id) * row, to, row));
    to += row;
  }
  return {};
}

std::string Engine::streaming() const {
  if (impl_->store == nullptr) return {};
  const std::string& why = impl_->options.stream.tuning;
  return impl_->store->description() + (why.empty() ? "" : "; " + why);
}

uint64_t Engine::fingerprint() const { return fth::fingerprint(*impl_->model); }

uint64_t Engine::slot_bytes() const {
  if (!impl_->model->config.is_sparse()) return 0;
  const auto bytes = ExpertStore::slot_bytes(expert_source(*impl_->model));
  return bytes ? *bytes : 0;
}

Result<> Engine::save_warm_set() const {
  if (impl_->store == nullptr || impl_->options.stream.warm_set.empty()) return {};
  return impl_->store->save_warm(impl_->options.stream.warm_set);
}

}  // namespace fth
