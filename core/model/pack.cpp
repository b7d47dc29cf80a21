// Packs models. The head is written with zeros for checksums first and with the real ones last; everything between is in file order: dense tensors, then
// slabs layer by layer, each layer on the disk before the journal says so.
#include "core/model/pack.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <new>
#include <set>
#include <system_error>

#include "core/model/arch/decoder.h"
#include "core/model/gguf_writer.h"
#include "core/model/interleaved.h"
#include "core/model/message.h"
#include "core/model/neuron_major.h"
#include "core/model/pack_file.h"
#include "core/model/packed.h"

namespace fth {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kBatchBytes = 16 * kMiB;   // of a write, or one slab where that is more
constexpr std::string_view kDense = "dense";  // the journal's record of what stands in front of the slabs

fs::path with_suffix(fs::path path, const char* suffix) { return path += suffix; }

tl::unexpected<Error> interrupted(uint64_t layers) {
  return fail(Code::cancelled, message("interrupted with ", layers, " layers done; the same command continues"));
}

struct LayerPlan {
  const Layer* layer = nullptr;
  DownLayout down = DownLayout::row_major;
  bool gate_interleaved = false;
  SlabParts parts;
  SlabLayout slab;
  uint64_t at = 0;  // of expert 0, in the output
};

Result<DownLayout> choose_down(const Layer& layer, int64_t i, PackDown wanted) {
  const bool rows = layer.down_layout != DownLayout::by_neuron;  // or neuron-major, which goes back to rows
  const auto transposed = [] { return fail(Code::invalid_argument, "its down is stored by neuron, which cannot change without loss"); };
  const auto refused = [i](const Error& why) {
    return fail(Code::invalid_argument, message("layer ", i, ": ", why.message, "; --down auto takes what each layer can have"));
  };
  if (wanted == PackDown::row_major) return rows ? Result<DownLayout>(DownLayout::row_major) : refused(transposed().value());
  const Result<> possible = rows ? check_neuron_major(layer.down.dtype, layer.down.rows, layer.down.cols) : transposed();
  if (possible) return DownLayout::neuron_major;
  return wanted == PackDown::automatic ? Result<DownLayout>(layer.down_layout) : refused(possible.error());
}

Result<bool> choose_gate(const Layer& layer, int64_t i, PackGate wanted) {
  if (wanted == PackGate::row_major) return false;
  const Result<> possible = check_interleaved(layer.gate.dtype, layer.gate.rows, layer.gate.cols);
  if (possible || wanted == PackGate::automatic) return possible.has_value();
  return fail(Code::invalid_argument,
              message("layer ", i, ": gate: ", possible.error().message, "; --gate auto takes what each layer can have"));
}

// What will be where. `sums` is filled while slabs are written.
struct PackPlan {
  std::vector<const TensorInfo*> dense;
  std::vector<LayerPlan> layers;
  std::vector<uint64_t> sums;  // [n_layer, n_expert]
  GgufHead head;               // with the sums as they were
};

// The slabs' tensors follow the dense ones.
GgufHead make_head(const Model& model, const PackPlan& plan) {
  GgufWriter w(kSlabAlignment);
  const MetaValue alignment{"general.alignment", MetaType::u32, kSlabAlignment};
  for (const MetaValue& kv : model.file.metadata()) {
    if (kv.key == alignment.key || kv.key.starts_with("split.") || kv.key.starts_with("forethought.packed.")) continue;
    w.key(kv);
  }
  std::vector<std::string_view> types, downs, gates;
  for (const LayerPlan& l : plan.layers) {
    for (const Weight* part : {&l.layer->gate, &l.layer->up, &l.layer->down}) types.push_back(name(part->dtype));
    downs.push_back(kDownLayoutNames[static_cast<size_t>(l.down)]);
    gates.push_back(kGateOrderNames[l.gate_interleaved ? 1 : 0]);
  }
  w.key(alignment);
  w.key({kPackedVersion, MetaType::u32, static_cast<uint64_t>(kPackedFormat)});
  w.key({kPackedTypes, MetaType::array, MetaArray{MetaType::string, types.size(), {}, types}});
  w.key({kPackedDown, MetaType::array, MetaArray{MetaType::string, downs.size(), {}, downs}});
  w.key({kPackedGate, MetaType::array, MetaArray{MetaType::string, gates.size(), {}, gates}});
  w.key({kPackedXxh3, MetaType::array, MetaArray{MetaType::u64, plan.sums.size(), std::as_bytes(std::span(plan.sums)), {}}});
  for (const TensorInfo* t : plan.dense) w.tensor(t->name, t->dtype, std::span(t->dims).first(t->rank), t->bytes);
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const uint64_t bytes = plan.layers[i].slab.bytes, n = static_cast<uint64_t>(model.config.n_expert);
    const int64_t dims[] = {model.config.n_expert, static_cast<int64_t>(bytes / 4)};
    w.tensor(block_name(static_cast<int64_t>(i), kPackedSlab), DType::i32, dims, n * bytes);
  }
  return w.finish();
}

