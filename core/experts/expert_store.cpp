// Slots: who is in, who goes, who waits for whom. Reads are loader.cpp's, worth is usage.cpp's.
#include "core/experts/expert_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/experts/checksum.h"
#include "core/experts/store_impl.h"
#include "core/experts/warm_set.h"

namespace fth {
namespace {

constexpr uint32_t kDefaultDepth = 16, kMaxDepth = 256;
constexpr uint64_t kDefaultRequest = kMiB, kMaxRequest = kGiB;

}  // namespace

ExpertStore::Impl::Impl(ExpertSource s, const SourceShape& shape, const ExpertStoreOptions& options, Policy p)
    : source(std::move(s)),
      slot_bytes(shape.slot_bytes),
      max_expert(shape.max_expert),
      n_sparse(shape.n_sparse),
      verify(options.verify),
      policy(p),
      usage(p, static_cast<int64_t>(source.layers.size()), max_expert, n_sparse),
      slot_of(source.layers.size() * static_cast<size_t>(max_expert), kNone) {}

Result<uint64_t> ExpertStore::slot_bytes(const ExpertSource& source) {
  FTH_ASSIGN_OR_RETURN(const SourceShape shape, check_source(source));
  return shape.slot_bytes;
}

Result<std::unique_ptr<ExpertStore>> ExpertStore::open(ExpertSource source, const ExpertStoreOptions& options) {
  return open(std::move(source), options, [&options](const FileSet& files, std::span<std::byte> memory, uint32_t depth) {
    return open_reader(options.reader, files, memory, depth);
  });
}

Result<std::unique_ptr<ExpertStore>> ExpertStore::open(ExpertSource source, const ExpertStoreOptions& options,
                                                       const MakeReader& make_reader) {
  FTH_ASSIGN_OR_RETURN(const SourceShape shape, check_source(source));
  FTH_ASSIGN_OR_RETURN(const Policy policy, policy_from_name(options.policy));
  const uint32_t depth = options.queue_depth == 0 ? kDefaultDepth : options.queue_depth;
  const uint64_t request = options.request_bytes == 0 ? kDefaultRequest : options.request_bytes;
  if (depth > kMaxDepth)
    return fail(Code::invalid_argument, "expert store: queue depth " + std::to_string(depth) + ", at most " + std::to_string(kMaxDepth));
  if (request % kBlock != 0 || request > kMaxRequest)
    return fail(Code::invalid_argument, "expert store: reads of " + std::to_string(request) + " bytes; a multiple of 4096 up to 1 GiB");
  if (options.reader != "auto" && options.reader != "uring" && options.reader != "pread")
    return fail(Code::invalid_argument, "expert reader \"" + options.reader + "\": auto, uring and pread are known");

  const uint64_t top_k = static_cast<uint64_t>(source.top_k);
  const uint64_t fit = options.bytes / shape.slot_bytes;
  if (fit < top_k)
    return fail(Code::resource_exhausted, "expert store: " + format_bytes(options.bytes) + " is " + std::to_string(fit) + " slots of " +
                                              format_bytes(shape.slot_bytes) + ", and a token uses " + std::to_string(top_k) +
                                              " experts per layer; give experts at least " + format_bytes(top_k * shape.slot_bytes));
  const uint64_t n_slots = std::min(fit, static_cast<uint64_t>(shape.n_total));

  auto impl = std::make_unique<Impl>(std::move(source), shape, options, policy);
  FTH_ASSIGN_OR_RETURN(impl->files, FileSet::open(impl->source.files, options.direct));
  for (uint32_t f = 0; f < shape.file_end.size(); ++f)
    if (shape.file_end[f] > impl->files.bytes(f))
      return fail(Code::data_loss, impl->files.path(f).string() + " has " + std::to_string(impl->files.bytes(f)) +
                                       " bytes, and experts end at " + std::to_string(shape.file_end[f]));
  FTH_ASSIGN_OR_RETURN(impl->memory, SlotMemory::allocate(n_slots * shape.slot_bytes, options.huge_pages));
  FTH_ASSIGN_OR_RETURN(auto reader, make_reader(impl->files, impl->memory.bytes(), depth));
  impl->loader = std::make_unique<Loader>(impl->files, std::move(reader), static_cast<uint32_t>(n_slots), depth, request);
  impl->slots.resize(n_slots);
  if (options.tier && options.tier->n_slots() > 0) {
    impl->tier = options.tier;
    impl->tier_index.emplace(impl->tier->n_slots(), impl->slot_of.size());
  }
  impl->n_unpinned = n_slots;
  const std::string buffered = impl->files.buffered();
  impl->description = impl->loader->reader_name() + (buffered.empty() ? ", O_DIRECT" : ", buffered (" + buffered + ")") + ", queue " +
                      std::to_string(depth) + ", " + std::to_string(n_slots) + " slots of " + format_bytes(shape.slot_bytes) + ", policy " +
                      std::string(kPolicyNames[static_cast<size_t>(policy)]);
  if (impl->tier) impl->description += ", " + std::to_string(impl->tier->n_slots()) + " more in " + impl->tier->name();
  return std::unique_ptr<ExpertStore>(new ExpertStore(std::move(impl)));
}

ExpertStore::ExpertStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ExpertStore::~ExpertStore() = default;
std::span<std::byte> ExpertStore::memory() const { return impl_->memory.bytes(); }
int64_t ExpertStore::n_slots() const { return static_cast<int64_t>(impl_->slots.size()); }
int64_t ExpertStore::n_pinned() const { return static_cast<int64_t>(impl_->n_held); }
std::string ExpertStore::description() const { return impl_->description; }
std::string ExpertStore::tier_error() const { return impl_->tier_error; }

ExpertStats ExpertStore::stats() const {
  ExpertStats s = impl_->counts;
  impl_->loader->add_to(&s);
  return s;
}

void ExpertStore::set_recorder(Recorder* recorder) { impl_->recorder = recorder; }

ExpertPlace ExpertStore::Impl::place(uint32_t slot) const {
  const ExpertLayout at = layout(slots[slot]);
  const uint64_t begin = uint64_t{slot} * slot_bytes;
  return {slots[slot].expert, begin + at.gate, begin + at.up, begin + at.down};
}

std::string ExpertStore::Impl::named(const Slot& slot) const {
  return "layer " + std::to_string(slot.layer) + ", expert " + std::to_string(slot.expert);
}

void ExpertStore::Impl::pin(uint32_t slot) {
  if (slots[slot].pins++ == 0) --n_unpinned;
}

void ExpertStore::Impl::unpin(uint32_t slot) {
  Slot& s = slots[slot];
  FTH_CHECK(s.pins > 0, "a slot is unpinned more often than pinned");
  if (--s.pins > 0) return;
  ++n_unpinned;
  if (s.state == State::failed || (s.state == State::loading && loader->cancel(slot))) empty(slot);
}

void ExpertStore::Impl::empty(uint32_t slot) {
  Slot& s = slots[slot];
  FTH_CHECK(s.pins == 0, "a pinned slot is emptied");
  if (s.layer >= 0) slot_of[key(s)] = kNone;
  if (s.guessed) guessed.erase(std::find(guessed.begin(), guessed.end(), slot));
  s = {};
}

uint32_t ExpertStore::Impl::victim(For what) const {
  uint32_t best = kNone, best_guess = kNone;
  double least = 0, least_guess = 0;
  for (uint32_t i = 0; i < slots.size(); ++i) {
    const Slot& s = slots[i];
    if (s.state == State::empty) return i;
    if (s.state != State::resident || s.pins > 0) continue;
    const double worth = usage.worth(key(s));
    if (s.guessed) {  // about to be asked for, perhaps: goes when nothing else can
      if (best_guess == kNone || worth < least_guess) best_guess = i, least_guess = worth;
    } else if (!(what == For::guess && usage.within_cycle(key(s))) && (best == kNone || worth < least)) {
      best = i, least = worth;
    }
  }
  return best != kNone || what != For::request ? best : best_guess;
}

void ExpertStore::Impl::read(uint32_t slot, Urgency urgency) {
  const ExpertLayout at = layout(slots[slot]);
  const uint64_t gate_end = at.gate + source.layers[static_cast<size_t>(slots[slot].layer)].gate.bytes;
  loader->load(slot, std::span(at.extents).first(at.n_extents), {at.gate, gate_end}, base(slot), urgency);
}

void ExpertStore::Impl::keep_in_tier(uint32_t slot) {
  const size_t k = key(slots[slot]);
  if (!tier || tier_index->find(k) != TierIndex::kNone) return;
  // What is in RAM, too, goes first.
  const auto worth_of = [this](size_t other) {
    return slot_of[other] != kNone ? -std::numeric_limits<double>::infinity() : usage.worth(other);
  };
  const uint32_t to = tier_index->place_for(usage.worth(k), worth_of);
  if (to == TierIndex::kNone) return;
  if (auto done = tier->write(to, bytes_of(slot)); !done) {
    tier_error = tier->name() + ": " + done.error().message;
    tier = nullptr;
    return;
  }
  tier_index->put(to, k);
}

bool ExpertStore::Impl::fetch_from_tier(uint32_t slot, size_t key_of) {
  if (!tier || tier_index->find(key_of) == TierIndex::kNone) return false;
  if (auto done = tier->read(tier_index->find(key_of), bytes_of(slot)); !done) {
    tier_error = tier->name() + ": " + done.error().message;
    tier = nullptr;
    return false;
  }
  return intact(slot);
}

void ExpertStore::Impl::begin_load(uint32_t slot, int64_t layer, int32_t expert, Urgency urgency) {
  Slot& s = slots[slot];
  if (s.state == State::resident) keep_in_tier(slot);
  if (s.state != State::empty) empty(slot);
  s.layer = static_cast<int32_t>(layer);
  s.expert = expert;
  s.state = State::loading;
  slot_of[key(s)] = slot;
  if (urgency != Urgency::guess && fetch_from_tier(slot, key(s))) {
    s.state = State::resident;
    ++counts.tier;
    return;
  }
  read(slot, urgency);
}

bool ExpertStore::Impl::intact(uint32_t slot) const {
  const Slot& s = slots[slot];
  const ExpertSource::Layer& layer = source.layers[static_cast<size_t>(s.layer)];
  if (!verify || layer.xxh3.empty()) return true;
  const ExpertLayout at = layout(s);
  const std::byte* b = base(slot);
  return xxh3_64({{b + at.gate, layer.gate.bytes}, {b + at.up, layer.up.bytes}, {b + at.down, layer.down.bytes}}) ==
         layer.xxh3[static_cast<size_t>(s.expert)];
}

void ExpertStore::Impl::land(const Loader::Landed& l) {
  Slot& s = slots[l.slot];
  const ExpertLayout at = layout(s);
  std::optional<Error> error = l.error;
  for (uint32_t i = 0; !error && i < at.n_extents; ++i) {
    // What was read from a file that somebody writes to may be of before or after; one fstat per read is what knowing costs.
    const uint32_t f = at.extents[i].file;
    if (files.written(f)) error = Error{Code::data_loss, files.path(f).string() + " " + files.changed(f) + " while in use"};
  }
  if (!error && !intact(l.slot)) {
    if (!std::exchange(s.reread, true)) {
      ++counts.retries;
      read(l.slot, s.pins > 0 ? Urgency::demand : Urgency::guess);
      return;
    }
    error = Error{Code::data_loss, files.path(at.extents[0].file).string() + ": the checksum of the slab at byte " +
                                       std::to_string(at.extents[0].begin) + " is wrong, read twice; get the file again"};
  }
  s.reread = false;
  if (!error) {
    s.state = State::resident;
  } else if (s.pins == 0) {
    empty(l.slot);
  } else {
    s.state = State::failed;
    s.error = std::move(*error).context("expert store: " + named(s));
  }
}

void ExpertStore::Impl::note(const Loader::Landed& l) const {
  Event event;
  event.kind = EventKind::read;
  event.name = slots[l.slot].guessed ? "read ahead" : "read";
  event.begin_ns = Recorder::ns(l.begun);
  event.end_ns = Recorder::ns(l.ended);
  event.bytes = l.bytes;
  event.layer = slots[l.slot].layer;
  event.id = slots[l.slot].expert;
  recorder->storage().add(event);
}

void ExpertStore::Impl::collect(bool wait) {
  const auto begin = std::chrono::steady_clock::now();
  landed.clear();
  loader->collect(wait, &landed);
  for (const Loader::Landed& l : landed) {
    if (recorder != nullptr) note(l);
    land(l);
  }
  loader->pump();
  if (!wait) return;
  const auto end = std::chrono::steady_clock::now();
  counts.stall_s += std::chrono::duration<double>(end - begin).count();
  if (recorder == nullptr) return;
  Event event;
  event.kind = EventKind::stall;
  event.name = "wait for storage";
  event.begin_ns = Recorder::ns(begin);
  event.end_ns = Recorder::ns(end);
  recorder->engine().add(event);
}

void ExpertStore::Impl::settle_guesses(int64_t layer, std::span<const int32_t> experts) {
  for (size_t i = guessed.size(); i-- > 0;) {
    const uint32_t slot = guessed[i];
    Slot& s = slots[slot];
    if (s.layer != layer) continue;
    s.guessed = false;
    guessed.erase(guessed.begin() + static_cast<std::ptrdiff_t>(i));
    if (std::find(experts.begin(), experts.end(), s.expert) != experts.end()) continue;
    ++counts.wrong_guesses;
    if (s.state == State::loading && s.pins == 0 && loader->cancel(slot)) empty(slot);
  }
}

bool ExpertStore::Impl::drop_guess() {
  const auto it = std::find_if(guessed.begin(), guessed.end(), [this](uint32_t slot) {
    return slots[slot].state == State::loading && slots[slot].pins == 0 && loader->cancel(slot);
  });
  if (it == guessed.end()) return false;
  ++counts.wrong_guesses;
  empty(*it);
  return true;
}

Result<> ExpertStore::Impl::check_request(int64_t layer, std::span<const int32_t> experts) const {
  if (layer < 0 || layer >= static_cast<int64_t>(source.layers.size()))
    return fail(Code::invalid_argument, "expert store: layer " + std::to_string(layer) + " of " + std::to_string(source.layers.size()));
  const int64_t n = source.layers[static_cast<size_t>(layer)].n_expert;
  uint64_t unpinned_needed = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    if (experts[i] < 0 || experts[i] >= n)
      return fail(Code::invalid_argument,
                  "expert store: layer " + std::to_string(layer) + ", expert " + std::to_string(experts[i]) + " of " + std::to_string(n));
    if (std::find(experts.begin(), experts.begin() + static_cast<std::ptrdiff_t>(i), experts[i]) !=
        experts.begin() + static_cast<std::ptrdiff_t>(i))
      return fail(Code::invalid_argument,
                  "expert store: layer " + std::to_string(layer) + ", expert " + std::to_string(experts[i]) + " twice");
    const uint32_t slot = slot_of[key(layer, experts[i])];
    unpinned_needed += slot == kNone || slots[slot].pins == 0 ? 1 : 0;
  }
  if (unpinned_needed > n_unpinned)
    return fail(Code::resource_exhausted, "expert store: " + std::to_string(unpinned_needed) + " experts of layer " +
                                              std::to_string(layer) + " need slots, " + std::to_string(n_unpinned) + " of " +
                                              std::to_string(slots.size()) + " are not in use");
  return {};
}

