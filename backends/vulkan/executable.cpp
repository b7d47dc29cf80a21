// Recording, binding and running a segment.

#include "plugins/vulkan/executable.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fth::vulkan {
namespace {

// The head of Params in shaders/common.glsl; the entries follow it.
struct ParamsHead {
  uint32_t n_tokens, pos, bad_row, reserved;
};
static_assert(sizeof(ParamsHead) == 16);

// Turns per position times 2^64, of pair j. The whole turns drop out; long double keeps 64 bits of what is left where double has 53.
Result<uint64_t> fixed_frequency(const RopeTable& rope, int64_t j, double factor) {
  const long double exponent = -2.0L * static_cast<long double>(j) / static_cast<long double>(2 * rope.half);
  const long double turns = std::pow(static_cast<long double>(rope.base), exponent) * static_cast<long double>(rope.scale) /
                            static_cast<long double>(factor) / 6.283185307179586476925286766559L;
  if (!std::isfinite(turns)) return fail(Code::invalid_argument, text("rope: pair ", j, ": the factor is ", factor));
  const long double part = turns - std::floor(turns);
  const long double scaled = std::nearbyint(part * 18446744073709551616.0L);
  return scaled >= 18446744073709551616.0L ? 0 : static_cast<uint64_t>(scaled);
}

// May the later dispatch touch what the earlier one touches? Values in the workspace meet where their places overlap; bound ones where they are the
// same, or one of the two is written by name and the host may have bound one buffer to both.
bool meet(const std::vector<Value>& values, uint32_t a, uint32_t b) {
  if (a == b) return true;
  const Value &x = values[a], &y = values[b];
  if (x.role == FTH_ROLE_WEIGHT || y.role == FTH_ROLE_WEIGHT) return false;
  if ((x.role == FTH_ROLE_TEMP) != (y.role == FTH_ROLE_TEMP)) return false;
  if (x.role != FTH_ROLE_TEMP) return true;
  return x.offset < y.offset + y.bytes && y.offset < x.offset + x.bytes;
}

bool any_meet(const std::vector<Value>& values, const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
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

Result<> Event::wait() { return executable_.wait(); }

Result<std::unique_ptr<Executable>> Executable::make(Context& context, SegmentPlan plan, std::span<const fth_binding> weights) {
  std::unique_ptr<Executable> x(new Executable(context, std::move(plan)));
  FTH_ASSIGN_OR_RETURN(x->params_, context.allocate(x->plan_.params_bytes(), Context::Use::shared));
  std::memset(x->params_.mapped, 0, x->plan_.params_bytes());
  FTH_RETURN_IF_ERROR(x->bind_weights(weights));
  FTH_ASSIGN_OR_RETURN(x->fence_, context.make_fence());
  FTH_RETURN_IF_ERROR(x->record());
  FTH_RETURN_IF_ERROR(context.complaints());
  return x;
}

Executable::~Executable() {
  if (running_) (void)context_.wait(fence_);  // the device still reads what is freed here
  if (commands_) context_.free(commands_);
  if (fence_) context_.free(fence_);
  context_.free(params_);
}

void Executable::set_entry(uint32_t i, uint64_t value) {
  std::memcpy(params_.mapped + sizeof(ParamsHead) + 8 * uint64_t{i}, &value, sizeof value);
}

Result<VkDeviceAddress> Executable::resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what,
                                            uint64_t index) const {
  const auto problem = [&](const std::string& why) {
    return fail(Code::invalid_argument, text(plan_.name, ": ", what, " ", index, ": ", why));
  };
  const Buffer* const buffer = sdk::buffer_of<Buffer>(b);
  if (!buffer) return problem("no buffer is bound");
  if (const auto range = sdk::check_range(b.offset, b.bytes, buffer->bytes()); !range) return problem(range.error().message);
  if (b.bytes < bytes) return problem(text("a binding of ", b.bytes, " bytes, need ", bytes));
  if (b.offset % alignment != 0) return problem(text("offset ", b.offset, " is no multiple of ", alignment));  // buffers start at 16
  return buffer->address() + b.offset;
}

Result<> Executable::bind_weights(std::span<const fth_binding> weights) {
  size_t next = 0;
  std::vector<const fth_binding*> of_value(plan_.values.size());
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const Value& v = plan_.values[t];
    if (v.role != FTH_ROLE_WEIGHT) continue;
    of_value[t] = &weights[next++];
    FTH_ASSIGN_OR_RETURN(const VkDeviceAddress address, resolve(*of_value[t], v.bytes, v.alignment, "weight tensor", t));
    set_entry(t, address);
  }
  for (const RopeTable& rope : plan_.ropes) {
    std::vector<float> factors(static_cast<size_t>(rope.half), 1.0f);
    if (rope.factors != 0xffffffffu) {
      const fth_binding& b = *of_value[rope.factors];
      FTH_RETURN_IF_ERROR(sdk::buffer_of<Buffer>(b)->read(b.offset, factors.data(), factors.size() * sizeof(float)));
    }
    for (int64_t j = 0; j < rope.half; ++j) {
      FTH_ASSIGN_OR_RETURN(const uint64_t frequency, fixed_frequency(rope, j, static_cast<double>(factors[static_cast<size_t>(j)])));
      set_entry(static_cast<uint32_t>(plan_.values.size()) + rope.first + static_cast<uint32_t>(j), frequency);
    }
  }
  return {};
}

