// Down matrices of plain files, neuron-major in memory. Each expert's pages of the mapping are given back as soon as it is converted, so that the process is never
// larger than it would be without by more than a few experts.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>

#include "core/engine/engine_impl.h"
#include "core/model/neuron_major.h"

namespace fth {

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
  for (size_t i = 0; i < as_in_file.size(); ++i) model->layers[i].down = as_in_file[i];
  as_in_file.clear();
  reordered.clear();
  keep_order(why);
}

Result<> Engine::Impl::reorder() {
  const Config& c = model->config;
  if (!c.is_sparse() || c.packed || streamed() || !repack_note.empty()) return {};
  as_in_file.clear();
  const auto begin = std::chrono::steady_clock::now();
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
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%.2f", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  repack_note = "down matrices of " + std::to_string(c.n_layer) + " layers in neuron-major order, " + seconds + " s";
  return {};
}

}  // namespace fth
