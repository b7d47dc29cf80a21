// Binding and running a segment.

#include "backends/cuda/executable.h"

#include <algorithm>

namespace fth::cuda {

Result<std::unique_ptr<Executable>> Executable::make(Context& context, SegmentPlan plan, std::span<const fth_binding> weights) {
  std::unique_ptr<Executable> x(new Executable(context, std::move(plan)));
  if (x->plan_.has_status) {
    FTH_ASSIGN_OR_RETURN(x->status_, context.allocate(sizeof(uint32_t)));
  }
  FTH_ASSIGN_OR_RETURN(x->begun_, context.named(OwnMark::make(context.gpu(), MarkKind::timed)));
  FTH_ASSIGN_OR_RETURN(x->done_, context.named(OwnMark::make(context.gpu(), MarkKind::timed)));
  FTH_RETURN_IF_ERROR(x->bind_weights(weights));
  for (const Launch& l : x->plan_.launches) {
    if (l.tensors.size() > kMostTensors || l.numbers.size() > kMostNumbers)
      return fail(Code::internal, text(x->plan_.rules.name, ": a launch of more tensors or numbers than kernels have"));
    Params p{};
    p.real = l.real;
    for (size_t i = 0; i < l.numbers.size(); ++i) p.number[i] = static_cast<uint32_t>(l.numbers[i]);
    x->params_.push_back(p);
  }
  return x;
}

// What is freed here may still be read by the device.
Executable::~Executable() {
  if (running_) (void)context_.gpu().wait(done_.get());
}

Result<std::byte*> Executable::resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what,
                                       uint64_t index) const {
  FTH_ASSIGN_OR_RETURN(const Buffer* const buffer, plan_.rules.resolve<Buffer>(b, bytes, alignment, what, index));
  return buffer->memory() + b.offset;
}

Result<> Executable::bind_weights(std::span<const fth_binding> weights) {
  places_.resize(plan_.values.size());
  std::vector<const fth_binding*> of_value(plan_.values.size());
  size_t next = 0;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role != FTH_ROLE_WEIGHT) continue;
    of_value[t] = &weights[next++];
    FTH_ASSIGN_OR_RETURN(places_[t], resolve(*of_value[t], v.bytes, v.alignment, "weight tensor", t));
  }
  if (plan_.ropes.tables.empty()) return {};
  FTH_ASSIGN_OR_RETURN(const std::vector<uint64_t> frequencies, plan_.ropes.frequencies<Buffer>(of_value));
  FTH_ASSIGN_OR_RETURN(frequencies_, context_.allocate(frequencies.size() * sizeof(uint64_t)));
  return frequencies_->write(0, frequencies.data(), frequencies.size() * sizeof(uint64_t));
}

std::byte* Executable::place(const Operand& o) const {
  switch (o.kind) {
    case Operand::Kind::frequencies: return frequencies_->memory();
    case Operand::Kind::status: return status_->memory();
    default: return places_[o.value];
  }
}

Result<> Executable::enqueue(uint32_t pos, uint32_t tokens) {
  Gpu& gpu = context_.gpu();
  FTH_RETURN_IF_ERROR(gpu.record(begun_.get()));
  if (status_) FTH_RETURN_IF_ERROR(gpu.clear(status_->memory(), sizeof(uint32_t)));
  for (size_t i = 0; i < plan_.launches.size(); ++i) {
    const Launch& l = plan_.launches[i];
    Params& p = params_[i];
    for (size_t t = 0; t < l.tensors.size(); ++t) p.tensor[t] = place(l.tensors[t]);
    p.pos = pos;
    p.n_tokens = tokens;
    Grid grid{l.x, (tokens + l.columns - 1) / l.columns};
    if (l.window) grid.x *= pos / AttentionParams::kTile - AttentionParams::first_seen(pos, *l.window) / AttentionParams::kTile + 1;
    FTH_RETURN_IF_ERROR(gpu.launch(l.kernel, grid, p));
  }
  return gpu.record(done_.get());
}

Result<Event*> Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  if (running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": submitted again before its last run was waited for"));
  FTH_RETURN_IF_ERROR(plan_.rules.check_submit(bindings, scalars));
  timed_ = false;
  size_t next = 0;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_WEIGHT || v.role == FTH_ROLE_TEMP) continue;
    FTH_ASSIGN_OR_RETURN(places_[t], resolve(bindings[next], v.bytes, v.alignment, "binding", next));
    ++next;
  }
  if (plan_.rules.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(std::byte* const workspace,
                         resolve(bindings[next], plan_.rules.workspace_bytes, kAlignment, "workspace binding", next));
    for (uint32_t t = 0; t < plan_.values.size(); ++t)
      if (plan_.values[t].role == FTH_ROLE_TEMP) places_[t] = workspace + plan_.values[t].offset;
  }
  const auto pos = static_cast<uint32_t>(scalars[FTH_SCALAR_POS]), tokens = static_cast<uint32_t>(scalars[FTH_SCALAR_TOKENS]);
  if (Result<> queued = context_.named(enqueue(pos, tokens)); !queued) {
    (void)context_.gpu().finish();  // what was queued before the error uses the caller's buffers
    return tl::unexpected<Error>(std::move(queued).error().context(plan_.rules.name));
  }
  running_ = true;
  return &event_;
}

Result<> Executable::wait() {
  if (!running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": waited for without a run"));
  running_ = false;
  if (Result<> ran = context_.named(context_.gpu().wait(done_.get())); !ran)
    return tl::unexpected<Error>(std::move(ran).error().context(plan_.rules.name));
  timed_ = true;
  if (!status_) return {};
  uint32_t bad_row = 0;
  FTH_RETURN_IF_ERROR(status_->read(0, &bad_row, sizeof bad_row));
  if (bad_row == 0) return {};
  return fail(Code::out_of_range, text(plan_.rules.name, ": the id of row ", bad_row - 1, " is no row of the table"));
}

double Executable::device_seconds() const {
  if (!timed_) return -1;
  const Result<double> seconds = context_.gpu().seconds_between(begun_.get(), done_.get());
  return seconds ? *seconds : -1;
}

}  // namespace fth::cuda
