// The trial of products in cooperative matrices.

#include "backends/vulkan/coop_trial.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/base/bytes.h"
#include "core/base/dtype.h"

namespace fth::vulkan {
namespace {

// About ten times what f16 of both factors costs; a tile in the wrong place is off by about 1.
constexpr double kTolerance = 1e-6;
// Of the plain time: less is within what timings are off, and the choice should not change from start to start.
constexpr double kWorthIt = 0.8;

struct Shape {
  DType type;
  int64_t tokens, k, m;
};

// One MATMUL with its buffers, the same numbers whichever way it is computed.
class Product {
 public:
  explicit Product(Context& context, const Shape& shape) : context_(context), shape_(shape) {}

  struct Ran {
    std::vector<float> y;
    double seconds = 0;  // the best of `times`
  };
  Result<Ran> run(const Limits& limits, int times) {
    const fth_tensor tensors[] = {tensor(DType::f32, FTH_ROLE_INPUT, shape_.tokens, shape_.k),
                                  tensor(shape_.type, FTH_ROLE_WEIGHT, shape_.m, shape_.k),
                                  tensor(DType::f32, FTH_ROLE_OUTPUT, shape_.tokens, shape_.m)};
    fth_op op{};
    op.kind = FTH_OP_MATMUL;
    op.n_in = 2;
    op.n_out = 1;
    op.in[0] = 0;
    op.in[1] = 1;
    op.out[0] = 2;
    const fth_segment segment{.struct_size = sizeof(fth_segment),
                              .n_tensors = 3,
                              .n_ops = 1,
                              .n_scalars = FTH_SCALAR_COUNT,
                              .name = "trial of cooperative matrices",
                              .tensors = tensors,
                              .ops = &op};
    FTH_ASSIGN_OR_RETURN(const sdk::SegmentView view, sdk::SegmentView::make(&segment));
    FTH_ASSIGN_OR_RETURN(SegmentPlan plan, plan_segment(view, limits));
    if (limits.coop) FTH_RETURN_IF_ERROR(coop_pipelines(context_, plan));
    const uint64_t y_bytes = *sdk::tensor_bytes(tensors[2]), workspace = plan.rules.workspace_bytes;
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> x, filled(activations()));
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> w, filled(weights(*sdk::tensor_bytes(tensors[1]))));
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> y, filled(std::vector<std::byte>(y_bytes)));
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> scratch, filled(std::vector<std::byte>(std::max<uint64_t>(workspace, 16))));
    const fth_binding weight = whole(*w);
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Executable> executable, Executable::make(context_, std::move(plan), {&weight, 1}));

    std::vector<fth_binding> bindings{whole(*x), whole(*y)};
    if (workspace > 0) bindings.push_back(whole(*scratch));
    int64_t scalars[FTH_SCALAR_COUNT] = {};
    scalars[FTH_SCALAR_TOKENS] = shape_.tokens;
    Ran ran{.y = std::vector<float>(y_bytes / sizeof(float)), .seconds = 1e9};
    for (int i = 0; i < times; ++i) {
      const auto start = std::chrono::steady_clock::now();
      FTH_RETURN_IF_ERROR(executable->submit(bindings, scalars));
      FTH_RETURN_IF_ERROR(executable->wait());
      ran.seconds = std::min(ran.seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    FTH_RETURN_IF_ERROR(y->read(0, ran.y.data(), y_bytes));
    return ran;
  }

 private:
  static fth_tensor tensor(DType type, uint16_t role, int64_t rows, int64_t width) {
    return {.dtype = static_cast<uint16_t>(type), .role = role, .rank = 2, .dims = {rows, width, 0, 0}, .layout = 0};
  }
  static fth_binding whole(Buffer& b) {
    fth_binding binding{};
    binding.buffer = reinterpret_cast<fth_buffer*>(&b);
    binding.bytes = b.bytes();
    return binding;
  }
  Result<std::unique_ptr<Buffer>> filled(const std::vector<std::byte>& data) {
    FTH_ASSIGN_OR_RETURN(const Memory memory, context_.allocate(data.size(), Context::Use::storage));
    auto buffer = std::make_unique<Buffer>(context_, memory, data.size());
    FTH_RETURN_IF_ERROR(buffer->write(0, data.data(), data.size()));
    return buffer;
  }
  uint32_t random() { return seed_ = seed_ * 1664525u + 1013904223u; }
  // Rows of very different sizes, a few values far above the others.
  std::vector<std::byte> activations() {
    std::vector<float> x(static_cast<size_t>(shape_.tokens * shape_.k));
    for (size_t i = 0; i < x.size(); ++i) {
      const float unit = static_cast<float>(static_cast<int32_t>(random())) * 0x1p-31f;
      const int row = static_cast<int>(i / static_cast<size_t>(shape_.k));
      x[i] = std::ldexp(unit, row % 41 - 20 + (random() % 512 == 0 ? 6 : 0));
    }
    std::vector<std::byte> bytes(x.size() * sizeof(float));
    std::memcpy(bytes.data(), x.data(), bytes.size());
    return bytes;
  }
  // Any bits are weights but for the halves that scale a block, which get an exponent about 2^-6.
  std::vector<std::byte> weights(uint64_t n) {
    std::vector<std::byte> bytes(n);
    for (std::byte& b : bytes) b = static_cast<std::byte>(random() >> 24);
    const uint64_t block = traits(shape_.type).block_bytes;
    const bool two = shape_.type == DType::q4_1 || shape_.type == DType::q4_k;
    for (uint64_t at = 0; at < n; at += block)
      for (uint64_t half = 0; half < (two ? 2u : 1u); ++half) {
        const uint64_t high = at + (shape_.type == DType::q6_k ? block - 2 : 2 * half) + 1;
        bytes[high] = (bytes[high] & std::byte{0x83}) | std::byte{0x24};
      }
    return bytes;
  }

  Context& context_;
  Shape shape_;
  uint32_t seed_ = 1;
};

