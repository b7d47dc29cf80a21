// Binding and running a segment.

#include "backends/opencl/executable.h"

#include <algorithm>

namespace fth::opencl {

Result<std::unique_ptr<Executable>> Executable::make(Context& context, SegmentPlan plan, std::span<const fth_binding> weights) {
  std::unique_ptr<Executable> x(new Executable(context, std::move(plan)));
  if (x->plan_.has_status) {
    FTH_ASSIGN_OR_RETURN(x->status_, context.allocate(sizeof(uint32_t)));
  }
  FTH_RETURN_IF_ERROR(x->bind_weights(weights));
  for (const Launch& l : x->plan_.launches) {
    FTH_ASSIGN_OR_RETURN(KernelHandle kernel, context.kernel(l.kernel, l.local));
    x->kernels_.push_back(std::move(kernel));
  }
  FTH_RETURN_IF_ERROR(x->set_arguments(true, 0, 0));
  return x;
}

// What is freed here may still be read by the device.
Executable::~Executable() {
  if (running_) (void)clFinish(context_.queue());
}

Result<Executable::Place> Executable::resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what,
                                              uint64_t index) const {
  FTH_ASSIGN_OR_RETURN(const Buffer* const buffer, plan_.rules.resolve<Buffer>(b, bytes, alignment, what, index));
  return Place{buffer->memory(), buffer->base() + b.offset};  // the base is a multiple of 4
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
  FTH_ASSIGN_OR_RETURN(const std::vector<uint64_t> angles, plan_.ropes.frequencies<Buffer>(of_value));
  FTH_ASSIGN_OR_RETURN(angles_, context_.allocate(angles.size() * sizeof(uint64_t)));
  return angles_->write(0, angles.data(), angles.size() * sizeof(uint64_t));
}

// constant: the arguments that hold for every run; else those of one run. A buffer is set anew for each run even where it is the same as before: a
// driver may know it by more than its address, which another one can have by now.
Result<> Executable::set_arguments(bool constant, uint32_t pos, uint32_t tokens) {
  for (size_t i = 0; i < kernels_.size(); ++i) {
    const cl_kernel kernel = kernels_[i].get();
    const Launch& launch = plan_.launches[i];
    cl_uint at = 0;
    const auto set = [&](bool now, const auto& value) -> Result<> {
      const cl_uint index = at++;
      return now ? set_argument(kernel, index, value, launch.kernel.name) : Result<>();
    };
    for (const Arg& a : launch.args) {
      switch (a.kind) {
        case Arg::Kind::value: {
          const bool now = constant == (plan_.values[a.number].role == FTH_ROLE_WEIGHT);
          FTH_RETURN_IF_ERROR(set(now, places_[a.number].memory));
          FTH_RETURN_IF_ERROR(set(now, places_[a.number].offset));
          break;
        }
        case Arg::Kind::u32:
        case Arg::Kind::f32: FTH_RETURN_IF_ERROR(set(constant, static_cast<cl_uint>(a.number))); break;
        case Arg::Kind::u64: FTH_RETURN_IF_ERROR(set(constant, static_cast<cl_ulong>(a.number))); break;
        case Arg::Kind::angles: FTH_RETURN_IF_ERROR(set(constant, angles_->memory())); break;
        case Arg::Kind::status: FTH_RETURN_IF_ERROR(set(constant, status_->memory())); break;
        case Arg::Kind::pos: FTH_RETURN_IF_ERROR(set(!constant, static_cast<cl_uint>(pos))); break;
        case Arg::Kind::tokens: FTH_RETURN_IF_ERROR(set(!constant, static_cast<cl_uint>(tokens))); break;
      }
    }
  }
  return {};
}