Result<PackPlan> make_plan(const Model& model, const PackOptions& o) {
  PackPlan plan;
  std::set<std::string, std::less<>> stacks;
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& layer = model.layers[i];
    LayerPlan l{&layer, {}, {}, {layer.gate.expert_bytes(), layer.up.expert_bytes(), layer.down.expert_bytes()}, {}, 0};
    FTH_ASSIGN_OR_RETURN(l.down, choose_down(layer, static_cast<int64_t>(i), o.down));
    FTH_ASSIGN_OR_RETURN(l.gate_interleaved, choose_gate(layer, static_cast<int64_t>(i), o.gate));
    l.slab = l.parts.layout();
    plan.layers.push_back(l);
    if (model.config.packed != 0) stacks.insert(block_name(static_cast<int64_t>(i), kPackedSlab));
    for (const Weight* w : {&layer.gate, &layer.up, &layer.down}) stacks.insert(w->name);
  }
  for (const TensorInfo& t : model.file.tensors())
    if (!stacks.contains(t.name)) plan.dense.push_back(&t);
  plan.sums.resize(model.layers.size() * static_cast<size_t>(model.config.n_expert));
  plan.head = make_head(model, plan);
  for (size_t i = 0; i < plan.layers.size(); ++i) plan.layers[i].at = plan.head.offsets[plan.dense.size() + i];
  return plan;
}

// Which input, and what becomes of it. The head holds metadata, directory and every choice.
Result<std::string> identity_of(const Model& model, const PackPlan& plan) {
  std::string out = "forethought pack 1\n";
  for (const fs::path& path : model.file.parts()) {
    struct stat st {};
    if (::stat(path.c_str(), &st) != 0) return fail(Code::not_found, message(path.native(), ": ", std::strerror(errno)));
    out +=
        message("input ", st.st_size, " bytes of ", st.st_mtim.tv_sec, ".", st.st_mtim.tv_nsec, " s, ", fs::absolute(path).native(), "\n");
  }
  return out + message("head ", plan.head.bytes.size(), " bytes, xxh3 ", fingerprint(plan.head.bytes), "\n");
}

Result<> check_places(const PackOptions& o, const Model& model) {
  std::error_code error;
  for (const fs::path& in : model.file.parts())
    for (const fs::path& place : {o.out, with_suffix(o.out, ".part"), with_suffix(o.out, ".part.state")})
      if (fs::equivalent(in, place, error))
        return fail(Code::invalid_argument, message(place.native(), ": would be written over the input; name another output"));
  const fs::file_status there = fs::status(o.out, error);
  if (fs::exists(there) && !fs::is_regular_file(there))
    return fail(Code::failed_precondition, message(o.out.native(), ": exists and is no regular file"));
  if (fs::exists(there) && !o.replace) return fail(Code::failed_precondition, message(o.out.native(), ": exists; --force replaces it"));
  return {};
}

// What an unfinished pack has taken counts as free.
Result<> check_space(const PackOptions& o, const fs::path& part, uint64_t needed) {
  const fs::path folder = o.out.has_parent_path() ? o.out.parent_path() : ".";
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) return fail(Code::failed_precondition, message(folder.native(), ": ", error.message()));
  uint64_t taken = 0;
  if (const auto old = PackFile::open(part, O_RDONLY)) taken = old->disk_bytes();
  if (taken + space.available >= needed) return {};
  return fail(Code::failed_precondition, message(folder.native(), ": the packed model takes ", format_bytes(needed), ", ",
                                                 format_bytes(space.available + taken), " are free; nothing was written"));
}

std::string layer_record(size_t layer, std::span<const uint64_t> sums) {
  std::string out = message("layer ", layer);
  for (const uint64_t sum : sums) out += message(" ", sum);
  return out;
}

// Fills sums from a record; false where it is not that layer's.
bool parse_layer_record(std::string_view record, size_t layer, std::span<uint64_t> sums) {
  std::string_view rest = record;
  rest.remove_prefix(std::min(rest.size(), message("layer ", layer).size()));
  for (uint64_t& sum : sums) {
    if (!rest.starts_with(' ')) return false;
    const auto [end, error] = std::from_chars(rest.data() + 1, rest.data() + rest.size(), sum);
    if (error != std::errc{}) return false;
    rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  }
  return record == layer_record(layer, sums);
}