Result<> Executable::record() {
  FTH_ASSIGN_OR_RETURN(commands_, context_.begin(0));
  const Api& api = context_.api();
  const Limits& limits = context_.limits();
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

    FTH_ASSIGN_OR_RETURN(const VkPipeline pipeline, context_.pipeline(d.shader, d.constants));
    std::array<uint32_t, 16> push{};
    if (d.push.size() + 2 > push.size()) return fail(Code::internal, "vulkan: more push constants than the layout has");
    std::memcpy(push.data(), &params_.address, sizeof params_.address);
    std::copy(d.push.begin(), d.push.end(), push.begin() + 2);
    api.CmdBindPipeline(commands_, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    api.CmdPushConstants(commands_, context_.layout(), VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, push.data());
    const uint64_t x = std::min<uint64_t>(d.groups_x, limits.max_groups_x), z = (d.groups_x + x - 1) / x;
    if (z > 65535) return fail(Code::unimplemented, text("vulkan: ", d.groups_x, " workgroups in one dispatch"));
    api.CmdDispatch(commands_, static_cast<uint32_t>(x), d.groups_y, static_cast<uint32_t>(z));
  }
  context_.barrier(commands_, Context::Between::anything);  // later ones, and the host's reads of mapped memory
  return context_.end(commands_);
}

Result<Event*> Executable::submit(std::span<const fth_binding> bindings, const int64_t* scalars) {
  const size_t need = plan_.n_bindings + (plan_.workspace_bytes > 0 ? 1 : 0);
  if (running_) return fail(Code::failed_precondition, text(plan_.name, ": submitted again before its last run was waited for"));
  if (bindings.size() != need || (need > 0 && !bindings.data()) || !scalars)
    return fail(Code::invalid_argument, text(plan_.name, ": ", bindings.size(), " bindings, need ", need, " and the scalars"));
  const int64_t n = scalars[FTH_SCALAR_TOKENS], pos = scalars[FTH_SCALAR_POS];
  if (n < 1 || n > plan_.n_tokens)
    return fail(Code::invalid_argument, text(plan_.name, ": ", n, " tokens, the bucket is ", plan_.n_tokens));
  if (pos < 0) return fail(Code::invalid_argument, text(plan_.name, ": position ", pos));
  if (pos > plan_.max_end - n)
    return fail(Code::out_of_range, text(plan_.name, ": positions from ", pos, " on, ", n, " of them: they end at ", plan_.max_end));

  size_t next = 0;
  for (uint32_t t = 0; t < plan_.values.size(); ++t) {
    const Value& v = plan_.values[t];
    if (v.role == FTH_ROLE_WEIGHT || v.role == FTH_ROLE_TEMP) continue;
    FTH_ASSIGN_OR_RETURN(const VkDeviceAddress address, resolve(bindings[next], v.bytes, v.alignment, "binding", next));
    set_entry(t, address);
    ++next;
  }
  if (plan_.workspace_bytes > 0) {
    FTH_ASSIGN_OR_RETURN(const VkDeviceAddress workspace,
                         resolve(bindings[next], plan_.workspace_bytes, kWorkspaceAlignment, "workspace binding", next));
    for (uint32_t t = 0; t < plan_.values.size(); ++t)
      if (plan_.values[t].role == FTH_ROLE_TEMP) set_entry(t, workspace + plan_.values[t].offset);
  }
  const ParamsHead head{.n_tokens = static_cast<uint32_t>(n), .pos = static_cast<uint32_t>(pos), .bad_row = 0, .reserved = 0};
  std::memcpy(params_.mapped, &head, sizeof head);
  FTH_RETURN_IF_ERROR(context_.submit(commands_, fence_));
  running_ = true;
  return &event_;
}

Result<> Executable::wait() {
  if (!running_) return fail(Code::failed_precondition, text(plan_.name, ": waited for without a run"));
  running_ = false;
  if (Result<> done = context_.wait(fence_); !done) return tl::unexpected<Error>(std::move(done).error().context(plan_.name));
  ParamsHead head{};
  std::memcpy(&head, params_.mapped, sizeof head);
  if (head.bad_row != 0) return fail(Code::out_of_range, text(plan_.name, ": the id of row ", head.bad_row - 1, " is no row of the table"));
  return {};
}

}  // namespace fth::vulkan