Result<> Executable::enqueue(uint32_t tokens) {
  const cl_command_queue queue = context_.queue();
  if (status_) {
    const cl_uint none = 0;
    FTH_RETURN_IF_ERROR(
        check_run(clEnqueueFillBuffer(queue, status_->memory(), &none, sizeof none, status_->base(), sizeof none, 0, nullptr, nullptr),
                  text(context_.label(), ": clEnqueueFillBuffer")));
  }
  cl_event first = nullptr, done = nullptr;
  for (size_t i = 0; i < kernels_.size(); ++i) {
    const Launch& l = plan_.launches[i];
    const size_t local[] = {l.local, 1}, global[] = {(l.items + l.local - 1) / l.local * l.local, (tokens + l.columns - 1) / l.columns};
    const bool last = i + 1 == kernels_.size();
    FTH_RETURN_IF_ERROR(check_run(clEnqueueNDRangeKernel(queue, kernels_[i].get(), 2, nullptr, global, local, 0, nullptr,
                                                         last     ? &done
                                                         : i == 0 ? &first
                                                                  : nullptr),
                                  text(context_.label(), ": clEnqueueNDRangeKernel ", l.kernel.name)));
    if (i == 0) first_ = EventHandle(first);  // held from here on: a later launch may fail. Null where it is the last one too
  }
  done_ = EventHandle(done);
  return check_run(clFlush(queue), text(context_.label(), ": clFlush"));
}

Result<Event*> Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  if (running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": submitted again before its last run was waited for"));
  FTH_RETURN_IF_ERROR(plan_.rules.check_submit(bindings, scalars));
  size_t next = 0;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_WEIGHT || v.role == FTH_ROLE_TEMP) continue;
    FTH_ASSIGN_OR_RETURN(places_[t], resolve(bindings[next], v.bytes, v.alignment, "binding", next));
    ++next;
  }
  if (plan_.rules.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(const Place workspace,
                         resolve(bindings[next], plan_.rules.workspace_bytes, kWorkspaceAlignment, "workspace binding", next));
    for (uint32_t t = 0; t < plan_.values.size(); ++t)
      if (plan_.values[t].role == FTH_ROLE_TEMP) places_[t] = {workspace.memory, workspace.offset + plan_.values[t].offset};
  }
  const uint32_t tokens = static_cast<uint32_t>(scalars[FTH_SCALAR_TOKENS]), pos = static_cast<uint32_t>(scalars[FTH_SCALAR_POS]);
  FTH_RETURN_IF_ERROR(set_arguments(false, pos, tokens));
  if (Result<> queued = enqueue(tokens); !queued) {
    (void)clFinish(context_.queue());  // what was queued before the error uses the caller's buffers
    first_ = EventHandle();
    done_ = EventHandle();
    return tl::unexpected<Error>(std::move(queued).error().context(plan_.rules.name));
  }
  running_ = true;
  return &event_;
}

Result<> Executable::wait() {
  if (!running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": waited for without a run"));
  running_ = false;
  const EventHandle first = std::move(first_), done = std::move(done_);
  seconds_ = -1;
  if (const cl_event event = done.get()) {
    cl_int waited = clWaitForEvents(1, &event), status = CL_COMPLETE;
    // The event knows more than "one of them failed".
    if (waited == CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST &&
        clGetEventInfo(event, CL_EVENT_COMMAND_EXECUTION_STATUS, sizeof status, &status, nullptr) == CL_SUCCESS && status < 0)
      waited = status;
    if (Result<> ran = check_run(waited, text(context_.label(), ": waiting for the device")); !ran)
      return tl::unexpected<Error>(std::move(ran).error().context(plan_.rules.name));
    cl_ulong start = 0, end = 0;
    const cl_event begun = first.get() ? first.get() : event;
    if (clGetEventProfilingInfo(begun, CL_PROFILING_COMMAND_START, sizeof start, &start, nullptr) == CL_SUCCESS &&
        clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_END, sizeof end, &end, nullptr) == CL_SUCCESS && end >= start)
      seconds_ = 1e-9 * static_cast<double>(end - start);
  }
  if (!status_) return {};
  uint32_t bad_row = 0;
  FTH_RETURN_IF_ERROR(status_->read(0, &bad_row, sizeof bad_row));
  if (bad_row == 0) return {};
  return fail(Code::out_of_range, text(plan_.rules.name, ": the id of row ", bad_row - 1, " is no row of the table"));
}

}  // namespace fth::opencl