bool ExpertStore::is_resident(int64_t layer, int32_t expert) const {
  if (layer < 0 || layer >= static_cast<int64_t>(impl_->source.layers.size()) || expert < 0 || expert >= impl_->max_expert) return false;
  const uint32_t slot = impl_->slot_of[impl_->key(layer, expert)];
  return slot != Impl::kNone && impl_->slots[slot].state == Impl::State::resident;
}

Result<ExpertStore::Lease> ExpertStore::request(int64_t layer, std::span<const int32_t> experts) {
  Impl& m = *impl_;
  m.collect(false);
  FTH_RETURN_IF_ERROR(m.check_request(layer, experts));
  m.settle_guesses(layer, experts);
  m.usage.begin(layer);
  Lease lease;
  lease.store_ = this;
  lease.id_ = m.new_lease();
  Impl::LeaseRecord& record = m.leases[lease.id_];
  record.entries.resize(experts.size());
  // Those that are here are pinned first, so that none of them goes for another.
  for (size_t i = 0; i < experts.size(); ++i) {
    m.usage.used(m.key(layer, experts[i]));
    const uint32_t slot = m.slot_of[m.key(layer, experts[i])];
    ++m.counts.requested;
    if (slot == Impl::kNone) {
      ++m.counts.misses;
      continue;
    }
    ++(m.slots[slot].state == Impl::State::loading ? m.counts.late : m.counts.hits);
    m.pin(slot);
    m.loader->raise(slot, Urgency::exact);
    record.entries[i].slot = slot;
  }
  for (size_t i = 0; i < experts.size(); ++i) {
    if (record.entries[i].slot != Impl::kNone) continue;
    uint32_t slot = m.victim(Impl::For::request);
    while (slot == Impl::kNone) {  // slots enough are unpinned, so the rest is being read, for guesses or for leases that ended
      if (!m.drop_guess()) m.collect(true);
      slot = m.victim(Impl::For::request);
    }
    m.begin_load(slot, layer, experts[i], Urgency::exact);
    m.pin(slot);
    record.entries[i].slot = slot;
    if (m.slots[slot].state == Impl::State::resident) --m.counts.misses, ++m.counts.hits;
  }
  m.loader->pump();
  return lease;
}

