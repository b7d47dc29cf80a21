// Orders in memory: down matrices of plain files neuron-major, gates and dense matrices interleaved. What is converted is given back to the mapping at once, so
// that the process is never larger than it would be without by more than a few experts.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"
#include "core/model/interleaved.h"
#include "core/model/neuron_major.h"

namespace fth {
namespace {

using Clock = std::chrono::steady_clock;

std::string seconds_since(Clock::time_point begin) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f s", std::chrono::duration<double>(Clock::now() - begin).count());
  return text;
}

// Panels of one matrix that a thread converts at once.
struct Piece {
  const std::byte* from;
  std::byte* to;  // may be `from`
  int64_t rows;
};
constexpr uint64_t kPieceBytes = 256 * kKiB, kAlignment = 64;

}  // namespace

bool Engine::Impl::wants_reordered() {
  const Config& c = model->config;
  if (!c.is_sparse() || c.packed) return false;
  if (options.repack == Repack::off) {
    repack_note = "left as the file has them: asked for";
    return false;
  }
  for (const Layer& l : model->layers) {
    if (l.down_layout == DownLayout::row_major) {
      if (const auto possible = check_neuron_major(l.down.dtype, l.down.rows, l.down.cols); !possible) {
        repack_note = possible.error().message;
        return false;
      }
    } else {
      repack_note = "the file has a row for each neuron already";
      return false;
    }
  }
  for (Layer& l : model->layers) l.down_layout = DownLayout::neuron_major;
  return true;
}

void Engine::Impl::keep_order(const std::string& why) {
  repack_note = why;
  for (Layer& l : model->layers) l.down_layout = DownLayout::row_major;
  estimates.clear();
}

void Engine::Impl::undo_reorder(const std::string& why) {
  for (const auto& [weight, before] : as_rows) *weight = before;
  as_rows.clear();
  for (size_t i = 0; i < as_in_file.size(); ++i) model->layers[i].down = as_in_file[i];
  if (!as_in_file.empty()) {
    keep_order(why);
  } else {
    repack_note = why;
    estimates.clear();
  }
  as_in_file.clear();
  reordered.clear();
}

Result<> Engine::Impl::reorder() {
  const bool off = options.repack == Repack::off;
  FTH_RETURN_IF_ERROR(reorder_down());
  return off ? Result<>() : interleave();
}

Result<> Engine::Impl::reorder_down() {
  const Config& c = model->config;
  if (!c.is_sparse() || c.packed || streamed() || !repack_note.empty()) return {};
  as_in_file.clear();
  const auto begin = Clock::now();
  for (int64_t i = 0; i < c.n_layer; ++i) {
    Weight& down = model->layers[static_cast<size_t>(i)].down;
    FTH_ASSIGN_OR_RETURN(HostBlock block, HostBlock::allocate(down.bytes, "neuron-major down matrices"));
    struct Work {
      const Weight& from;
      std::byte* to;
      std::atomic<bool> failed;  // the type and sizes were checked: cannot be
    } work{down, block.data(), false};
    registry->pool().parallel_for(
        static_cast<uint32_t>(c.n_expert),
        [](void* arg, uint32_t expert) {
          Work& w = *static_cast<Work*>(arg);
          const std::byte* const matrix = w.from.data + expert * w.from.stride;
          const uint64_t bytes = w.from.expert_bytes();
          if (!to_neuron_major(w.from.dtype, w.from.rows, w.from.cols, matrix, w.to + expert * bytes)) w.failed = true;
          release_mapped(matrix, bytes);
        },
        &work);
    if (work.failed) return fail(Code::internal, down.name + ": cannot be put into neuron-major order");
    release_mapped(down.data, down.span_bytes());  // pages that two experts share, or that reading ahead brought back
    as_in_file.push_back(down);
    down.stride = down.expert_bytes();
    down.data = block.data();
    reordered.push_back(std::move(block));
    if (options.on_load) options.on_load(static_cast<uint64_t>(i + 1) * down.bytes, static_cast<uint64_t>(c.n_layer) * down.bytes);
  }
  repack_note = "down matrices of " + std::to_string(c.n_layer) + " layers in neuron-major order, " + seconds_since(begin);
  return {};
}

std::optional<size_t> Engine::Impl::refuses_interleaved_gates() {
  for (size_t b = 0; b < std::size(kBuckets); ++b) {
    if (experts_on[b] == 0) continue;
    for (int64_t i = 0; i < model->config.n_layer; ++i) {
      const Weight& gate = model->layers[static_cast<size_t>(i)].gate;
      if (gate.interleaved || !check_interleaved(gate.dtype, gate.rows, gate.cols)) continue;
      Segment segment = build(SegmentKind::experts, i, kBuckets[b], Variant::plain);
      for (fth_op& op : segment.ops)
        if (op.kind == FTH_OP_EXPERTS) op.attr[3] = 1;
      if (!device(experts_on[b]).estimate(segment.view())) return experts_on[b];
    }
  }
  return {};
}

