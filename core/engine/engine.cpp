// Opening a model: read it, find devices, plan; what follows the plan is in load.cpp.
#include "core/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/engine/engine_impl.h"

namespace fth {
namespace {

constexpr int64_t kDefaultCtx = 4096;
// Stacks, heap growth and the pages of code that only a running model touches, beyond what is resident when the plan is made.
constexpr uint64_t kProgramSlack = 12 * kMiB;

// A copy takes this long however small it is: a call of the driver and its wait. Assumed; devices behind PCIe are known to need 5 to 10 us.
constexpr double kCopyCall = 5e-6;

// What a segment on a device with memory of its own copies beyond the stream on its way in and out, which the planner prices itself: a sparse layer's attention hands y to combine and h to
// the experts, the head hands over logits.
double more_copies(SegmentKind kind, const Config& c, double bytes_per_second, int64_t rows) {
  const auto bytes = static_cast<double>(sizeof(float)) * static_cast<double>(kind == SegmentKind::head ? c.n_vocab : c.n_embd * rows);
  if (kind == SegmentKind::attention && !c.is_sparse()) return 0;
  return (kind == SegmentKind::head ? 2 : 3) * kCopyCall + (bytes_per_second > 0 ? bytes / bytes_per_second : 0);
}

uint64_t expert_bytes(const Layer& l) { return l.gate.expert_bytes() + l.up.expert_bytes() + l.down.expert_bytes(); }

// Host-to-device bytes per second, by writing a few MiB; for devices with memory of their own.
double measure_copy(const Device& device) {
  constexpr uint64_t kBytes = 4 * kMiB;
  auto buffer = device.alloc(kBytes);
  if (!buffer) return 0;
  const std::vector<std::byte> source(kBytes);
  double best = 0;
  for (int i = 0; i < 3; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (!buffer->write(0, source.data(), kBytes)) return 0;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, static_cast<double>(kBytes) / seconds);
  }
  return best;
}

}  // namespace

Segment Engine::Impl::build(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant) const {
  switch (kind) {
    case SegmentKind::embed: return embed_segment(*model, embedding ? embedding : model->token_embd, bucket);
    case SegmentKind::router: return router_segment(*model, layer, bucket);
    case SegmentKind::attention: return attention_segment(*model, layer, bucket, shapes, variant);
    case SegmentKind::experts: return experts_segment(*model, layer, bucket, variant);
    case SegmentKind::combine: return combine_segment(*model, layer, bucket);
    case SegmentKind::head:
      if (variant == Variant::screened) return screened_head_segment(*model, screen.plane, screen.mean, screen.k, screen.z);
      return head_segment(*model, bucket, variant);
  }
  FTH_CHECK(false, "unknown segment kind");
  return {};
}

Segment Engine::Impl::build_planned(SegmentKind kind, int64_t layer, int64_t bucket) const {
  Segment segment = build(kind, layer, bucket, Variant::plain);
  for (fth_op& op : segment.ops) {
    if (op.kind == FTH_OP_MATMUL) op.attr[1] = 0;
    if (op.kind == FTH_OP_EXPERTS) op.attr[3] = model->layers[static_cast<size_t>(layer)].gate.interleaved_in_file ? 1 : 0;
  }
  return segment;
}

std::byte* Engine::Impl::place(const Weight& w) const {
  const auto copy = dense_place.find(w.data);
  // The mapping is read-only; devices get it for WEIGHT and SLOTS bindings, which they only read.
  return copy != dense_place.end() ? copy->second : const_cast<std::byte*>(w.data);
}