uint32_t ExpertStore::Impl::new_lease() {
  if (free_leases.empty()) {
    leases.emplace_back();
    return static_cast<uint32_t>(leases.size() - 1);
  }
  const uint32_t id = free_leases.back();
  free_leases.pop_back();
  return id;
}

void ExpertStore::Impl::end_lease(uint32_t id) {
  for (const Entry& e : leases[id].entries)
    if (e.slot != kNone) unpin(e.slot);
  leases[id].entries.clear();
  free_leases.push_back(id);
}

Result<std::span<const ExpertPlace>> ExpertStore::Impl::next(uint32_t id, bool early) {
  LeaseRecord& r = leases[id];
  r.places.clear();
  r.early.clear();
  for (bool wait = false;; wait = true) {
    collect(wait);
    bool loading = false;
    const Error* error = nullptr;
    for (Entry& e : r.entries) {
      const Slot& s = slots[e.slot];
      if (e.handed) continue;
      if (s.state == State::resident) {
        r.places.push_back(place(e.slot));
        e.handed = true;
      } else if (s.state == State::failed) {
        error = &*s.error;
      } else {
        loading = true;
        loader->raise(e.slot, Urgency::demand);
      }
    }
    for (Entry& e : r.entries) {
      if (!early || verify || !loading || !r.places.empty() || e.handed || e.gate_handed || !loader->front_is_there(e.slot)) continue;
      e.gate_handed = true;
      ++counts.early;
      r.early.push_back(place(e.slot));
      r.early.back().whole = false;
    }
    if (!r.places.empty()) return std::span<const ExpertPlace>(r.places);
    if (!r.early.empty()) return std::span<const ExpertPlace>(r.early);
    if (!loading && error != nullptr) return tl::unexpected<Error>(*error);
    if (!loading) return std::span<const ExpertPlace>();
  }
}

