// The ops that go over tokens one by one: EMBED, RMS_NORM, ADD, GLU, COMBINE. All read and write a few rows and no more; a single token runs
// on the calling thread, because waking another costs as much as the work.

#include <cstring>

#include "backends/cpu/planner.h"

namespace fth::cpu {

Result<> plan_embed(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(2, 2, 1));
  EmbedStep s{};
  s.vocab = s.width = -1;
  FTH_ASSIGN_OR_RETURN(s.ids, p.input(0, "ids", DType::i32, {{"N", &p.plan.n_tokens}}));
  FTH_ASSIGN_OR_RETURN(s.table, p.input(1, "table", {{"V", &s.vocab}, {"E", &s.width}}));
  FTH_RETURN_IF_ERROR(p.check_weight("table", s.table));
  if (p.tensor(s.table).role == FTH_ROLE_SLOTS) return p.invalid("the table has the role slots");
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  s.type = p.dtype(s.table);
  s.row_bytes = row_bytes(s.type, s.width);
  p.plan.bytes += static_cast<double>(s.row_bytes) * static_cast<double>(p.plan.n_tokens);
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const EmbedStep& s, const Run& run) {
  const int32_t* const ids = run.at<const int32_t>(s.ids);
  for (int64_t t = 0; t < run.n_tokens; ++t)
    if (ids[t] < 0 || ids[t] >= s.vocab)
      return fail(Code::out_of_range, text("embed: id ", ids[t], " of token ", t, ", the table has ", s.vocab, " rows"));
  const std::byte* const table = run.at<const std::byte>(s.table);
  float* const y = run.at<float>(s.y);
  for_tokens(run, s.width, [&](int64_t t) {
    run.kernels.dequantize[static_cast<size_t>(s.type)](s.width, table + static_cast<uint64_t>(ids[t]) * s.row_bytes, y + t * s.width);
  });
  return {};
}

Result<> plan_norm(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(2, 2, 1));
  NormStep s{};
  s.width = -1;
  FTH_ASSIGN_OR_RETURN(s.x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.weight, p.input(1, "weight", DType::f32, {{"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(const double eps, p.finite(0, "eps"));
  if (eps < 0) return p.invalid(text("attribute 0 (eps) is ", eps, ", need at least 0"));
  s.eps = static_cast<float>(eps);
  p.plan.flops += 4.0 * static_cast<double>(s.width) * static_cast<double>(p.plan.n_tokens);
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const NormStep& s, const Run& run) {
  const float* const x = run.at<const float>(s.x);
  const float* const weight = run.at<const float>(s.weight);
  float* const y = run.at<float>(s.y);
  for_tokens(run, 2 * s.width, [&](int64_t t) { run.kernels.rms_norm(s.width, x + t * s.width, weight, s.eps, y + t * s.width); });
  return {};
}

Result<> plan_add(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(2, 2, 1));
  AddStep s{};
  s.width = -1;
  FTH_ASSIGN_OR_RETURN(s.a, p.input(0, "a", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.b, p.input(1, "b", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const AddStep& s, const Run& run) {
  const float* const a = run.at<const float>(s.a);
  const float* const b = run.at<const float>(s.b);
  float* const y = run.at<float>(s.y);
  for_tokens(run, 2 * s.width, [&](int64_t t) { run.kernels.add(s.width, a + t * s.width, b + t * s.width, y + t * s.width); });
  return {};
}

Result<> plan_glu(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(2, 2, 1));
  GluStep s{};
  s.width = -1;
  FTH_ASSIGN_OR_RETURN(s.gate, p.input(0, "gate", DType::f32, {{"N", &p.plan.n_tokens}, {"F", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.up, p.input(1, "up", DType::f32, {{"N", &p.plan.n_tokens}, {"F", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.y, p.output(0, "y", {{"N", &p.plan.n_tokens}, {"F", &s.width}}));
  FTH_ASSIGN_OR_RETURN(const int64_t activation, p.integer(0, "activation", 0, 1));
  s.silu = activation == 1;
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const GluStep& s, const Run& run) {
  const float* const gate = run.at<const float>(s.gate);
  const float* const up = run.at<const float>(s.up);
  float* const y = run.at<float>(s.y);
  const auto mul = s.silu ? run.kernels.silu_mul : run.kernels.relu_mul;
  for_tokens(run, 2 * s.width, [&](int64_t t) { mul(s.width, gate + t * s.width, up + t * s.width, y + t * s.width); });
  return {};
}

Result<> plan_combine(Planner& p) {
  FTH_RETURN_IF_ERROR(p.arity(3, 3, 1));
  CombineStep s{};
  s.width = s.top_k = -1;
  int64_t rows = -1;
  FTH_ASSIGN_OR_RETURN(s.x, p.input(0, "x", DType::f32, {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.weights, p.input(2, "weights", DType::f32, {{"N", &p.plan.n_tokens}, {"K", &s.top_k}}));
  rows = p.plan.n_tokens * s.top_k;
  FTH_ASSIGN_OR_RETURN(s.y, p.input(1, "y", DType::f32, {{"N*K", &rows}, {"E", &s.width}}));
  FTH_ASSIGN_OR_RETURN(s.out, p.output(0, "out", {{"N", &p.plan.n_tokens}, {"E", &s.width}}));
  p.plan.flops += 2.0 * static_cast<double>(s.width) * static_cast<double>(rows);
  p.plan.steps.push_back(s);
  return {};
}

Result<> run_step(const CombineStep& s, const Run& run) {
  const float* const x = run.at<const float>(s.x);
  const float* const y = run.at<const float>(s.y);
  const float* const weights = run.at<const float>(s.weights);
  float* const out = run.at<float>(s.out);
  const auto axpy = run.kernels.axpy[static_cast<size_t>(DType::f32)];
  for_tokens(run, (s.top_k + 1) * s.width, [&](int64_t t) {
    float* const row = out + t * s.width;
    std::memmove(row, x + t * s.width, static_cast<size_t>(s.width) * sizeof(float));  // a host may bind x and out to one buffer
    for (int64_t rank = t * s.top_k; rank < (t + 1) * s.top_k; ++rank) axpy(s.width, weights[rank], y + rank * s.width, row);
  });
  return {};
}

}  // namespace fth::cpu
