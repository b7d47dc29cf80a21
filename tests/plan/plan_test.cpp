// The planner on hand-made costs: the path it takes, what it refuses, and the numbers in its messages.
#include "core/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/base/bytes.h"

namespace fth {
namespace {

using testing::HasSubstr;

SegmentCost cost(double seconds) { return {true, "", seconds, 0, 0}; }

// embed, then attention and experts per layer, then head, on a CPU and one accelerator.
struct World {
  std::vector<PlanDevice> devices{{"cpu", true, 0, 0, ""}, {"gpu:0", false, 8 * kGiB, 1e9, ""}};
  std::vector<PlanSegment> segments;
  PlanOptions options;

  explicit World(int64_t layers, double cpu_attention, double gpu_attention) {
    options.ram_available = 64 * kGiB;
    const auto add = [&](std::string name, SegmentKind kind, int64_t layer, bool host_only, double cpu, double gpu) {
      PlanSegment s;
      s.name = std::move(name);
      s.kind = kind;
      s.layer = layer;
      s.host_only = host_only;
      s.in_bytes = 1000;  // one microsecond at 1 GB/s
      s.out_bytes = 1000;
      s.weight_bytes = kMiB;
      s.cost = {cost(cpu), cost(gpu)};
      segments.push_back(s);
    };
    add("embed", SegmentKind::embed, -1, true, 1e-6, 1e-6);
    for (int64_t l = 0; l < layers; ++l) {
      const std::string prefix = "layer." + std::to_string(l) + ".";
      add(prefix + "attention", SegmentKind::attention, l, false, cpu_attention, gpu_attention);
      add(prefix + "experts", SegmentKind::experts, l, true, 100e-6, 1e-6);
    }
    add("head", SegmentKind::head, -1, false, 500e-6, 450e-6);
  }
  Result<Plan> plan() const { return make_plan(devices, segments, {{"program", "ram", 10 * kMiB}}, 123, options); }
};

std::vector<size_t> devices_of(const Plan& p) {
  std::vector<size_t> d;
  for (const Placement& q : p.placements) d.push_back(q.device);
  return d;
}

TEST(Plan, PutsAttentionWhereItIsFasterThanItsCopies) {
  const auto p = World(2, 80e-6, 20e-6).plan();
  ASSERT_TRUE(p) << p.error().message;
  EXPECT_EQ(devices_of(*p), (std::vector<size_t>{0, 1, 0, 1, 0, 1}));
  // embed 1 + 2 x (copy 1 + attention 20 + copy 1 + experts 100) + copy 1 + head 450, in microseconds.
  EXPECT_NEAR(p->seconds_per_token, (1 + 2 * 122 + 451) * 1e-6, 1e-12);
  EXPECT_EQ(p->placements[1].runner_up, 0u);
}

TEST(Plan, KeepsAttentionWhereCopiesEatTheGain) {
  World w(2, 21e-6, 20e-6);
  const auto p = w.plan();
  ASSERT_TRUE(p);
  EXPECT_EQ(devices_of(*p), (std::vector<size_t>{0, 0, 0, 0, 0, 1}));
}

TEST(Plan, WeighsPromptsAndDecoding) {
  World w(2, 30e-6, 40e-6);  // slower for a token, copies and all
  for (PlanSegment& s : w.segments)
    if (s.kind == SegmentKind::attention) s.cost[0].step_seconds = 8e-3, s.cost[1].step_seconds = 1e-3;
  w.options.ubatch = 512;  // a step's copies: 512 us in, 512 us out
  EXPECT_EQ(w.plan()->placements[1].device, 0u) << "decoding alone counts";
  w.options.steps_per_token = 1.0 / 256;  // a prompt of 512 tokens and 256 decoded ones: 5.9 ms saved against 256 x 12 us
  EXPECT_EQ(w.plan()->placements[1].device, 1u);
  w.options.steps_per_token = 1.0 / 2048;
  EXPECT_EQ(w.plan()->placements[1].device, 0u);
}

TEST(Plan, WhatRunsBesideTheCpuIsNotCounted) {
  World w(2, 30e-6, 30e-6);
  for (PlanSegment& s : w.segments) {
    if (s.kind == SegmentKind::attention) s.cost[0].step_seconds = 4e-3, s.cost[1].step_seconds = 5e-3, s.hides_seconds = 4e-3;
    if (s.kind == SegmentKind::experts) s.cost[0].step_seconds = 4e-3;
  }
  w.options.ubatch = 128;
  w.options.steps_per_token = 4.0 / 256;
  w.options.share_of_pairs = 1;
  w.options.overlap = true;
  EXPECT_EQ(w.plan()->placements[1].device, 0u) << "the device's runs are on the CPU's cores";
  w.devices[1].beside_cpu = true;
  const auto p = w.plan();
  ASSERT_TRUE(p);
  EXPECT_EQ(p->placements[1].device, 1u);
  EXPECT_TRUE(p->overlap);
  // Each of two layers: 128 us in and out, 4 ms of experts, 5 ms of attention of which 1 ms shows. The head's copy: 128 us.
  EXPECT_NEAR(p->overlap_seconds, 2 * (2 * 128e-6 + 4e-3 + 1e-3) + 128e-6, 1e-9);
  EXPECT_NEAR(p->step_seconds, 2 * (2 * 128e-6 + 4e-3 + 5e-3) + 128e-6, 1e-9);
  w.options.overlap = false;
  EXPECT_EQ(w.plan()->placements[1].device, 0u);
  EXPECT_EQ(w.plan()->overlap_seconds, 0);
}

TEST(Plan, ActivationsCountAsTheDevicesMemory) {
  World w(2, 80e-6, 20e-6);
  w.devices[1].fixed_bytes = 8 * kGiB - 3 * kMiB;
  auto p = w.plan();
  ASSERT_TRUE(p);
  EXPECT_EQ(p->placements[1].device, 1u);
  w.devices[1].fixed_bytes = 8 * kGiB;
  p = w.plan();
  ASSERT_TRUE(p);
  for (const Placement& q : p->placements) EXPECT_EQ(q.device, 0u) << q.segment;
}

TEST(Plan, BeatsOrEqualsEverySingleDevicePlan) {
  for (const double cpu : {1e-6, 19e-6, 22e-6, 23e-6, 60e-6}) {
    World w(3, cpu, 20e-6);
    const double mixed = w.plan()->seconds_per_token;
    w.options.cpu_only = true;
    EXPECT_LE(mixed, w.plan()->seconds_per_token);
    w.options.cpu_only = false;
    w.options.device = "gpu:0";
    EXPECT_LE(mixed, w.plan()->seconds_per_token);
  }
}

TEST(Plan, CpuOnlySaysWhyTheOtherIsNotUsed) {
  World w(1, 80e-6, 20e-6);
  w.options.cpu_only = true;
  const auto p = w.plan();
  ASSERT_TRUE(p);
  EXPECT_EQ(devices_of(*p), (std::vector<size_t>{0, 0, 0, 0}));
  ASSERT_EQ(p->refusals.size(), 1u);
  EXPECT_EQ(p->refusals[0].subject, "gpu:0");
  EXPECT_EQ(p->refusals[0].reason, "--cpu-only");
}

TEST(Plan, ARefusedDeviceIsUsedOnlyWhenNamed) {
  World w(1, 80e-6, 20e-6);
  w.devices[1].refusal = "software device";
  EXPECT_EQ(devices_of(*w.plan()), (std::vector<size_t>{0, 0, 0, 0}));
  w.options.device = "gpu:0";
  EXPECT_EQ(devices_of(*w.plan()), (std::vector<size_t>{0, 1, 0, 1}));
}

TEST(Plan, UnsupportedSegmentsStayWithTheirReason) {
  World w(1, 80e-6, 20e-6);
  w.segments[1].cost[1] = {false, "matmul weight q4_k: only q4_0", 0, 0, 0};
  const auto p = w.plan();
  ASSERT_TRUE(p);
  EXPECT_EQ(p->placements[1].device, 0u);
  ASSERT_EQ(p->refusals.size(), 1u);
  EXPECT_EQ(p->refusals[0].reason, "matmul weight q4_k: only q4_0");
}

TEST(Plan, RulesOverruleCosts) {
  World w(2, 80e-6, 20e-6);
  w.options.rules = {{"layer.*.attention", "cpu"}, {"layer.1.attention", "gpu:0"}};
  EXPECT_EQ(devices_of(*w.plan()), (std::vector<size_t>{0, 0, 0, 1, 0, 1}));
}

TEST(Plan, BadRulesAndDevicesAreNamed) {
  World w(1, 80e-6, 20e-6);
  w.options.rules = {{"layer.9.attention", "cpu"}};
  EXPECT_THAT(w.plan().error().message, HasSubstr("no segment has such a name"));
  w.options.rules = {{"layer.*.experts", "gpu:0"}};
  EXPECT_THAT(w.plan().error().message, HasSubstr("runs on cpu only"));
  w.options.rules = {{"head", "npu:0"}};
  EXPECT_EQ(w.plan().error().message, "no device named \"npu:0\"; there are: cpu, gpu:0");
  w.options.rules = {};
  w.options.device = "tpu";
  EXPECT_EQ(w.plan().error().code, Code::invalid_argument);
}

TEST(Plan, RefusesWhatDoesNotFitAndNamesTheBudgetThatWould) {
  World w(2, 80e-6, 20e-6);
  w.options.cpu_only = true;
  w.options.ram_budget = 12 * kMiB;
  const auto p = w.plan();
  ASSERT_FALSE(p);
  EXPECT_EQ(p.error().code, Code::resource_exhausted);
  EXPECT_THAT(p.error().message, HasSubstr("16.00 MiB of RAM needed"));
  EXPECT_THAT(p.error().message, HasSubstr("--ram 16MiB"));
  w.options.ram_budget = 16 * kMiB;
  EXPECT_TRUE(w.plan());
}

TEST(Plan, FillsDeviceMemoryAndLeavesTheRestOnTheCpu) {
  World w(4, 80e-6, 20e-6);
  w.options.vram_budget = 3 * kMiB;
  const auto p = w.plan();
  ASSERT_TRUE(p) << p.error().message;
  int on_gpu = 0;
  for (const Placement& q : p->placements) on_gpu += q.device == 1;
  EXPECT_EQ(on_gpu, 3);
  EXPECT_THAT(p->refusals[0].reason, HasSubstr("its memory is full"));
  uint64_t device_bytes = 0;
  for (const Arena& a : p->arenas) device_bytes += a.device == "gpu:0" ? a.bytes : 0;
  EXPECT_LE(device_bytes, 3 * kMiB);
}

TEST(Plan, IsDeterministicAndPrefersTheLowerIndexOnTies) {
  World w(2, 20e-6, 20e-6);
  w.devices[1].host_memory = true;  // no copies: a tie
  w.segments.back().cost = {cost(1e-6), cost(1e-6)};
  EXPECT_EQ(devices_of(*w.plan()), (std::vector<size_t>{0, 0, 0, 0, 0, 0}));
}

}  // namespace
}  // namespace fth