ExpertStore::Lease::Lease(Lease&& other) noexcept : store_(std::exchange(other.store_, nullptr)), id_(other.id_) {}

ExpertStore::Lease& ExpertStore::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    release();
    store_ = std::exchange(other.store_, nullptr);
    id_ = other.id_;
  }
  return *this;
}

ExpertStore::Lease::~Lease() { release(); }

void ExpertStore::Lease::release() {
  if (store_ != nullptr) std::exchange(store_, nullptr)->impl_->end_lease(id_);
}

Result<std::span<const ExpertPlace>> ExpertStore::Lease::next(bool early) {
  if (store_ == nullptr) return std::span<const ExpertPlace>();
  return store_->impl_->next(id_, early);
}

void ExpertStore::guess(int64_t layer, std::span<const int32_t> experts, bool certain) {
  Impl& m = *impl_;
  m.collect(false);
  if (layer < 0 || layer >= static_cast<int64_t>(m.source.layers.size())) return;
  // Leases must find room: guesses hold at most a quarter of the slots, and none where two leases fill them all.
  const size_t limit = m.slots.size() >= 2 * static_cast<size_t>(m.source.top_k) + 1 ? std::max<size_t>(m.slots.size() / 4, 1) : 0;
  for (const int32_t e : experts) {
    if (e < 0 || e >= m.source.layers[static_cast<size_t>(layer)].n_expert || m.slot_of[m.key(layer, e)] != Impl::kNone) continue;
    if (m.tier && m.tier_index->find(m.key(layer, e)) != TierIndex::kNone) continue;  // copied fast enough when it is asked for
    if (m.guessed.size() >= limit || m.loader->guess_bytes() + m.slot_bytes > limit * m.slot_bytes) break;
    const uint32_t slot = m.victim(certain ? Impl::For::certain_guess : Impl::For::guess);
    if (slot == Impl::kNone) break;
    m.begin_load(slot, layer, e, Urgency::guess);
    m.slots[slot].guessed = true;
    m.guessed.push_back(slot);
    ++m.counts.guesses;
  }
  m.loader->pump();
}