class Packer {
 public:
  Packer(const PackOptions& o, const Model& model, PackPlan& plan, const PackFile& part, Journal& journal)
      : o_(o), model_(model), plan_(plan), part_(part), journal_(journal), n_expert_(static_cast<size_t>(model.config.n_expert)) {
    buffer_.resize(kBatchBytes);
  }

  // Layers that an earlier run has finished, their checksums in plan.sums; 0 when the file was begun anew.
  Result<size_t> resume(std::string_view identity);
  // Everything behind the finished layers, then the head.
  Result<> write(size_t finished);
  uint64_t written() const { return written_; }

 private:
  Result<> begin(std::string_view identity);
  Result<> write_dense();
  Result<> write_layer(size_t i);
  Result<> expert(const LayerPlan& l, size_t e, std::byte* slab) const;
  Result<bool> dense_checks_out();
  Result<bool> checks_out(size_t i);
  std::span<uint64_t> sums(size_t layer) { return std::span(plan_.sums).subspan(layer * n_expert_, n_expert_); }
  Result<> put(std::span<const std::byte> bytes, uint64_t offset) {
    FTH_RETURN_IF_ERROR(part_.write_at(bytes, offset));
    part_.start_sync(offset, bytes.size());  // the disk works while the next batch is made
    written_ += bytes.size();
    return {};
  }
  void progress(uint64_t done) const {
    if (o_.on_progress) o_.on_progress(done, plan_.head.file_bytes);
  }
  void note(const std::string& text) const {
    if (o_.on_note) o_.on_note(text);
  }
  bool stopped() const { return o_.stopped && o_.stopped(); }

  const PackOptions& o_;
  const Model& model_;
  PackPlan& plan_;
  const PackFile& part_;
  Journal& journal_;
  const size_t n_expert_;
  std::vector<std::byte> buffer_;
  uint64_t written_ = 0;
};

Result<> Packer::begin(std::string_view identity) {
  FTH_RETURN_IF_ERROR(journal_.restart(identity));
  FTH_RETURN_IF_ERROR(part_.resize(0));
  FTH_RETURN_IF_ERROR(part_.reserve(plan_.head.file_bytes));
  FTH_RETURN_IF_ERROR(part_.resize(plan_.head.file_bytes));
  FTH_RETURN_IF_ERROR(put(plan_.head.bytes, 0));
  FTH_RETURN_IF_ERROR(write_dense());
  FTH_RETURN_IF_ERROR(part_.sync());
  return journal_.append(kDense);
}

Result<size_t> Packer::resume(std::string_view identity) {
  const bool fresh = journal_.fresh();
  FTH_ASSIGN_OR_RETURN(const auto records, journal_.records(identity));
  const bool whole = part_.size() == plan_.head.file_bytes;
  if (!records || records->empty() || records->front() != kDense || !whole) {
    if (!fresh)
      note(!records ? "an unfinished pack of another input or other options is there: begins anew"
           : !whole ? "the file of the unfinished pack is missing or has another size: begins anew"
                    : "an unfinished pack has no finished layer: begins anew");
    FTH_RETURN_IF_ERROR(begin(identity));
    return 0;
  }
  FTH_ASSIGN_OR_RETURN(const bool dense, dense_checks_out());
  if (!dense) {
    note("the unfinished pack is damaged in front of its layers: begins anew");
    FTH_RETURN_IF_ERROR(begin(identity));
    return 0;
  }
  size_t n = 0;
  while (n < plan_.layers.size() && n + 1 < records->size() && parse_layer_record((*records)[n + 1], n, sums(n))) {
    FTH_ASSIGN_OR_RETURN(const bool good, checks_out(n));
    if (!good) {
      note(message("layer ", n, " of the unfinished pack is damaged: it and what follows are written again"));
      break;
    }
    progress(plan_.layers[n].at + n_expert_ * plan_.layers[n].slab.bytes);
    ++n;
  }
  FTH_RETURN_IF_ERROR(journal_.restart(identity, std::span(*records).first(n + 1)));
  note(message("continues an unfinished pack: ", n, " of ", plan_.layers.size(), " layers are done"));
  return n;
}

// A journal is believed only where the file agrees with it.
Result<bool> Packer::checks_out(size_t i) {
  const LayerPlan& l = plan_.layers[i];
  for (size_t e = 0; e < n_expert_; ++e) {
    if (stopped()) return interrupted(i);
    const auto found = slab_xxh3(part_, l.at + e * l.slab.bytes, l.parts, buffer_);
    if (!found || *found != sums(i)[e]) return false;
  }
  return true;
}