// Over all rows, each against its own size.
double worst_error(const std::vector<float>& got, const std::vector<float>& wanted, int64_t width) {
  double worst = 0;
  for (size_t row = 0; row < wanted.size(); row += static_cast<size_t>(width)) {
    double power = 0, error = 0;
    for (size_t i = row; i < row + static_cast<size_t>(width); ++i) {
      power += double{wanted[i]} * wanted[i];
      error += (double{got[i]} - wanted[i]) * (double{got[i]} - wanted[i]);
    }
    const double ratio = error / power;
    if (!(ratio <= worst)) worst = ratio;  // NaN is the worst
    if (std::isnan(ratio)) return ratio;
  }
  return worst;
}

// Empty: all types agree.
Result<std::string> disagreement(Context& context, const Limits& coop, const Limits& plain, std::span<const DType> types) {
  for (const DType type : types) {
    const Shape shape{type, 37, 512, 67};
    FTH_ASSIGN_OR_RETURN(const Product::Ran a, Product(context, shape).run(coop, 1));
    FTH_ASSIGN_OR_RETURN(const Product::Ran b, Product(context, shape).run(plain, 1));
    const double error = worst_error(a.y, b.y, shape.m);
    if (!(error <= kTolerance))
      return text("products of ", name(type), " are wrong: normalised square error ", error, ", at most ", kTolerance);
  }
  return std::string();
}

}  // namespace

Result<> coop_pipelines(Context& context, const SegmentPlan& plan) {
  for (const Dispatch& d : plan.dispatches)
    if (d.shader == Shader::matmul_coop) FTH_RETURN_IF_ERROR(context.pipeline(d.shader, d.constants));
  return {};
}

Result<> try_coop(Context& context) {
  if (!context.limits().coop) return {};
  const bool required = context.coop_mode() == CoopMode::on;
  if (!required && !context.measured()) {
    context.drop_coop(FTH_LOG_DEBUG, "off on software");
    return {};
  }
  const Limits coop = context.limits();
  Limits plain = coop;
  plain.coop = {};
  const Shape large{DType::q4_0, 64, 2048, 2048};
  const double flops = 2.0 * 64 * 2048 * 2048;
  int32_t level = FTH_LOG_WARNING;
  std::string detail;
  const auto attempt = [&]() -> Result<std::string> {
    // Compiling every type's pipelines takes seconds on some drivers: who asks for them has one tried.
    constexpr DType kTypes[] = {DType::q4_0, DType::q8_0, DType::q4_1, DType::q4_k, DType::q6_k};
    FTH_ASSIGN_OR_RETURN(std::string wrong, disagreement(context, coop, plain, std::span(kTypes).first(required ? 1 : std::size(kTypes))));
    if (!wrong.empty() || !context.measured()) {
      if (wrong.empty()) context.set_coop_speed(context.flops_per_second(), "as asked for, not timed");
      return wrong;
    }
    FTH_ASSIGN_OR_RETURN(const Product::Ran a, Product(context, large).run(coop, 4));
    FTH_ASSIGN_OR_RETURN(const Product::Ran b, Product(context, large).run(plain, 4));
    const double seconds = std::max(1e-7, a.seconds - context.launch_seconds());
    const std::string how =
        text("2048 x 2048 of q4_0 with 64 tokens: ", std::lround(a.seconds * 1e6), " us, plain ", std::lround(b.seconds * 1e6), " us");
    if (!required && a.seconds > kWorthIt * b.seconds) {
      level = FTH_LOG_INFO;
      detail = ", " + how;
      return std::string("slower");
    }
    context.set_coop_speed(flops / seconds, how);
    return std::string();
  };
  const Result<std::string> why = attempt();
  if (why && why->empty()) return {};
  const std::string reason = why ? *why : why.error().message;
  if (required) return fail(why ? Code::internal : why.error().code, text(context.label(), ": coopmat=on: ", reason));
  context.drop_coop(level, reason, detail);
  return {};
}

}  // namespace fth::vulkan
