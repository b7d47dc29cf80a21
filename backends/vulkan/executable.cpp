// Recording, binding and running a segment.

#include "backends/vulkan/executable.h"

#include <algorithm>
#include <cstring>

namespace fth::vulkan {
namespace {

// The head of Params in shaders/common.glsl; the entries follow it.
struct ParamsHead {
  uint32_t n_tokens, pos, bad_row, reserved;
};
static_assert(sizeof(ParamsHead) == 16);

// May the later dispatch touch what the earlier one touches? Values in the workspace meet where their places overlap; bound ones where they are the
// same, or one of the two is written by name and the host may have bound one buffer to both.
bool meet(const std::vector<sdk::Value>& values, uint32_t a, uint32_t b) {
  if (a == b) return true;
  const sdk::Value &x = values[a], &y = values[b];
  if (x.role == FTH_ROLE_WEIGHT || y.role == FTH_ROLE_WEIGHT) return false;
  if ((x.role == FTH_ROLE_TEMP) != (y.role == FTH_ROLE_TEMP)) return false;
  if (x.role != FTH_ROLE_TEMP) return true;
  return x.offset < y.offset + y.bytes && y.offset < x.offset + x.bytes;
}

bool any_meet(const std::vector<sdk::Value>& values, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  return std::any_of(a.begin(), a.end(),
                     [&](uint32_t x) { return std::any_of(b.begin(), b.end(), [&](uint32_t y) { return meet(values, x, y); }); });
}

}  // namespace

Result<> Buffer::write(uint64_t offset, const void* src, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
  return context_.upload(memory_, offset, src, bytes);
}

Result<> Buffer::read(uint64_t offset, void* dst, uint64_t bytes) {
  FTH_RETURN_IF_ERROR(sdk::check_range(offset, bytes, bytes_));
  return context_.download(memory_, offset, dst, bytes);
}

Result<std::unique_ptr<Executable>> Executable::make(Context& context, SegmentPlan plan, std::span<const fth_binding> weights) {
  std::unique_ptr<Executable> x(new Executable(context, std::move(plan)));
  FTH_ASSIGN_OR_RETURN(x->params_, context.allocate(x->plan_.params_bytes(), Context::Use::shared));
  std::memset(x->params_.mapped, 0, x->plan_.params_bytes());
  FTH_RETURN_IF_ERROR(x->bind_weights(weights));
  FTH_RETURN_IF_ERROR(x->make_own());
  FTH_ASSIGN_OR_RETURN(x->timer_, context.make_timer());
  FTH_RETURN_IF_ERROR(x->record());
  FTH_RETURN_IF_ERROR(context.complaints());
  return x;
}

Executable::~Executable() {
  if (running_) (void)context_.wait(done_);  // the device still reads what is freed here
  if (commands_) context_.free(commands_);
  if (timer_) context_.free_timer(timer_);
  context_.free(own_);
  context_.free(params_);
}

void Executable::set_entry(uint32_t i, uint64_t value) {
  std::memcpy(params_.mapped + sizeof(ParamsHead) + 8 * uint64_t{i}, &value, sizeof value);
}

Result<VkDeviceAddress> Executable::resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what,
                                            uint64_t index) const {
  FTH_ASSIGN_OR_RETURN(const Buffer* const buffer, plan_.rules.resolve<Buffer>(b, bytes, alignment, what, index));
  return buffer->address() + b.offset;  // buffers start at a multiple of 16
}

Result<> Executable::bind_weights(std::span<const fth_binding> weights) {
  size_t next = 0;
  std::vector<const fth_binding*> of_value(plan_.values.size());
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role != FTH_ROLE_WEIGHT) continue;
    of_value[t] = &weights[next++];
    FTH_ASSIGN_OR_RETURN(const VkDeviceAddress address, resolve(*of_value[t], v.bytes, v.alignment, "weight tensor", t));
    set_entry(t, address);
  }
  uint32_t entry = static_cast<uint32_t>(plan_.values.size());
  FTH_ASSIGN_OR_RETURN(const std::vector<uint64_t> frequencies, plan_.ropes.frequencies<Buffer>(of_value));
  for (const uint64_t frequency : frequencies) set_entry(entry++, frequency);
  return {};
}