Result<bool> Packer::dense_checks_out() {
  for (size_t i = 0; i < plan_.dense.size(); ++i) {
    const TensorInfo& t = *plan_.dense[i];
    for (uint64_t at = 0; at < t.bytes; at += kBatchBytes) {
      if (stopped()) return interrupted(0);
      const std::span<std::byte> there = std::span(buffer_).first(std::min(kBatchBytes, t.bytes - at));
      if (!part_.read_at(there, plan_.head.offsets[i] + at) || std::memcmp(there.data(), t.data + at, there.size()) != 0) return false;
      model_.file.release_pages();
    }
  }
  return true;
}

Result<> Packer::write_dense() {
  for (size_t i = 0; i < plan_.dense.size(); ++i) {
    const TensorInfo& t = *plan_.dense[i];
    for (uint64_t at = 0; at < t.bytes; at += kBatchBytes) {
      if (stopped()) return interrupted(0);
      const uint64_t n = std::min(kBatchBytes, t.bytes - at);
      FTH_RETURN_IF_ERROR(put({t.data + at, n}, plan_.head.offsets[i] + at));
      model_.file.release_pages();
      progress(plan_.head.offsets[i] + at + n);
    }
  }
  return {};
}

Result<> Packer::expert(const LayerPlan& l, size_t e, std::byte* slab) const {
  const Layer& layer = *l.layer;
  const std::byte* const gate = layer.gate.data + e * layer.gate.stride;
  if (model_.config.packed != 0 && slab_xxh3(gate, l.parts) != layer.xxh3[e])
    return fail(Code::data_loss, message(o_.in.native(), ": expert ", e, " of layer ", &l - plan_.layers.data(),
                                         " is damaged; `inspect --verify` lists all"));
  if (l.gate_interleaved == layer.gate.interleaved) {
    std::memcpy(slab, gate, l.parts.gate);
  } else {
    FTH_RETURN_IF_ERROR(
        (l.gate_interleaved ? to_interleaved : from_interleaved)(layer.gate.dtype, layer.gate.rows, layer.gate.cols, gate, slab));
  }
  std::memcpy(slab + l.slab.up, layer.up.data + e * layer.up.stride, l.parts.up);
  const std::byte* const down = layer.down.data + e * layer.down.stride;
  if (l.down != layer.down_layout)
    return (l.down == DownLayout::neuron_major ? to_neuron_major : from_neuron_major)(layer.down.dtype, layer.down.rows, layer.down.cols,
                                                                                      down, slab + l.slab.down);
  std::memcpy(slab + l.slab.down, down, l.parts.down);
  return {};
}

Result<> Packer::write_layer(size_t i) {
  const LayerPlan& l = plan_.layers[i];
  const size_t batch = std::min(std::max<size_t>(1, kBatchBytes / l.slab.bytes), n_expert_);
  buffer_.assign(std::max(kBatchBytes, batch * l.slab.bytes), std::byte{0});  // what lies between matrices stays zero
  for (size_t first = 0; first < n_expert_; first += batch) {
    if (stopped()) return interrupted(i);
    const size_t n = std::min(batch, n_expert_ - first);
    for (size_t e = 0; e < n; ++e) {
      std::byte* const slab = buffer_.data() + e * l.slab.bytes;
      FTH_RETURN_IF_ERROR(expert(l, first + e, slab));
      sums(i)[first + e] = slab_xxh3(slab, l.parts);
    }
    model_.file.release_pages();
    const uint64_t at = l.at + first * l.slab.bytes;
    FTH_RETURN_IF_ERROR(put(std::span(buffer_).first(n * l.slab.bytes), at));
    progress(at + n * l.slab.bytes);
  }
  FTH_RETURN_IF_ERROR(part_.sync());
  return journal_.append(layer_record(i, sums(i)));
}

Result<> Packer::write(size_t finished) {
  const size_t n = plan_.layers.size(), last = o_.stop_after < 0 ? n : std::min(n, static_cast<size_t>(o_.stop_after));
  for (size_t i = finished; i < last; ++i) FTH_RETURN_IF_ERROR(write_layer(i));
  if (o_.stop_after >= 0) return interrupted(std::max(last, finished));
  const GgufHead head = make_head(model_, plan_);
  FTH_RETURN_IF_ERROR(put(head.bytes, 0));
  return part_.sync();
}

}  // namespace

