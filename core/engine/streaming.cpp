// Streamed experts: what stays in RAM, and the store that reads the rest.
#include <algorithm>
#include <set>
#include <vector>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"
#include "core/experts/tier.h"

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

// Every weight that may be read whole. The embedding only where the head is the same matrix.
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

namespace {

class DeviceTier final : public Tier {
 public:
  DeviceTier(std::string name, Buffer buffer, uint64_t slot_bytes)
      : name_(std::move(name)), buffer_(std::move(buffer)), slot_bytes_(slot_bytes) {}
  std::string name() const override { return name_; }
  int64_t n_slots() const override { return static_cast<int64_t>(buffer_.bytes() / slot_bytes_); }
  Result<> write(int64_t slot, std::span<const std::byte> from) override {
    return buffer_.write(static_cast<uint64_t>(slot) * slot_bytes_, from.data(), from.size());
  }
  Result<> read(int64_t slot, std::span<std::byte> to) override {
    return buffer_.read(static_cast<uint64_t>(slot) * slot_bytes_, to.data(), to.size());
  }

 private:
  std::string name_;
  Buffer buffer_;
  uint64_t slot_bytes_;
};

}  // namespace

Result<> Engine::Impl::find_tier() {
  const std::string& wanted = options.stream.tier;
  if (wanted == "off") return {};
  FTH_ASSIGN_OR_RETURN(const uint64_t slot, ExpertStore::slot_bytes(expert_source(*model)));
  const int64_t missing = model->config.n_layer * model->config.n_expert - plan.expert_slots;
  std::string known;
  for (size_t d = 0; d < plan.devices.size() && plan.tier_slots == 0; ++d) {
    const PlanDevice& p = plan.devices[d];
    if (p.host_memory || p.wrong) continue;
    known += (known.empty() ? "" : ", ") + p.name;
    const bool used = std::any_of(plan.placements.begin(), plan.placements.end(), [d](const Placement& q) { return q.device == d; });
    const bool faster = p.copy_bytes_per_second > 2 * options.stream.storage.bytes_per_second;
    if (wanted == "auto" ? !used || !faster || !p.refusal.empty() : wanted != p.name) continue;
    uint64_t limit = p.memory_bytes;
    if (options.vram_budget != 0) limit = limit == 0 ? options.vram_budget : std::min(limit, options.vram_budget);
    for (const Arena& a : plan.arenas)
      if (a.device == p.name) limit -= std::min(limit, a.bytes);
    limit -= limit / 16;  // drivers need some themselves
    plan.tier_device = d;
    plan.tier_slots = std::min(missing, static_cast<int64_t>(limit / slot));
    if (plan.tier_slots > 0) plan.arenas.push_back({"more experts", p.name, static_cast<uint64_t>(plan.tier_slots) * slot});
  }
  if (wanted == "auto" || plan.tier_slots > 0 || missing == 0) return {};
  return fail(Code::invalid_argument,
              "--expert-tier " + wanted + ": " +
                  (known.empty() ? "no device here has memory of its own"
                                 : "no such device, or no room there for one expert; devices with memory of their own: " + known));
}

Result<> Engine::Impl::make_streamed() {
  for (const auto& path : model->file.parts()) {
    FTH_ASSIGN_OR_RETURN(ReadFile file, ReadFile::open(path));
    files.push_back(std::move(file));
  }
  // What only devices with memory of their own use is copied there from the mapped file.
  std::set<const std::byte*> used;
  for (const Placement& p : plan.placements) {
    if (!device(p.device).reads_host_memory()) continue;
    const Segment segment = build(p.kind, p.layer, 1, Variant::plain);
    for (const Weight* w : segment.weights) used.insert(w->data);
  }
  if (screen.plane.bytes > 0) used.insert(model->output.data);
  auto weights_read = dense_weights(*model);
  std::erase_if(weights_read, [&](const Weight* w) { return !used.contains(w->data); });
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
  if (plan.tier_slots > 0) {
    const std::string name = device(plan.tier_device).name();
    auto buffer = device(plan.tier_device).alloc(static_cast<uint64_t>(plan.tier_slots) * slot);
    if (buffer) {
      o.tier = std::make_shared<DeviceTier>(name, std::move(*buffer), slot);
    } else {
      plan.tier_slots = 0;
      plan.notes.push_back("no experts are kept on " + name + ": " + buffer.error().message);
    }
  }
  FTH_ASSIGN_OR_RETURN(store, ExpertStore::open(std::move(source), o));
  store->set_recorder(recorder);
  const std::span<std::byte> memory = store->memory();
  FTH_ASSIGN_OR_RETURN(slots, device(0).import_host(memory.data(), memory.size()));
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
  const std::string lost = impl_->store->tier_error();
  return impl_->store->description() + (why.empty() ? "" : "; " + why) + (lost.empty() ? "" : "; device memory given up: " + lost);
}

uint64_t Engine::slot_bytes() const {
  if (!impl_->model->config.is_sparse()) return 0;
  const auto bytes = ExpertStore::slot_bytes(expert_source(*impl_->model));
  return bytes ? *bytes : 0;
}

uint64_t Engine::fingerprint() const { return fth::fingerprint(*impl_->model); }

Result<int64_t> Engine::load_warm_set(const std::filesystem::path& path) {
  if (impl_->store == nullptr) return fail(Code::failed_precondition, "experts are resident: a warm set is for streamed ones");
  return impl_->store->load_warm(path);
}

Result<> Engine::save_warm_set(const std::filesystem::path& path) const {
  if (impl_->store == nullptr || impl_->store->most_used(1).empty()) return {};
  return impl_->store->save_warm(path);
}

Result<int64_t> Engine::pin_most_used(int64_t n) {
  if (impl_->store == nullptr) return fail(Code::failed_precondition, "experts are resident: all of them stay");
  const int64_t n_slots = impl_->store->n_slots(), top_k = impl_->model->config.top_k;
  if (n > n_slots - top_k)
    return fail(Code::resource_exhausted, std::to_string(n) + " of " + std::to_string(n_slots) + " expert slots would be pinned, and " +
                                              std::to_string(top_k) + " (top_k) have to be left: pin at most " +
                                              std::to_string(n_slots - top_k) + " or raise --ram");
  auto most = impl_->store->most_used(n);
  std::stable_sort(most.begin(), most.end(), [](const auto& a, const auto& b) { return a.layer < b.layer; });
  for (size_t i = 0; i < most.size();) {
    std::vector<int32_t> experts;
    const int64_t layer = most[i].layer;
    for (; i < most.size() && most[i].layer == layer; ++i) experts.push_back(most[i].expert);
    FTH_RETURN_IF_ERROR(impl_->store->pin(layer, experts));
  }
  return static_cast<int64_t>(most.size());
}

}  // namespace fth