Result<> Executable::dispatch(VkCommandBuffer commands, const Dispatch& d) {
  const Api& api = context_.api();
  const Limits& limits = context_.limits();
  FTH_ASSIGN_OR_RETURN(const VkPipeline pipeline, context_.pipeline(d.shader, d.constants));
  std::array<uint32_t, 16> push{};
  if (d.push.size() + 2 > push.size()) return fail(Code::internal, "vulkan: more push constants than the layout has");
  std::memcpy(push.data(), &params_.address, sizeof params_.address);
  std::copy(d.push.begin(), d.push.end(), push.begin() + 2);
  api.CmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
  api.CmdPushConstants(commands, context_.layout(), VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, push.data());
  const uint64_t x = std::min<uint64_t>(d.groups_x, limits.max_groups_x), z = (d.groups_x + x - 1) / x;
  if (z > 65535) return fail(Code::unimplemented, text("vulkan: ", d.groups_x, " workgroups in one dispatch"));
  api.CmdDispatch(commands, static_cast<uint32_t>(x), d.groups_y, static_cast<uint32_t>(z));
  return {};
}

// What the executable makes of its weights, each in a place of its own, by dispatches that do not meet.
Result<> Executable::make_own() {
  if (plan_.once.empty()) return {};
  FTH_ASSIGN_OR_RETURN(own_, context_.allocate(plan_.own_bytes(), Context::Use::storage));
  VkDeviceAddress next = own_.address;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    if (plan_.values[t].role != kOwnRole) continue;
    set_entry(t, next);
    next += align_up(plan_.values[t].bytes, kWorkspaceAlignment);
  }
  FTH_ASSIGN_OR_RETURN(const VkCommandBuffer commands, context_.begin(VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT));
  const auto fill = [&]() -> Result<> {
    context_.barrier(commands, Context::Between::anything);
    for (const Dispatch& d : plan_.once) FTH_RETURN_IF_ERROR(dispatch(commands, d));
    context_.barrier(commands, Context::Between::anything);
    FTH_RETURN_IF_ERROR(context_.end(commands));
    return context_.run_once(commands);
  };
  Result<> filled = fill();
  context_.free(commands);
  return filled;
}

Result<> Executable::record() {
  FTH_ASSIGN_OR_RETURN(commands_, context_.begin(0));
  context_.start(commands_, timer_);
  context_.barrier(commands_, Context::Between::anything);  // earlier submits and copies
  std::vector<uint32_t> read, written;                      // since the last barrier
  for (const Dispatch& d : plan_.dispatches) {
    if (any_meet(plan_.values, d.reads, written) || any_meet(plan_.values, d.writes, written) || any_meet(plan_.values, d.writes, read)) {
      context_.barrier(commands_, Context::Between::dispatches);
      read.clear();
      written.clear();
    }
    read.insert(read.end(), d.reads.begin(), d.reads.end());
    written.insert(written.end(), d.writes.begin(), d.writes.end());

    FTH_RETURN_IF_ERROR(dispatch(commands_, d));
  }
  context_.barrier(commands_, Context::Between::anything);  // later ones, and the host's reads of mapped memory
  context_.stop(commands_, timer_);
  return context_.end(commands_);
}

Result<Event*> Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  if (running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": submitted again before its last run was waited for"));
  FTH_RETURN_IF_ERROR(plan_.rules.check_submit(bindings, scalars));
  const int64_t n = scalars[FTH_SCALAR_TOKENS], pos = scalars[FTH_SCALAR_POS];
  size_t next = 0;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const sdk::Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_WEIGHT || v.role == FTH_ROLE_TEMP || v.role == kOwnRole) continue;
    FTH_ASSIGN_OR_RETURN(const VkDeviceAddress address, resolve(bindings[next], v.bytes, v.alignment, "binding", next));
    set_entry(t, address);
    ++next;
  }
  if (plan_.rules.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(const VkDeviceAddress workspace,
                         resolve(bindings[next], plan_.rules.workspace_bytes, kWorkspaceAlignment, "workspace binding", next));
    for (uint32_t t = 0; t < plan_.values.size(); ++t)
      if (plan_.values[t].role == FTH_ROLE_TEMP) set_entry(t, workspace + plan_.values[t].offset);
  }
  const ParamsHead head{.n_tokens = static_cast<uint32_t>(n), .pos = static_cast<uint32_t>(pos), .bad_row = 0, .reserved = 0};
  std::memcpy(params_.mapped, &head, sizeof head);
  FTH_ASSIGN_OR_RETURN(done_, context_.submit(commands_));
  running_ = true;
  return &event_;
}

Result<> Executable::wait() {
  if (!running_) return fail(Code::failed_precondition, text(plan_.rules.name, ": waited for without a run"));
  running_ = false;
  if (Result<> done = context_.wait(done_); !done) return tl::unexpected<Error>(std::move(done).error().context(plan_.rules.name));
  ParamsHead head{};
  std::memcpy(&head, params_.mapped, sizeof head);
  if (head.bad_row != 0)
    return fail(Code::out_of_range, text(plan_.rules.name, ": the id of row ", head.bad_row - 1, " is no row of the table"));
  return {};
}

}  // namespace fth::vulkan