Result<const Buffer*> Engine::Impl::weight(size_t device_index, const Weight& w) {
  const auto key = std::make_pair(device_index, w.data);
  if (const auto found = weights.find(key); found != weights.end()) return &found->second;
  Device& d = device(device_index);
  Buffer buffer;
  std::byte* const data = place(w);
  if (d.reads_host_memory()) {
    FTH_ASSIGN_OR_RETURN(buffer, d.import_host(data, w.span_bytes()));
  } else {
    FTH_ASSIGN_OR_RETURN(buffer, d.alloc(w.span_bytes()));
    FTH_RETURN_IF_ERROR(buffer.write(0, data, w.span_bytes()));
    // Of the file: the plan counts the device's copy alone. What was put into another order is in memory of ours, which would come back as zeros.
    const bool ours = std::any_of(reordered.begin(), reordered.end(),
                                  [data](const HostBlock& b) { return data >= b.data() && data < b.data() + b.bytes(); });
    if (data == w.data && !ours) release_mapped(data, w.span_bytes());
  }
  return &weights.emplace(key, std::move(buffer)).first->second;
}

std::unique_ptr<Compiled> Engine::Impl::describe(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant, size_t d) const {
  auto c = std::make_unique<Compiled>();
  c->segment = build(kind, layer, bucket, variant);
  c->device = d;
  c->weight_bytes = c->segment.weight_bytes();
  if (kind == SegmentKind::experts) {
    const Layer& l = model->layers[static_cast<size_t>(layer)];
    const uint64_t gate = l.gate.expert_bytes(), all = expert_bytes(l);
    c->weight_bytes = variant == Variant::gates ? gate : variant == Variant::after_gates ? all - gate : all;
  }
  if (variant == Variant::screened) c->weight_bytes -= model->output.bytes;  // its rows are counted when they are known
  c->flops_per_row = c->segment.flops_per_row();
  c->flops_per_cell = c->segment.flops_per_cell();
  return c;
}

Result<std::unique_ptr<Compiled>> Engine::Impl::compile(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant, size_t d) {
  std::unique_ptr<Compiled> c = describe(kind, layer, bucket, variant, d);
  FTH_ASSIGN_OR_RETURN(const fth_estimate estimate, blame(d, device(d).estimate(c->segment.view())));
  c->workspace_bytes = estimate.workspace_bytes;
  if (c->workspace_bytes > workspaces[d].bytes())
    return fail(Code::internal, c->segment.name + " wants a workspace of " + format_bytes(c->workspace_bytes) + ", planned were " +
                                    format_bytes(workspaces[d].bytes()));
  std::vector<fth_binding> bound;
  for (const Weight* w : c->segment.weights) {
    FTH_ASSIGN_OR_RETURN(const Buffer* const buffer, blame(d, weight(d, *w)));
    bound.push_back(buffer->whole());
  }
  const auto begin = std::chrono::steady_clock::now();
  auto executable = blame(d, device(d).compile(c->segment.view(), bound));
  if (d != 0 && bucket == 1 && device(d).reads_host_memory())
    compile_seconds[d] += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (!executable) return tl::unexpected<Error>(std::move(executable).error().context(device(d).name() + ": compile " + c->segment.name));
  c->executable = std::move(*executable);
  return c;
}

namespace {
size_t bucket_at(int64_t bucket) {
  return static_cast<size_t>(std::find(std::begin(kBuckets), std::end(kBuckets), bucket) - std::begin(kBuckets));
}
}  // namespace

size_t Engine::Impl::compiled_at(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant) const {
  const size_t n_layers = static_cast<size_t>(model->config.n_layer) + 1;
  return ((static_cast<size_t>(kind) * n_layers + static_cast<size_t>(layer + 1)) * std::size(kBuckets) + bucket_at(bucket)) * kVariants +
         static_cast<size_t>(variant);
}

