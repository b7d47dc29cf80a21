#pragma once
// What the plan of a segment needs on any device with a queue: where values live, which bindings fit them, the angles of ROPE.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "plugins/sdk/backend.h"
#include "plugins/sdk/ops.h"

#pragma GCC visibility push(hidden)
namespace fth::sdk {

// A tensor of the segment, or scratch of the backend's own (role TEMP) behind them.
struct Value {
  uint16_t role = FTH_ROLE_TEMP;
  uint64_t bytes = 0;
  uint64_t alignment = 4;  // of its address, or of its offset in an aligned buffer
  // TEMP: the dispatches it lives through, both ends included, and its place in the workspace.
  uint32_t first = 0xffffffffu, last = 0;
  uint64_t offset = 0;

  void used_at(uint32_t dispatch) {
    first = std::min(first, dispatch);
    last = std::max(last, dispatch);
  }
};

// One per tensor, in order. unimplemented for one of more than `most` bytes.
inline Result<std::vector<Value>> values_of(const SegmentView& segment, uint64_t most) {
  std::vector<Value> values;
  for (const fth_tensor& t : segment.tensors()) {
    Value v;
    v.role = t.role;
    v.bytes = *binding_bytes(t);
    const std::string title = text(segment.name(), ": tensor ", values.size(), " (", describe(t), ")");
    if (v.bytes > most) return fail(Code::unimplemented, text(title, " has ", format_bytes(v.bytes), ", at most ", format_bytes(most)));
    values.push_back(v);
  }
  return values;
}

// unimplemented for a dim beyond 31 bits: kernels count within a row and along a dimension in 32.
inline Result<> check_dims(const SegmentView& segment) {
  for (size_t t = 0; t < segment.tensors().size(); ++t)
    for (const int64_t d : dims(segment.tensors()[t]))
      if (d > INT32_MAX)
        return fail(Code::unimplemented,
                    text(segment.name(), ": tensor ", t, " (", describe(segment.tensors()[t]), "): dims end at ", INT32_MAX));
  return {};
}

// For backends none of whose ops takes slots: unimplemented if there is such a tensor all the same.
inline Result<> check_no_slots(const SegmentView& segment, std::string_view backend) {
  for (size_t t = 0; t < segment.tensors().size(); ++t)
    if (segment.tensors()[t].role == FTH_ROLE_SLOTS)
      return fail(Code::unimplemented, text(segment.name(), ": tensor ", t, " holds slots: no op of the ", backend, " backend takes them"));
  return {};
}

// Places every TEMP that is used, first fit, the largest first: a value lies beside every placed one whose life overlaps its own. Values that share
// bytes must be kept apart in time by the caller. Returns the bytes of the workspace. At most 8192 values of less than 2^50 bytes.
inline uint64_t place_temps(std::vector<Value>& values, uint64_t alignment) {
  std::vector<Value*> temps, alive;
  uint64_t bytes = 0;
  for (Value& v : values)
    if (v.role == FTH_ROLE_TEMP && v.first <= v.last) temps.push_back(&v);
  std::stable_sort(temps.begin(), temps.end(), [](const Value* a, const Value* b) { return a->bytes > b->bytes; });
  for (size_t i = 0; i < temps.size(); ++i) {
    Value& v = *temps[i];
    alive.clear();
    for (size_t j = 0; j < i; ++j)
      if (temps[j]->first <= v.last && v.first <= temps[j]->last) alive.push_back(temps[j]);
    std::sort(alive.begin(), alive.end(), [](const Value* a, const Value* b) { return a->offset < b->offset; });
    for (const Value* other : alive) {
      if (v.offset + v.bytes <= other->offset) break;
      v.offset = std::max(v.offset, align_up(other->offset + other->bytes, alignment));
    }
    bytes = std::max(bytes, align_up(v.offset + v.bytes, alignment));
  }
  return bytes;
}

// The frequencies of a ROPE: turns per position times 2^64, of each pair. Ropes of a segment that agree share one table.
struct RopeTable {
  uint32_t factors = kNoValue;  // value of a WEIGHT, or none
  uint32_t first = 0;           // entry of pair 0 among all tables'
  int64_t half = 0;
  double base = 0, scale = 0;

  // `factors`: half of them, read from the weight or all 1. invalid_argument for one that gives no angle. The whole turns drop out; long double keeps
  // 64 bits of what is left where double has 53.
  Result<std::vector<uint64_t>> frequencies(std::span<const float> values) const {
    std::vector<uint64_t> result;
    for (int64_t j = 0; j < half; ++j) {
      const float factor = values[static_cast<size_t>(j)];
      const long double exponent = -2.0L * static_cast<long double>(j) / static_cast<long double>(2 * half);
      const long double turns = std::pow(static_cast<long double>(base), exponent) * static_cast<long double>(scale) /
                                static_cast<long double>(factor) / 6.283185307179586476925286766559L;
      if (!std::isfinite(turns)) return fail(Code::invalid_argument, text("rope: pair ", j, ": the factor is ", factor));
      const long double scaled = std::nearbyint((turns - std::floor(turns)) * 18446744073709551616.0L);
      result.push_back(scaled >= 18446744073709551616.0L ? 0 : static_cast<uint64_t>(scaled));
    }
    return result;
  }
};

struct RopeTables {
  std::vector<RopeTable> tables;
  uint32_t n_entries = 0;

