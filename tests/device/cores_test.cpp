// Texts of the kernel's files and synthetic topologies, without the file system.

#include "core/device/cores.h"

#include <gmock/gmock.h>
#include <sched.h>

#include <array>

#include "core/device/registry.h"

namespace fth::cores {
namespace {

using ::testing::ElementsAre;

TEST(Cores, CpuMax) {
  EXPECT_EQ(parse_cpu_max("max 100000\n"), std::nullopt);
  EXPECT_EQ(parse_cpu_max("150000 100000\n"), 1.5);
  EXPECT_EQ(parse_cpu_max("400000 100000"), 4.0);
  for (const char* bad : {"", "\n", "100000", "0 100000", "-1 100000", "100000 0", "x y", "1e5 100000", "99999999999999999999 100000"})
    EXPECT_EQ(parse_cpu_max(bad), std::nullopt) << bad;
}

TEST(Cores, CfsQuota) {
  EXPECT_EQ(parse_cfs("-1\n", "100000\n"), std::nullopt);
  EXPECT_EQ(parse_cfs("250000\n", "100000\n"), 2.5);
  EXPECT_EQ(parse_cfs("250000", ""), std::nullopt);
}

TEST(Cores, QuotaRoundsDownToAtLeastOne) {
  EXPECT_EQ(limit_by_quota(64, std::nullopt), 64u);
  EXPECT_EQ(limit_by_quota(64, 1.49), 1u);
  EXPECT_EQ(limit_by_quota(64, 1.5), 2u);
  EXPECT_EQ(limit_by_quota(64, 0.1), 1u);
  EXPECT_EQ(limit_by_quota(64, 2.99), 3u);
  EXPECT_EQ(limit_by_quota(2, 64.0), 2u);
  EXPECT_EQ(limit_by_quota(0, std::nullopt), 1u);
}

TEST(Cores, FoldersOfV2UpToTheRoot) {
  EXPECT_THAT(quota_folders("0::/user.slice/app.scope\n"),
              ElementsAre(QuotaFolder{"/sys/fs/cgroup/user.slice/app.scope", true}, QuotaFolder{"/sys/fs/cgroup/user.slice", true},
                          QuotaFolder{"/sys/fs/cgroup", true}, QuotaFolder{"/sys/fs/cgroup/unified/user.slice/app.scope", true},
                          QuotaFolder{"/sys/fs/cgroup/unified/user.slice", true}, QuotaFolder{"/sys/fs/cgroup/unified", true}));
}

TEST(Cores, FoldersOfV1AreThoseOfTheCpuController) {
  EXPECT_THAT(quota_folders("5:memory:/m\n4:cpu,cpuacct:/a\n3:cpuset:/b\n"),
              ElementsAre(QuotaFolder{"/sys/fs/cgroup/cpu/a", false}, QuotaFolder{"/sys/fs/cgroup/cpu", false},
                          QuotaFolder{"/sys/fs/cgroup/cpu,cpuacct/a", false}, QuotaFolder{"/sys/fs/cgroup/cpu,cpuacct", false}));
}

TEST(Cores, FoldersOfOddTexts) {
  EXPECT_TRUE(quota_folders("").empty());
  EXPECT_TRUE(quota_folders("nonsense\n::\n:\n1\n").empty());
  EXPECT_THAT(quota_folders("0::/../../etc"),
              ElementsAre(QuotaFolder{"/sys/fs/cgroup", true}, QuotaFolder{"/sys/fs/cgroup/unified", true}));
  EXPECT_LE(quota_folders("0::" + std::string(10000, '/') + std::string(4000, 'a')).size(), 4u);
}

std::vector<uint32_t> counts(hwloc_topology_t topology, hwloc_const_cpuset_t allowed) {
  std::vector<uint32_t> n;
  for (const CoreKind& kind : core_kinds(topology, allowed)) n.push_back(kind.n_cores);
  return n;
}

TEST(Cores, OnePerPhysicalCoreThatTheMaskTouches) {
  hwloc_topology_t topology = nullptr;
  ASSERT_EQ(hwloc_topology_init(&topology), 0);
  ASSERT_EQ(hwloc_topology_set_synthetic(topology, "package:2 core:4 pu:2"), 0);
  ASSERT_EQ(hwloc_topology_load(topology), 0);
  const hwloc_bitmap_t mask = hwloc_bitmap_alloc_full();
  EXPECT_EQ(counts(topology, mask), std::vector<uint32_t>{8});
  hwloc_bitmap_zero(mask);
  hwloc_bitmap_set_range(mask, 0, 3);  // two cores, both threads of each
  EXPECT_EQ(counts(topology, mask), std::vector<uint32_t>{2});
  hwloc_bitmap_zero(mask);
  hwloc_bitmap_set(mask, 1);  // the second thread of core 0 alone
  EXPECT_EQ(counts(topology, mask), std::vector<uint32_t>{1});
  hwloc_bitmap_free(mask);
  hwloc_topology_destroy(topology);
}

// `fast` cores, then `slow` ones, of two hardware threads each. Info is what Linux gives: its name, its value of the fast and of the slow ones; null: not there.
struct Hybrid {
  hwloc_topology_t topology = nullptr;
  hwloc_bitmap_t all = hwloc_bitmap_alloc_full();
  Hybrid(unsigned fast, unsigned slow, std::vector<std::array<const char*, 3>> infos) {
    EXPECT_EQ(hwloc_topology_init(&topology), 0);
    const std::string shape = "core:" + std::to_string(fast + slow) + " pu:2";
    EXPECT_EQ(hwloc_topology_set_synthetic(topology, shape.c_str()), 0);
    EXPECT_EQ(hwloc_topology_load(topology), 0);
    for (size_t kind : {1u, 2u}) {
      std::vector<hwloc_info_s> of_kind;
      for (const auto& info : infos)
        if (info[kind] != nullptr) of_kind.push_back({const_cast<char*>(info[0]), const_cast<char*>(info[kind])});
      const hwloc_bitmap_t set = hwloc_bitmap_alloc();
      const int first = kind == 1 ? 0 : static_cast<int>(2 * fast), end = static_cast<int>(kind == 1 ? 2 * fast : 2 * (fast + slow));
      hwloc_bitmap_set_range(set, static_cast<unsigned>(first), end - 1);
      EXPECT_EQ(hwloc_cpukinds_register(topology, set, kind == 1 ? 1 : 0, static_cast<unsigned>(of_kind.size()), of_kind.data(), 0), 0);
      hwloc_bitmap_free(set);
    }
  }
  ~Hybrid() {
    hwloc_bitmap_free(all);
    hwloc_topology_destroy(topology);
  }
  std::vector<CoreKind> kinds() const { return core_kinds(topology, all); }
};

TEST(Cores, KindsOfAHybridProcessorAreCountedFastestFirst) {
  const Hybrid machine(4, 6, {{"FrequencyMaxMHz", "5200", "3900"}, {"CoreType", "IntelCore", "IntelAtom"}});
  const auto kinds = machine.kinds();
  ASSERT_EQ(kinds.size(), 2u);
  EXPECT_EQ(kinds[0].n_cores, 4u);
  EXPECT_EQ(kinds[0].max_mhz, 5200u);
  EXPECT_EQ(kinds[0].speed, 1.0);
  EXPECT_EQ(kinds[1].n_cores, 6u);
  EXPECT_EQ(kinds[1].speed, 0.75);
  EXPECT_TRUE(kinds[0].used && kinds[1].used);
  EXPECT_EQ(describe({.n_threads = 10, .kinds = kinds, .quota = {}}),
            "10 cores: 4 at 5200 MHz, 6 at 3900 MHz (about 0.75 of the fastest); 10 threads by default");
}

TEST(Cores, CapacityCountsMoreThanFrequencyAndVerySlowCoresAreLeftOut) {
  const Hybrid machine(2, 4, {{"FrequencyMaxMHz", "3000", "1800"}, {"LinuxCapacity", "1024", "220"}});
  const auto kinds = machine.kinds();
  ASSERT_EQ(kinds.size(), 2u);
  EXPECT_TRUE(kinds[0].used);
  EXPECT_FALSE(kinds[1].used);
  EXPECT_THAT(describe({.n_threads = 2, .kinds = kinds, .quota = 2.5}),
              ::testing::HasSubstr(
                  "4 at 1800 MHz (about 0.21 of the fastest: not used by default); 2 threads by default, within a CPU quota of 2.50"));
  // Kept on the slow ones alone, they are the fastest there are.
  hwloc_bitmap_t slow = hwloc_bitmap_alloc();
  hwloc_bitmap_set_range(slow, 4, 11);
  const auto alone = core_kinds(machine.topology, slow);
  hwloc_bitmap_free(slow);
  ASSERT_EQ(alone.size(), 1u);
  EXPECT_EQ(alone[0].n_cores, 4u);
  EXPECT_TRUE(alone[0].used);
}

TEST(Cores, KindsWithoutFiguresAreAllUsed) {
  for (const char* odd : {"", "fast", "-3", "99999999999999999999"}) {
    const Hybrid machine(2, 2, {{"FrequencyMaxMHz", "3000", nullptr}, {"LinuxCapacity", "1024", odd}});
    const auto kinds = machine.kinds();
    ASSERT_EQ(kinds.size(), 2u);
    for (const CoreKind& kind : kinds) {
      EXPECT_EQ(kind.n_cores, 2u);
      EXPECT_EQ(kind.speed, 0.0);
      EXPECT_TRUE(kind.used);
    }
  }
}

TEST(Cores, UsableCoresFollowsTheAffinityMask) {
  cpu_set_t before;
  CPU_ZERO(&before);
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  const uint32_t all = usable_cores();
  EXPECT_GE(all, 1u);
  EXPECT_LE(all, static_cast<uint32_t>(CPU_COUNT(&before)));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(usable_cores(), 1u);
  EXPECT_FALSE(parse_cpus("0-" + std::to_string(CPU_SETSIZE - 1)));  // all but one are not for this process
  ASSERT_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

TEST(Cores, ListsOfCpusAreRead) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  ASSERT_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
  std::vector<int> allowed;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(static_cast<size_t>(cpu), &mask)) allowed.push_back(cpu);
  std::string all;
  for (auto cpu = allowed.rbegin(); cpu != allowed.rend(); ++cpu) all += (all.empty() ? "" : ",") + std::to_string(*cpu);
  const auto read = parse_cpus(all);
  ASSERT_TRUE(read) << read.error().message;
  EXPECT_EQ(*read, std::vector<int>(allowed.rbegin(), allowed.rend()));  // in the order given
  const std::string one = std::to_string(allowed.front());
  EXPECT_EQ(parse_cpus(one + "-" + one).value_or(std::vector<int>{}), std::vector<int>{allowed.front()});
  for (const std::string& text : {std::string(), std::string(","), std::string("a"), std::string("-1"), one + "-", one + "," + one,
                                  std::string("5-2"), std::string("99999999999999999999"), std::string("0-99999999")}) {
    const auto result = parse_cpus(text);
    ASSERT_FALSE(result) << text;
    EXPECT_EQ(result.error().code, Code::invalid_argument);
    EXPECT_NE(result.error().message.find("\"" + text + "\""), std::string::npos) << result.error().message;
  }
}

}  // namespace
}  // namespace fth::cores
