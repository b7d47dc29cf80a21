// Binding and running a segment.

#include "backends/openvino/executable.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fth::openvino {
namespace {

using sdk::text;
using Kind = Port::Kind;

// A graph keeps what it needs between its nodes. Scores of many rows over many cells are given back after each run: one such graph runs at a time, and
// a model has one for each layer.
constexpr uint64_t kMostKept = 8 * kMiB;

size_t size(int64_t n) { return static_cast<size_t>(n); }

}  // namespace

Result<std::unique_ptr<Executable>> Executable::make(Device& device, GraphPlan plan, std::span<const fth_binding> weights) {
  std::unique_ptr<Executable> x(new Executable(device, std::move(plan)));
  const GraphPlan& p = x->plan_;
  std::vector<const std::byte*> data(p.tensors.size());
  size_t next = 0;
  for (uint32_t t = 0; t < p.tensors.size(); ++t) {
    if (p.values[t].role != FTH_ROLE_WEIGHT) continue;
    const fth_binding& b = weights[next++];
    FTH_ASSIGN_OR_RETURN(const Buffer* const buffer,
                         p.rules.resolve<Buffer>(b, p.values[t].bytes, p.values[t].alignment, "weight tensor", t));
    data[t] = buffer->data() + b.offset;
  }
  for (const sdk::RopeTable& table : p.ropes.tables) {
    std::vector<float> factors(size(table.half), 1.0f);
    if (table.factors != sdk::kNoValue) std::memcpy(factors.data(), data[table.factors], factors.size() * sizeof(float));
    FTH_ASSIGN_OR_RETURN(const std::vector<uint64_t> frequencies, table.frequencies(factors));
    x->frequencies_.insert(x->frequencies_.end(), frequencies.begin(), frequencies.end());
  }
  FTH_ASSIGN_OR_RETURN(x->model_, device.compile(build_model(p, data, device.target())));
  try {
    x->request_ = x->model_.create_infer_request();
  } catch (const std::exception& e) {
    return fail(Code::unavailable, text(p.rules.name, ": ", words_of(e)));
  }
  x->places_.resize(p.tensors.size());
  x->bound_.resize(p.inputs.size());
  x->bound_outputs_.resize(p.outputs.size());
  for (const Op& op : p.ops)
    if (const auto* a = std::get_if<sdk::AttentionOp>(&op))
      x->releases_ = x->releases_ || static_cast<uint64_t>(a->heads * p.rules.n_tokens) * static_cast<uint64_t>(a->cells) * 4 > kMostKept;
  return x;
}

// What is freed here may still be read by the device.
Executable::~Executable() {
  if (!running_) return;
  try {
    request_.wait();
  } catch (const std::exception&) {  // nobody is left to hear of it
  }
}

Result<> Executable::bind(std::span<const fth_binding> bindings) {
  size_t next = 0;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_WEIGHT || v.role == FTH_ROLE_TEMP) continue;
    FTH_ASSIGN_OR_RETURN(const Buffer* const buffer, plan_.rules.resolve<Buffer>(bindings[next], v.bytes, v.alignment, "binding", next));
    places_[t] = buffer->data() + bindings[next].offset;
    ++next;
  }
  const fth_binding& b = bindings[next];  // rows always need some
  FTH_ASSIGN_OR_RETURN(const Buffer* const buffer,
                       plan_.rules.resolve<Buffer>(b, plan_.rules.workspace_bytes, kWorkspaceAlignment, "workspace binding", next));
  workspace_ = buffer->data() + b.offset;
  return {};
}