Result<> Engine::Impl::interleave() {
  const Config& c = model->config;
  const auto begin = Clock::now();
  // Another device that experts of large batches go to may take gates only as the file has them.
  const std::optional<size_t> gates_stay_for = refuses_interleaved_gates();
  std::vector<Weight*> wanted;
  const auto want = [&](Weight& w) {
    if (w && !w.interleaved && check_interleaved(w.dtype, w.rows, w.cols)) wanted.push_back(&w);
  };
  for (int64_t i = 0; i < c.n_layer; ++i) {
    Layer& l = model->layers[static_cast<size_t>(i)];
    if (device_for(SegmentKind::attention, i) == 0)
      for (Weight* w : {&l.q, &l.k, &l.v, &l.attn_output}) want(*w);
    if (!c.is_sparse() && device_for(SegmentKind::attention, i) == 0)
      for (Weight* w : {&l.gate, &l.up, &l.down}) want(*w);
    if (c.is_sparse() && !streamed() && !gates_stay_for && device_for(SegmentKind::experts, i) == 0) want(l.gate);
  }
  // A screened head reads rows one by one. So does the embedding, whose rows stay in the mapping where it is the same matrix, but streamed models have it once.
  const bool once = streamed() && model->output.data == model->token_embd.data;
  if (!once && screen.plane.bytes == 0 && device_for(SegmentKind::head, -1) == 0) want(model->output);
  if (wanted.empty()) return {};

  uint64_t total = 0, done = 0;
  for (const Weight* w : wanted) total += align_up(w->bytes, kAlignment);
  HostBlock block;
  if (!streamed()) {
    FTH_ASSIGN_OR_RETURN(block, HostBlock::allocate(total, "interleaved weights"));
  }
  std::vector<Piece> pieces;
  for (Weight* w : wanted) {
    const uint64_t matrix = w->expert_bytes(), row = row_bytes(w->dtype, w->cols);
    const int64_t rows = std::max<int64_t>(1, static_cast<int64_t>(kPieceBytes / row) / kInterleavedRows) * kInterleavedRows;
    std::byte* const to = streamed() ? place(*w) : block.data() + done;
    pieces.clear();
    for (int64_t e = 0; e < w->experts; ++e)
      for (int64_t r = 0; r < w->rows; r += rows) {
        const uint64_t at = static_cast<uint64_t>(r) * row, expert = static_cast<uint64_t>(e);
        std::byte* const dst = to + expert * matrix + at;
        pieces.push_back({streamed() ? dst : w->data + expert * w->stride + at, dst, std::min(rows, w->rows - r)});
      }
    struct Work {
      const Weight& weight;
      const std::vector<Piece>& pieces;
      uint64_t row;
      std::atomic<bool> failed;  // the type and sizes were checked: cannot be
    } work{*w, pieces, row, false};
    registry->pool().parallel_for(
        static_cast<uint32_t>(pieces.size()),
        [](void* arg, uint32_t i) {
          Work& x = *static_cast<Work*>(arg);
          const Piece& p = x.pieces[i];
          const uint64_t bytes = static_cast<uint64_t>(p.rows) * x.row;
          std::vector<std::byte> copy;
          if (p.from == p.to) copy.assign(p.from, p.from + bytes);
          if (!to_interleaved(x.weight.dtype, p.rows, x.weight.cols, copy.empty() ? p.from : copy.data(), p.to)) x.failed = true;
          if (copy.empty()) release_mapped(p.from, bytes);
        },
        &work);
    if (work.failed) return fail(Code::internal, w->name + ": cannot be interleaved");
    if (!streamed()) {
      as_rows.emplace_back(w, *w);
      if (w->stride == matrix) release_mapped(w->data, w->bytes);  // pages that two pieces share
      w->data = to;
      w->stride = matrix;
    }
    w->interleaved = true;
    done += align_up(w->bytes, kAlignment);
    if (options.on_load) options.on_load(done, total);
  }
  if (!streamed()) reordered.push_back(std::move(block));
  repack_note += (repack_note.empty() ? "" : "; ") + std::to_string(wanted.size()) + " weights interleaved (" + format_bytes(total) +
                 "), " + seconds_since(begin);
  if (gates_stay_for) repack_note += ", gates left as they are for " + device(*gates_stay_for).name();
  return {};
}

}  // namespace fth