void ExpertStore::poll() { impl_->collect(false); }

Result<> ExpertStore::pin(int64_t layer, std::span<const int32_t> experts) {
  Impl& m = *impl_;
  FTH_RETURN_IF_ERROR(m.check_request(layer, experts));
  uint64_t held = m.n_held;
  for (const int32_t e : experts) {
    const uint32_t slot = m.slot_of[m.key(layer, e)];
    held += slot == Impl::kNone || !m.slots[slot].held ? 1 : 0;
  }
  if (held + static_cast<uint64_t>(m.source.top_k) > m.slots.size())
    return fail(Code::resource_exhausted, "expert store: " + std::to_string(held) + " of " + std::to_string(m.slots.size()) +
                                              " slots would be pinned, and " + std::to_string(m.source.top_k) + " (top_k) have to be left");
  FTH_ASSIGN_OR_RETURN(Lease lease, request(layer, experts));
  while (true) {
    FTH_ASSIGN_OR_RETURN(const auto places, lease.next());
    if (places.empty()) break;
  }
  for (const Impl::Entry& e : m.leases[lease.id_].entries) {
    if (std::exchange(m.slots[e.slot].held, true)) continue;
    m.pin(e.slot);
    ++m.n_held;
  }
  return {};
}

void ExpertStore::unpin(int64_t layer, std::span<const int32_t> experts) {
  Impl& m = *impl_;
  if (layer < 0 || layer >= static_cast<int64_t>(m.source.layers.size())) return;
  for (const int32_t e : experts) {
    if (e < 0 || e >= m.source.layers[static_cast<size_t>(layer)].n_expert) continue;
    const uint32_t slot = m.slot_of[m.key(layer, e)];
    if (slot == Impl::kNone || !std::exchange(m.slots[slot].held, false)) continue;
    m.unpin(slot);
    --m.n_held;
  }
}