// What of the graph's inputs belongs to this submit, at its place in the workspace.
void Executable::fill(const Port& p, std::byte* to) const {
  const int64_t bucket = plan_.rules.n_tokens;
  switch (p.kind) {
    case Kind::rows: {
      // Rows without a token repeat the first: as finite as it is, and seen by nobody.
      const uint64_t row = p.bytes / static_cast<uint64_t>(bucket);
      const std::byte* const from = places_[p.value];
      std::memcpy(to, from, row * static_cast<uint64_t>(tokens_));
      for (int64_t i = tokens_; i < bucket; ++i) std::memcpy(to + row * static_cast<uint64_t>(i), from, row);
      break;
    }
    case Kind::visible: {
      const auto& a = std::get<sdk::AttentionOp>(plan_.ops[p.item]);
      for (int64_t i = 0; i < bucket; ++i) {
        bool* const row = reinterpret_cast<bool*>(to) + i * (a.cells + bucket);
        std::fill_n(row, a.cells + bucket, false);
        if (i >= tokens_) {
          row[a.cells + i] = true;
          continue;
        }
        const int64_t first = a.window > 0 ? std::max<int64_t>(0, pos_ + i - a.window + 1) : 0;
        // Positions before this submit, in at most two runs of the ring; there are fewer than it has cells.
        for (int64_t from = std::min(first, pos_); from < pos_;) {
          const int64_t cell = from % a.cells, n = std::min(pos_ - from, a.cells - cell);
          std::fill_n(row + cell, n, true);
          from += n;
        }
        for (int64_t j = std::max<int64_t>(0, first - pos_); j <= i; ++j) row[a.cells + j] = true;
      }
      break;
    }
    case Kind::written: {
      const auto& a = std::get<sdk::AttentionOp>(plan_.ops[p.item]);
      const int64_t n = std::min(pos_, a.cells);
      std::fill_n(reinterpret_cast<bool*>(to), n, true);
      std::fill_n(reinterpret_cast<bool*>(to) + n, a.cells - n, false);
      break;
    }
    case Kind::cosine:
    case Kind::sine: {
      const sdk::RopeTable& table = plan_.ropes.tables[p.item];
      auto* const values = reinterpret_cast<float*>(to);
      for (int64_t i = 0; i < bucket; ++i)
        for (int64_t j = 0; j < table.half; ++j) {
          // Whole turns fall off the top of the product.
          const uint64_t turn = frequencies_[table.first + size(j)] * static_cast<uint64_t>(pos_ + i);
          const double angle = static_cast<double>(static_cast<int64_t>(turn)) * (6.283185307179586477 / 18446744073709551616.0);
          values[i * table.half + j] = static_cast<float>(p.kind == Kind::cosine ? std::cos(angle) : std::sin(angle));
        }
      break;
    }
    case Kind::state:
    case Kind::cells: break;
  }
}

void Executable::take(const Port& p, const std::byte* from) const {
  const uint64_t row = p.bytes / static_cast<uint64_t>(plan_.rules.n_tokens);
  if (p.kind == Kind::rows) {
    std::memcpy(places_[p.value], from, row * static_cast<uint64_t>(tokens_));
    return;
  }
  const int64_t cells = std::get<sdk::AttentionOp>(plan_.ops[p.item]).cells;
  for (int64_t i = 0; i < tokens_; ++i)
    std::memcpy(places_[p.value] + row * static_cast<uint64_t>((pos_ + i) % cells), from + row * static_cast<uint64_t>(i), row);
}

Result<Event*> Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  if (running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": submitted again before its last run was waited for"));
  FTH_RETURN_IF_ERROR(plan_.rules.check_submit(bindings, scalars));
  FTH_RETURN_IF_ERROR(bind(bindings));
  tokens_ = scalars[FTH_SCALAR_TOKENS], pos_ = scalars[FTH_SCALAR_POS];
  try {
    for (size_t i = 0; i < plan_.inputs.size(); ++i) {
      const Port& p = plan_.inputs[i];
      std::byte* const place = p.kind == Kind::state ? places_[p.value] : workspace_ + p.offset;
      fill(p, place);
      if (bound_[i] == place) continue;
      request_.set_input_tensor(i, ov::Tensor(element_of(p), shape_of(p), place));
      bound_[i] = place;
    }
    for (size_t i = 0; i < plan_.outputs.size(); ++i) {
      const Port& p = plan_.outputs[i];
      std::byte* const place = workspace_ + p.offset;
      if (bound_outputs_[i] == place) continue;
      request_.set_output_tensor(i, ov::Tensor(element_of(p), shape_of(p), place));
      bound_outputs_[i] = place;
    }
    request_.start_async();
  } catch (const std::exception& e) {
    return fail(Code::unavailable, text(device_.label(), ": ", plan_.rules.name, ": ", words_of(e)));
  }
  running_ = true;
  return &event_;
}

Result<> Executable::wait() {
  if (!running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": waited for without a run"));
  running_ = false;
  try {
    request_.wait();
    for (const Port& p : plan_.outputs) take(p, workspace_ + p.offset);
    if (releases_) model_.release_memory();
  } catch (const std::exception& e) {
    return fail(Code::unavailable, text(device_.label(), ": ", plan_.rules.name, ": ", words_of(e)));
  }
  return {};
}

}  // namespace fth::openvino