  const RopeTable& table_of(const RopeOp& op) {
    for (const RopeTable& t : tables)
      if (t.factors == op.factors && t.half == op.half && t.base == op.base && t.scale == op.scale) return t;
    tables.push_back({.factors = op.factors, .first = n_entries, .half = op.half, .base = op.base, .scale = op.scale});
    n_entries += static_cast<uint32_t>(op.half);
    return tables.back();
  }

  // Of all tables, one after the other. `of_value`: the bindings of the weights by value, checked; factors are read through Buffer's read().
  template <class Buffer>
  Result<std::vector<uint64_t>> frequencies(std::span<const fth_binding* const> of_value) const {
    std::vector<uint64_t> all;
    for (const RopeTable& table : tables) {
      std::vector<float> factors(static_cast<size_t>(table.half), 1.0f);
      if (table.factors != kNoValue) {
        const fth_binding& b = *of_value[table.factors];
        FTH_RETURN_IF_ERROR(buffer_of<Buffer>(b)->read(b.offset, factors.data(), factors.size() * sizeof(float)));
      }
      FTH_ASSIGN_OR_RETURN(const std::vector<uint64_t> of_table, table.frequencies(factors));
      all.insert(all.end(), of_table.begin(), of_table.end());
    }
    return all;
  }
};

// What a submit and its bindings are checked against.
struct BindingRules {
  std::string name;                    // of the segment
  int64_t n_tokens = 1;                // the bucket
  int64_t max_end = int64_t{1} << 31;  // positions end here: a full cache without a window, or 31 bits
  uint32_t n_bindings = 0;             // the workspace not counted
  uint64_t workspace_bytes = 0;

  Result<> check_submit(std::span<const fth_binding> bindings, const int64_t* scalars) const {
    const size_t need = n_bindings + (workspace_bytes > 0 ? 1 : 0);
    if (bindings.size() != need || (need > 0 && !bindings.data()) || !scalars)
      return fail(Code::invalid_argument, text(name, ": ", bindings.size(), " bindings, need ", need, " and the scalars"));
    const int64_t n = scalars[FTH_SCALAR_TOKENS], pos = scalars[FTH_SCALAR_POS];
    if (n < 1 || n > n_tokens) return fail(Code::invalid_argument, text(name, ": ", n, " tokens, the bucket is ", n_tokens));
    if (pos < 0) return fail(Code::invalid_argument, text(name, ": position ", pos));
    if (pos > max_end - n)
      return fail(Code::out_of_range, text(name, ": positions from ", pos, " on, ", n, " of them: they end at ", max_end));
    return {};
  }

  // The backend's buffer behind a binding of at least `bytes` at a multiple of `alignment`. invalid_argument with `what`, `index` and the numbers.
  // Buffer has a bytes().
  template <class Buffer>
  Result<Buffer*> resolve(const fth_binding& b, uint64_t bytes, uint64_t alignment, std::string_view what, uint64_t index) const {
    const auto problem = [&](const std::string& why) {
      return fail(Code::invalid_argument, text(name, ": ", what, " ", index, ": ", why));
    };
    Buffer* const buffer = buffer_of<Buffer>(b);
    if (!buffer) return problem("no buffer is bound");
    if (const auto range = check_range(b.offset, b.bytes, buffer->bytes()); !range) return problem(range.error().message);
    if (b.bytes < bytes) return problem(text("a binding of ", b.bytes, " bytes, need ", bytes));
    if (b.offset % alignment != 0) return problem(text("offset ", b.offset, " is no multiple of ", alignment));
    return buffer;
  }
};

// The event of an executable that has one run at a time: waiting is the executable's.
template <class Executable>
class RunEvent {
 public:
  explicit RunEvent(Executable& executable) : executable_(executable) {}
  Result<> wait() { return executable_.wait(); }

 private:
  Executable& executable_;
};

// What a segment costs on a device with a queue where nobody measured it: bytes or multiply-adds, whichever take longer, each dispatch, the submit. Context has
// bytes_per_second(), flops_per_second(), dispatch_seconds(), launch_seconds(); Plan has bytes, flops, rules.
template <class Context, class Plan>
fth_estimate estimate_of(const Context& context, const Plan& plan, size_t n_dispatches, uint64_t resident_bytes) {
  fth_estimate e{};
  e.seconds = std::max(plan.bytes / context.bytes_per_second(), plan.flops / context.flops_per_second()) +
              context.dispatch_seconds() * static_cast<double>(n_dispatches) + context.launch_seconds();
  e.workspace_bytes = plan.rules.workspace_bytes;
  e.resident_bytes = resident_bytes;
  return e;
}

// Values of a device's options.
inline Result<bool> on_or_off(std::string_view backend, Options& options, const char* key, bool otherwise) {
  const std::optional<std::string> value = options.take(key);
  if (!value) return otherwise;
  if (*value == "on" || *value == "off") return *value == "on";
  return fail(Code::invalid_argument, text(backend, ": option ", key, "=", *value, ": need on or off"));
}
inline Result<double> rate(std::string_view backend, Options& options, const char* key) {
  const std::optional<std::string> value = options.take(key);
  if (!value) return 0.0;
  double rate = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), rate);
  if (error != std::errc{} || end != value->data() + value->size() || !(rate > 0 && rate < 1e20))
    return fail(Code::invalid_argument, text(backend, ": option ", key, "=", *value, ": need a number above 0"));
  return rate;
}

}  // namespace fth::sdk
#pragma GCC visibility pop