std::vector<ExpertStore::Used> ExpertStore::most_used(int64_t n) const {
  const Impl& m = *impl_;
  std::vector<size_t> keys;
  for (size_t k = 0; k < m.usage.keys(); ++k)
    if (m.usage.seen(k)) keys.push_back(k);
  std::stable_sort(keys.begin(), keys.end(), [&m](size_t a, size_t b) { return m.usage.weight(a) > m.usage.weight(b); });
  keys.resize(std::min(keys.size(), static_cast<size_t>(std::max<int64_t>(n, 0))));
  std::vector<Used> out;
  for (const size_t k : keys)
    out.push_back({static_cast<int64_t>(k) / m.max_expert, static_cast<int32_t>(static_cast<int64_t>(k) % m.max_expert)});
  return out;
}

Result<> ExpertStore::save_warm(const std::filesystem::path& path) const {
  const Impl& m = *impl_;
  WarmSet set{m.source.fingerprint, static_cast<int64_t>(m.source.layers.size()), m.max_expert, {}};
  for (size_t k = 0; k < m.usage.keys(); ++k)
    if (const double w = m.usage.weight(k); m.usage.seen(k)) set.uses.push_back({k, w});
  return write_warm_set(path, std::move(set));
}

Result<int64_t> ExpertStore::load_warm(const std::filesystem::path& path) {
  Impl& m = *impl_;
  FTH_ASSIGN_OR_RETURN(const WarmSet set,
                       read_warm_set(path, m.source.fingerprint, static_cast<int64_t>(m.source.layers.size()), m.max_expert));
  std::vector<uint32_t> loading;
  for (const WarmSet::Use& u : set.uses) {
    const int64_t layer = static_cast<int64_t>(u.key) / m.max_expert, expert = static_cast<int64_t>(u.key) % m.max_expert;
    if (expert >= m.source.layers[static_cast<size_t>(layer)].n_expert) continue;
    m.usage.set_weight(u.key, u.weight);
    if (m.slot_of[u.key] != Impl::kNone) continue;
    const auto free = std::find_if(m.slots.begin(), m.slots.end(), [](const Impl::Slot& s) { return s.state == Impl::State::empty; });
    if (free == m.slots.end()) continue;
    const uint32_t slot = static_cast<uint32_t>(free - m.slots.begin());
    m.begin_load(slot, layer, static_cast<int32_t>(expert), Urgency::exact);
    m.pin(slot);
    loading.push_back(slot);
  }
  Result<int64_t> result = static_cast<int64_t>(loading.size());
  for (const uint32_t slot : loading) {
    while (m.slots[slot].state == Impl::State::loading) m.collect(true);
    if (m.slots[slot].state == Impl::State::failed && result) result = tl::unexpected<Error>(*m.slots[slot].error);
    m.unpin(slot);
  }
  return result;
}

}  // namespace fth