Result<Compiled*> Engine::Impl::get(SegmentKind kind, int64_t layer, int64_t bucket, Variant variant) {
  if (compiled.empty()) compiled.resize(kSegmentKinds * static_cast<size_t>(model->config.n_layer + 1) * std::size(kBuckets) * kVariants);
  const size_t index = compiled_at(kind, layer, bucket, variant);
  std::unique_ptr<Compiled>& slot = compiled[index];
  size_t d = device_for(kind, layer);
  if (kind == SegmentKind::experts && d == 0) d = experts_on[bucket_at(bucket)];
  if (kind == SegmentKind::experts || !starts_on_cpu(d)) {
    if (!slot) {
      FTH_ASSIGN_OR_RETURN(slot, compile(kind, layer, bucket, variant, d));
    }
    return slot.get();
  }
  if (variant != Variant::plain) {  // values are looked at: on the device that the plan names
    move_over(true);
    const auto lock = background.lock();
    if (!slot) {
      FTH_ASSIGN_OR_RETURN(slot, compile(kind, layer, bucket, variant, d));
    }
    return slot.get();
  }
  if (slot && !background.busy()) return slot.get();
  if (!slot && !background.knows(index)) {
    BackgroundCompiler::Job job;
    job.index = index;
    job.compiled = describe(kind, layer, bucket, variant, d);
    for (const Weight* w : job.compiled->segment.weights) job.weights.emplace_back(place(*w), w->span_bytes());
    job.device = &device(d);
    job.workspace_limit = workspaces[d].bytes();
    background.add(std::move(job));
  }
  return stand_in(index, kind, layer, bucket);
}

Result<Compiled*> Engine::Impl::stand_in(size_t index, SegmentKind kind, int64_t layer, int64_t bucket) {
  stand_ins.resize(compiled.size());
  std::unique_ptr<Compiled>& slot = stand_ins[index];
  if (!slot) {
    FTH_ASSIGN_OR_RETURN(slot, compile(kind, layer, bucket, Variant::plain, 0));
  }
  return slot.get();
}

void Engine::Impl::move_over(bool wait) {
  const auto say = [&](int32_t level, const std::string& message) {
    if (options.registry.log != nullptr) options.registry.log(options.registry.log_self, level, message.c_str());
  };
  size_t moved = 0;
  std::string where;
  for (BackgroundCompiler::Job& job : background.take(wait)) {
    where = job.device->name();
    if (!job.outcome) {
      say(FTH_LOG_WARNING,
          where + ": compile " + job.compiled->segment.name + ": " + job.outcome.error().message + "; it stays on the CPU");
      continue;
    }
    if (registry->devices()[job.compiled->device].check.wrong) continue;  // lost meanwhile (recover.cpp)
    if (job.compiled->segment.n_tokens == 1) compile_seconds[job.compiled->device] += job.seconds;
    compiled[job.index] = std::move(job.compiled);
    ++moved;
  }
  if (moved > 0) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.1f", background.seconds());
    say(FTH_LOG_INFO, where + ": " + std::to_string(moved) + " segments compiled in " + seconds + " s; they run there from now on");
    keep_compile_seconds();
  }
  background.start();
}

Result<> Engine::Impl::detect() {
  RegistryOptions r = options.registry;
  r.builtin_only = r.builtin_only || options.cpu_only;
  FTH_ASSIGN_OR_RETURN(registry, Registry::open(r));
  for (size_t d = 0; d < registry->devices().size(); ++d) {
    if (device(d).reads_host_memory()) {
      space_of.push_back(0);
      if (space_owner.empty()) space_owner.push_back(d);
    } else {
      if (space_owner.empty()) return fail(Code::unavailable, "the first device must be the host's own CPU, found " + device(d).name());
      space_of.push_back(space_owner.size());
      space_owner.push_back(d);
    }
  }
  find_late();
  return name_missing();
}

// A device that is named belongs to a plugin that was not loaded: its reason is the answer.
Result<> Engine::Impl::name_missing() const {
  std::vector<std::string> named = {options.device};
  for (const PlacementRule& rule : options.rules) named.push_back(rule.device);
  for (const std::string& name : named) {
    if (name.empty() || registry->find(name)) continue;
    for (const BackendReport& b : registry->backends())
      if (!b.loaded && b.name == name.substr(0, name.find(':')))
        return fail(Code::unavailable, name + ": the plugin " + b.path + " is not loaded: " + b.reason);
  }
  return {};
}

