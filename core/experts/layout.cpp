// Extents, widened to blocks; neighbours become one read.
#include "core/experts/layout.h"

#include <algorithm>
#include <string>

#include "core/base/bytes.h"

namespace fth {
namespace {

constexpr int64_t kMaxLayers = 1 << 16, kMaxExperts = 1 << 16, kMaxTotal = 1 << 22;
constexpr uint64_t kMaxOffset = uint64_t{1} << 62, kMaxPart = uint64_t{1} << 32;

}  // namespace

ExpertLayout lay_out(const ExpertSource::Layer& layer, int64_t expert) {
  ExpertLayout out;
  struct Piece {
    const ExpertSource::Part* part;
    uint64_t begin;
    uint64_t* place;
  };
  const auto piece = [expert](const ExpertSource::Part& p, uint64_t* place) {
    return Piece{&p, p.offset + static_cast<uint64_t>(expert) * p.stride, place};
  };
  std::array<Piece, 3> pieces{piece(layer.gate, &out.gate), piece(layer.up, &out.up), piece(layer.down, &out.down)};
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return a.part->file != b.part->file ? a.part->file < b.part->file : a.begin < b.begin; });
  for (const Piece& p : pieces) {
    const uint64_t end = p.begin + p.part->bytes;
    Extent* last = out.n_extents > 0 ? &out.extents[out.n_extents - 1] : nullptr;
    if (last != nullptr && last->file == p.part->file && p.begin / kBlock * kBlock <= last->block_end()) {
      last->end = std::max(last->end, end);
    } else {
      const uint64_t at = last == nullptr ? 0 : last->slot_at + (last->block_end() - last->block_begin());
      last = &out.extents[out.n_extents++];
      *last = {p.part->file, p.begin, end, at};
    }
    *p.place = last->slot_at + (p.begin - last->block_begin());
    out.bytes = last->slot_at + (last->block_end() - last->block_begin());
  }
  return out;
}

Result<SourceShape> check_source(const ExpertSource& source) {
  SourceShape shape;
  const auto bad = [](size_t layer, const std::string& what) {
    return fail(Code::invalid_argument, "expert source, layer " + std::to_string(layer) + ": " + what);
  };
  if (source.layers.size() > static_cast<size_t>(kMaxLayers))
    return fail(Code::invalid_argument,
                "expert source: " + std::to_string(source.layers.size()) + " layers, at most " + std::to_string(kMaxLayers));
  shape.file_end.resize(source.files.size());
  for (size_t l = 0; l < source.layers.size(); ++l) {
    const ExpertSource::Layer& layer = source.layers[l];
    if (layer.n_expert < 0 || layer.n_expert > kMaxExperts) return bad(l, std::to_string(layer.n_expert) + " experts");
    if (layer.n_expert == 0) continue;
    if (source.top_k < 1 || source.top_k > layer.n_expert)
      return bad(l, "top_k is " + std::to_string(source.top_k) + " of " + std::to_string(layer.n_expert) + " experts");
    if (!layer.xxh3.empty() && layer.xxh3.size() != static_cast<size_t>(layer.n_expert))
      return bad(l, std::to_string(layer.xxh3.size()) + " checksums for " + std::to_string(layer.n_expert) + " experts");
    for (const ExpertSource::Part* p : {&layer.gate, &layer.up, &layer.down}) {
      if (p->file >= source.files.size()) return bad(l, "file " + std::to_string(p->file) + " of " + std::to_string(source.files.size()));
      const auto last = checked_mul(p->stride, static_cast<uint64_t>(layer.n_expert - 1));
      const auto begin = last ? checked_add(p->offset, *last) : std::nullopt;
      if (p->bytes == 0 || p->bytes > kMaxPart || p->offset > kMaxOffset || !begin || *begin > kMaxOffset)
        return bad(
            l, "extents of " + std::to_string(p->bytes) + " bytes at " + std::to_string(p->offset) + " every " + std::to_string(p->stride));
      shape.file_end[p->file] = std::max(shape.file_end[p->file], *begin + p->bytes);
    }
    ++shape.n_sparse;
    shape.n_total += layer.n_expert;
    shape.max_expert = std::max(shape.max_expert, layer.n_expert);
    if (shape.n_total > kMaxTotal) return bad(l, "more than " + std::to_string(kMaxTotal) + " experts in all");
    for (int64_t e = 0; e < layer.n_expert; ++e) shape.slot_bytes = std::max(shape.slot_bytes, lay_out(layer, e).bytes);
  }
  if (static_cast<int64_t>(source.layers.size()) * shape.max_expert > kMaxTotal)
    return fail(Code::invalid_argument, "expert source: " + std::to_string(source.layers.size()) + " layers of up to " +
                                            std::to_string(shape.max_expert) + " experts");
  if (shape.n_sparse == 0) return fail(Code::invalid_argument, "expert source: no layer has experts");
  return shape;
}

}  // namespace fth