Result<PackReport> pack_model(const PackOptions& o) try {
  FTH_ASSIGN_OR_RETURN(const Model model, load_model(o.in, o.overrides));
  const auto refused = [&](std::string_view why) { return fail(Code::invalid_argument, message(o.in.native(), ": ", why)); };
  if (!model.config.is_sparse()) return refused("has no experts to pack");
  FTH_RETURN_IF_ERROR(check_places(o, model));
  FTH_ASSIGN_OR_RETURN(PackPlan plan, make_plan(model, o));
  if (model.config.packed == kPackedFormat && std::all_of(plan.layers.begin(), plan.layers.end(), [](const LayerPlan& l) {
        return l.down == l.layer->down_layout && l.gate_interleaved == l.layer->gate.interleaved;
      }))
    return refused("is packed already");
  FTH_ASSIGN_OR_RETURN(const std::string identity, identity_of(model, plan));
  const fs::path part_path = with_suffix(o.out, ".part"), journal_path = with_suffix(o.out, ".part.state");
  FTH_RETURN_IF_ERROR(check_space(o, part_path, plan.head.file_bytes));

  FTH_ASSIGN_OR_RETURN(Journal journal, Journal::open(journal_path));
  FTH_ASSIGN_OR_RETURN(const PackFile part, PackFile::open(part_path, O_RDWR | O_CREAT));
  Packer packer(o, model, plan, part, journal);
  FTH_ASSIGN_OR_RETURN(const size_t kept, packer.resume(identity));
  FTH_RETURN_IF_ERROR(packer.write(kept));
  std::error_code error;
  fs::rename(part_path, o.out, error);
  if (error) return fail(Code::failed_precondition, message(o.out.native(), ": cannot be put in place: ", error.message()));
  FTH_RETURN_IF_ERROR(sync_folder(o.out.parent_path()));
  fs::remove(journal_path, error);

  PackReport report;
  report.n_layer = model.config.n_layer;
  report.n_expert = model.config.n_expert;
  report.layers_kept = static_cast<int64_t>(kept);
  report.in_bytes = model.file.file_bytes();
  report.out_bytes = plan.head.file_bytes;
  report.written_bytes = packer.written();
  for (const LayerPlan& l : plan.layers) {
    const uint64_t used = l.parts.gate + l.parts.up + l.parts.down;
    report.slab_bytes = std::max(report.slab_bytes, l.slab.bytes);
    report.pad_bytes += (l.slab.bytes - used) * static_cast<uint64_t>(report.n_expert);
    report.down.push_back(l.down);
    report.gate_interleaved.push_back(l.gate_interleaved);
  }
  return report;
} catch (const std::bad_alloc&) {
  return fail(Code::resource_exhausted, message(o.in.native(), ": out of memory for its directory and one batch of experts"));
}

Result<std::vector<DamagedSlab>> verify_packed(const Model& model, const std::function<void(uint64_t, uint64_t)>& on_progress,
                                               const std::function<bool()>& stopped) {
  const std::string_view name = model.file.name();
  if (!model.config.packed) return fail(Code::failed_precondition, message(name, ": is not packed and has no checksums"));
  if (model.file.parts().empty()) return fail(Code::failed_precondition, message(name, ": is not in a file"));
  std::vector<PackFile> files;
  for (const fs::path& path : model.file.parts()) {
    FTH_ASSIGN_OR_RETURN(PackFile file, PackFile::open(path, O_RDONLY));
    files.push_back(std::move(file));
  }
  uint64_t total = 0, done = 0;
  for (const Layer& l : model.layers) total += l.gate.stride * l.xxh3.size();
  std::vector<DamagedSlab> damaged;
  std::vector<std::byte> buffer(4 * kMiB);
  for (size_t i = 0; i < model.layers.size(); ++i) {
    const Layer& l = model.layers[i];
    const SlabParts parts{l.gate.expert_bytes(), l.up.expert_bytes(), l.down.expert_bytes()};
    for (size_t e = 0; e < l.xxh3.size(); ++e) {
      if (stopped && stopped())
        return fail(Code::cancelled, message("interrupted in layer ", i, "; ", damaged.size(), " damaged slabs so far"));
      auto found = slab_xxh3(files[l.gate.file], l.gate.offset + e * l.gate.stride, parts, buffer);
      if (!found) return tl::unexpected<Error>(std::move(found).error().context(message("layer ", i, ", expert ", e)));
      if (*found != l.xxh3[e]) damaged.push_back({static_cast<int64_t>(i), static_cast<int64_t>(e), l.xxh3[e], *found});
      done += l.gate.stride;
      if (on_progress) on_progress(done, total);
    }
  }
  return damaged;
}

}  // namespace fth