const Engine::Impl::Estimates& Engine::Impl::estimates_of(SegmentKind kind, int64_t layer, int64_t bucket) {
  const bool attention = kind == SegmentKind::attention;
  const int64_t cells = attention ? kv_cells(model->layers[static_cast<size_t>(layer)], shapes) : 0;
  const auto [found, fresh] = estimates.try_emplace({kind, layer, bucket, cells, attention ? shapes.page_cells : 0});
  Estimates& of = found->second;
  if (!fresh) return of;
  const Segment segment = build_planned(kind, layer, bucket);
  of.name = segment.name;
  of.weight_bytes = segment.weight_bytes();
  for (size_t d = 0; d < registry->devices().size(); ++d) of.by_device.push_back(device(d).estimate(segment.view()));
  of.shape.assign(reinterpret_cast<const char*>(segment.tensors.data()), segment.tensors.size() * sizeof(fth_tensor));
  of.shape.append(reinterpret_cast<const char*>(segment.ops.data()), segment.ops.size() * sizeof(fth_op));
  return of;
}

Result<> Engine::Impl::plan_for(int64_t ubatch, int64_t page_cells, int64_t resident_pages) {
  const Config& c = model->config;
  options.ubatch = ubatch;
  if (options.n_ctx == 0) options.n_ctx = std::min(c.n_ctx, kDefaultCtx);
  if (options.n_ctx < 1 || options.n_ctx > c.n_ctx)
    return fail(Code::invalid_argument, "context of " + std::to_string(options.n_ctx) + " tokens: the model allows 1 to " +
                                            std::to_string(c.n_ctx) + "; --override context_length=N overrules it");
  if (options.ubatch < 1 || options.ubatch > kBuckets[std::size(kBuckets) - 1])
    return fail(Code::invalid_argument, "ubatch of " + std::to_string(options.ubatch) + " tokens: 1 to 512 are possible");
  const DType kv = options.kv.dtype;
  if (kv != DType::f16 && kv != DType::f32 && kv != DType::q8_0)
    return fail(Code::invalid_argument, "KV cache type " + std::string(name(kv)) + ": f16, f32 and q8_0 are possible");
  if (kv == DType::q8_0 && c.head_dim % 32 != 0)
    return fail(Code::invalid_argument,
                "KV cache type q8_0 needs heads of a multiple of 32 values; the model's have " + std::to_string(c.head_dim));
  options.ubatch = std::min(options.ubatch, options.n_ctx);
  shapes = {kv, options.n_ctx, bucket_for(options.ubatch), page_cells};
  kv_pages = {};

  std::vector<PlanDevice> devices;
  for (size_t d = 0; d < registry->devices().size(); ++d) {
    const DeviceEntry& entry = registry->devices()[d];
    PlanDevice p;
    p.name = entry.device.name();
    p.host_memory = entry.device.reads_host_memory();
    p.memory_bytes = entry.device.info().free_bytes;
    const double checked = std::min(entry.check.write_bytes_per_second, entry.check.read_bytes_per_second);
    if (copy_speed.size() == d) copy_speed.push_back(p.host_memory ? 0 : checked > 0 ? checked : measure_copy(entry.device));
    p.copy_bytes_per_second = copy_speed[d];
    p.refusal = entry.refusal;
    p.wrong = entry.check.wrong;
    p.beside_cpu = works_beside_cpu(d);
    p.fixed_bytes = activation_bytes(*this).all;
    devices.push_back(std::move(p));
  }

  measure_choices();
  std::vector<PlanSegment> segments;
  stand_in_workspace = 0;
  uint64_t experts = 0;
  const uint64_t stream_bytes = static_cast<uint64_t>(c.n_embd) * sizeof(float);
  const auto add = [&](SegmentKind kind, int64_t layer) {
    PlanSegment s;
    s.kind = kind;
    s.layer = layer;
    s.name = (layer < 0 ? std::string() : "layer." + std::to_string(layer) + ".") + std::string(name(kind));
    s.host_only = kind != SegmentKind::attention && kind != SegmentKind::head;
    s.in_bytes = s.out_bytes = stream_bytes;
    std::string only_host;  // why no other device may run it
    if (kind == SegmentKind::attention) {
      const Layer& l = model->layers[static_cast<size_t>(layer)];
      const uint64_t cell = row_bytes(shapes.kv_dtype, c.n_head_kv * c.head_dim);
      if (kv_in_pages(l, shapes)) {
        const int64_t pages = kv_cells(l, shapes) / page_cells;
        kv_pages = {kv_pages.n_layers + 1, page_cells, pages, std::min(pages, resident_pages), cell};
        s.state_bytes = static_cast<uint64_t>(kv_pages.resident) * kv_pages.page_bytes();
        only_host = "the KV cache of layers without a window is on storage, in pages that only " + devices[0].name +
                    " takes; --kv memory keeps it whole";
      } else {
        s.state_bytes = static_cast<uint64_t>(2 * kv_cells(l, shapes)) * cell;
      }
    }
    s.cost.resize(devices.size());
    for (const int64_t bucket : kBuckets) {
      // The head runs for one row, or for blocks of kHeadRows when all logits are asked for.
      if (bucket > (kind == SegmentKind::head ? kHeadRows : shapes.max_bucket)) break;
      const Estimates& of = estimates_of(kind, layer, bucket);
      if (bucket == 1) s.weight_bytes = of.weight_bytes;
      for (size_t d = 0; d < devices.size(); ++d) {
        SegmentCost& cost = s.cost[d];
        const Result<fth_estimate>& estimate = of.by_device[d];
        if (!estimate) {
          if (cost.reason.empty()) cost.reason = of.name + ": " + estimate.error().message;
          cost.supported = false;
          continue;
        }
        const auto run = measured_runs.find({d, of.shape});
        const bool measured = run != measured_runs.end() && run->second.seconds > 0;
        const double seconds = measured ? run->second.seconds : estimate->seconds;
        if (bucket == 1) {
          cost.supported = true;
          cost.seconds = seconds + (devices[d].host_memory ? 0 : more_copies(kind, c, devices[d].copy_bytes_per_second, 1));
          cost.measured = measured;
          cost.by_profile = measured && run->second.by_profile;
        }
        if (bucket == shapes.max_bucket && kind != SegmentKind::head)
          cost.step_seconds = seconds * static_cast<double>(options.ubatch) / static_cast<double>(bucket) +
                              (devices[d].host_memory ? 0 : more_copies(kind, c, devices[d].copy_bytes_per_second, options.ubatch));
        cost.workspace_bytes = std::max(cost.workspace_bytes, estimate->workspace_bytes);
        cost.resident_bytes += estimate->resident_bytes;
      }
    }
    if (any_late() && !s.host_only) stand_in_workspace = std::max(stand_in_workspace, s.cost[0].workspace_bytes);
    if (kind == SegmentKind::head && screen.plane.bytes > 0) {
      const Segment screened = screened_head_segment(*model, screen.plane, screen.mean, std::min(kMaxWanted, c.n_vocab), 0);
      for (size_t d = 0; d < devices.size(); ++d)
        if (const auto estimate = device(d).estimate(screened.view()); estimate && s.cost[d].supported) {
          SegmentCost& cost = s.cost[d];
          cost.workspace_bytes = std::max(cost.workspace_bytes, estimate->workspace_bytes);
          // What decoding will do, greedily or among the k largest; measured was the exact head.
          if (devices[d].host_memory && estimate->seconds < cost.seconds) cost.seconds = estimate->seconds, cost.measured = false;
        }
    }
    // Their time is what the device takes that they were given to.
    if (kind == SegmentKind::experts && s.cost[0].supported) {
      s.cost[0].seconds *= expert_choice.time_ratio(1);
      s.cost[0].step_seconds *= expert_choice.time_ratio(shapes.max_bucket);
    }
    for (size_t d = 1; d < devices.size() && !only_host.empty(); ++d) {
      s.cost[d].supported = false;
      s.cost[d].reason = only_host;
    }
    if (kind == SegmentKind::experts)
      experts += expert_bytes(model->layers[static_cast<size_t>(layer)]) * static_cast<uint64_t>(c.n_expert);
    segments.push_back(std::move(s));
  };
  add(SegmentKind::embed, -1);
  for (int64_t layer = 0; layer < c.n_layer; ++layer) {
    if (c.is_sparse()) add(SegmentKind::router, layer);
    add(SegmentKind::attention, layer);
    if (c.is_sparse()) {
      add(SegmentKind::experts, layer);
      add(SegmentKind::combine, layer);
    }
  }
  add(SegmentKind::head, -1);
  set_hidden_seconds(&segments);
  // Tied: the table is one and the same.
  const bool tied = model->output.data == model->token_embd.data;
  if (tied) segments.front().weight_bytes = 0;

  PlanOptions p;
  p.ram_budget = options.ram_budget;
  p.ram_available = available_memory();
  p.ram_available -= p.ram_available / 16;  // other programs grow, too
  p.vram_budget = options.vram_budget;
  p.cpu_only = options.cpu_only;
  p.device = options.device;
  p.rules = options.rules;
  p.n_ctx = options.n_ctx;
  p.ubatch = options.ubatch;
  if (program_bytes == 0) program_bytes = resident_memory() + kProgramSlack;
  weigh_prompts(&p);
  const ActivationBytes activations = activation_bytes(*this);
  const auto plan_with = [&](const char* what, uint64_t expert_arena, bool embedding_on_demand, bool overlap) {
    std::vector<Arena> fixed = {{"program", "ram", program_bytes}, {"activations", "ram", activations.touched}};
    if (overlap) fixed.push_back({kSecondActivations, "ram", activations.earlier});
    for (PlanDevice& d : devices) d.fixed_bytes = activations.all + (overlap ? activations.earlier : 0);
    p.overlap = overlap;
    if (stand_in_workspace > 0) fixed.push_back({"workspace of the cpu, to start on", "ram", stand_in_workspace});
    if (expert_arena > 0) fixed.push_back({what, "ram", expert_arena});
    add_expert_workspaces(&fixed);
    if (screen.plane.bytes > 0) fixed.push_back({"head plane", "ram", screen.arena_bytes()});
    if (kv_pages.n_layers > 0) fixed.push_back({"kv cache, from storage", "ram", kv_pages.staging_bytes()});
    auto mine = segments;
    if (embedding_on_demand && !tied) {
      mine.front().weight_bytes = 0;
      fixed.push_back({"embedding rows", "ram", static_cast<uint64_t>(shapes.max_bucket) * row_bytes(model->token_embd.dtype, c.n_embd)});
    }
    uint64_t bytes = model->bytes_per_token();
    if (screen.plane.bytes > 0)
      bytes -= std::min(bytes, model->output.bytes - std::min(model->output.bytes, screen.expected_bytes(model->output)));
    return make_plan(devices, std::move(mine), fixed, bytes, p);
  };
  if (options.experts == ExpertPlacement::streamed && !c.is_sparse())
    return fail(Code::invalid_argument, "experts cannot be streamed: the model is dense and has none");
  const bool may_stream = c.is_sparse() && options.experts != ExpertPlacement::resident;
  const auto no_room = [](const Result<Plan>& made) { return !made && made.error().code == Code::resource_exhausted; };
  const auto stream = [&](bool overlap) -> Result<> {
    FTH_ASSIGN_OR_RETURN(const uint64_t slot, ExpertStore::slot_bytes(expert_source(*model)));
    const int64_t all = c.n_layer * c.n_expert;
    int64_t n = options.stream.slots != 0 ? options.stream.slots : c.top_k;
    if (n < c.top_k || n > all)
      return fail(Code::invalid_argument,
                  std::to_string(n) + " expert slots: " + std::to_string(c.top_k) + " to " + std::to_string(all) + " are possible");
    FTH_ASSIGN_OR_RETURN(plan, plan_with("expert slots", slot * static_cast<uint64_t>(n), true, overlap));
    if (options.stream.slots == 0 && plan.ram_limit == 0) n = all;
    if (options.stream.slots == 0 && plan.ram_limit != 0)
      n = std::min(all, n + static_cast<int64_t>((plan.ram_limit - plan.ram_bytes) / slot));
    FTH_ASSIGN_OR_RETURN(plan, plan_with("expert slots", slot * static_cast<uint64_t>(n), true, overlap));
    plan.expert_slots = n;
    if (overlap && n < two_layers_of_experts()) return {};  // not taken
    FTH_RETURN_IF_ERROR(find_tier());
    if (const int64_t cycle = c.n_layer * c.top_k; n < 2 * cycle)
      plan.notes.push_back(std::to_string(n) + " expert slots are fewer than two tokens' experts (" + std::to_string(2 * cycle) +
                           "): most experts will be read again for every token; --ram " +
                           std::to_string((plan.ram_bytes + static_cast<uint64_t>(2 * cycle - n) * slot) / kMiB + 1) + "MiB holds two");
    if (!c.packed) plan.notes.push_back("experts are streamed from an unpacked file, three reads each; `forethought pack` makes it one");
    return {};
  };
  const auto make = [&](bool overlap) -> Result<> {
    auto whole = plan_with("experts", experts, false, overlap);
    if (overlap && no_room(whole))  // all experts in memory are worth more
      whole = plan_with("experts", experts, false, false);
    if (may_stream && (no_room(whole) || options.experts == ExpertPlacement::streamed)) {
      const Result<> streams = stream(overlap);
      if (overlap && (streams ? plan.expert_slots < two_layers_of_experts() : streams.error().code == Code::resource_exhausted))
        return stream(false);
      return streams;
    }
    FTH_ASSIGN_OR_RETURN(plan, std::move(whole));
    return {};
  };
  FTH_RETURN_IF_ERROR(make(may_overlap()));
  if (plan.overlap && !overlap_pays()) FTH_RETURN_IF_ERROR(make(false));
  say_overlap();
  placed.assign(kSegmentKinds * static_cast<size_t>(c.n_layer + 1), 0);
  for (const Placement& q : plan.placements)
    placed[static_cast<size_t>(q.kind) * static_cast<size_t>(c.n_layer + 1) + static_cast<size_t>(q.layer + 1)] = q.device;
  return {};
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::open(const EngineOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->ubatch_wanted = options.ubatch;
  FTH_ASSIGN_OR_RETURN(impl->model, load_model(options.model, options.overrides));
  FTH_ASSIGN_OR_RETURN(impl->tokenizer, Tokenizer::from_gguf(impl->model->file));
  if (impl->tokenizer->size() > impl->model->config.n_vocab)
    return fail(Code::data_loss, options.model.string() + ": tokenizer.ggml.tokens has " + std::to_string(impl->tokenizer->size()) +
                                     " entries, token_embd.weight " + std::to_string(impl->model->config.n_vocab) + " rows");
  impl->chat_template = ChatTemplate::chatml();
  if (auto text = impl->model->file.string("tokenizer.chat_template"); !text) {
    impl->template_note = "the file has no chat template; ChatML is used";
  } else if (auto parsed = ChatTemplate::parse(*text); !parsed) {
    impl->template_note = "the file's chat template cannot be used (" + parsed.error().message + "); ChatML is used";
  } else {
    impl->chat_template = std::move(*parsed);
  }
  FTH_RETURN_IF_ERROR(impl->detect());
  if (options.head == HeadMode::screened) impl->shape_plane();
  const bool reorders = impl->wants_reordered();
  FTH_RETURN_IF_ERROR(impl->choose_experts());  // in the order that they will have
  Result<> decided = impl->decide();
  if (!decided && decided.error().code == Code::resource_exhausted && impl->screen.plane.bytes > 0) {
    impl->screen.why_not = "the budget has no room for its plane of " + format_bytes(std::exchange(impl->screen.plane, {}).bytes);
    impl->options.ubatch = impl->ubatch_wanted;
    decided = impl->decide();
    if (decided) impl->plan.notes.push_back("the exact head is used: " + impl->screen.why_not);
  }
  FTH_RETURN_IF_ERROR(decided);
  if (reorders && impl->streamed()) {
    impl->options.ubatch = impl->ubatch_wanted;
    impl->keep_order("experts are streamed from the file as it is; `forethought pack` writes one that decodes faster");
    FTH_RETURN_IF_ERROR(impl->choose_experts());
    FTH_RETURN_IF_ERROR(impl->decide());
  }
  if (options.repack == Repack::memory && !impl->repack_note.empty())
    return fail(Code::failed_precondition, "repacking in memory: " + impl->repack_note);
  impl->say_late();
  if (!options.plan_only) FTH_RETURN_IF_ERROR(impl->make_resident());
  impl->options.on_load = {};  // open()'s caller watches open(); weights may be loaded again later (replan.cpp)
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

const Model& Engine::model() const { return *impl_->model; }
const Plan& Engine::plan() const { return impl_->plan; }
const Tokenizer& Engine::tokenizer() const { return *impl_->tokenizer; }
const ChatTemplate& Engine::chat_template() const { return *impl_->chat_template; }
const std::string& Engine::repacked() const { return impl_->repack_note; }
const std::string& Engine::template_note() const { return impl_->template_note; }
Registry& Engine::registry() { return *impl_->registry; }
const EngineOptions& Engine::options() const { return impl_->options; }

std::vector<Engine::LiveNeurons> Engine::live_neurons() const {
  std::vector<LiveNeurons> layers(static_cast<size_t>(impl_->model->config.n_layer));
  bool any = false;
  for (const std::unique_ptr<Compiled>& c : impl_->compiled) {
    if (!c || c->segment.kind != SegmentKind::experts) continue;
    LiveNeurons counted;
    c->executable.live_neurons(&counted.live, &counted.all);
    LiveNeurons& layer = layers[static_cast<size_t>(c->segment.layer)];
    layer.live += counted.live;
    layer.all += counted.all;
    any |= counted.all > 0;
  }
  return any ? layers : std::vector<LiveNeurons>();
}

std::unique_ptr<Recorder> Engine::new_recorder() const {
  RecorderShape shape;
  shape.n_threads = impl_->registry->pool().n_threads();
  for (const DeviceEntry& entry : impl_->registry->devices()) shape.devices.push_back(entry.device.name());
  return std::make_unique<Recorder>(shape);
}

void Engine::set_recorder(Recorder* recorder) {
  impl_->recorder = recorder;
  impl_->registry->pool().set_recorder(recorder);
  if (impl_->store) impl_->store->set_recorder(recorder);
}

Result<Session> Engine::new_session() {
  if (impl_->options.plan_only) return fail(Code::failed_precondition, "the engine was opened for its plan only");
  std::unique_ptr<Session::Impl> session;
  const auto make = [&]() -> Result<> {
    FTH_ASSIGN_OR_RETURN(session, Session::Impl::make(*impl_));
    return {};
  };
  FTH_RETURN_IF_ERROR(impl_->surviving(make));
  return Session(std::move(session));
}

}  // namespace fth
