// --cpu-only: no plugin file is opened, though plugins lie beside the program and are named. A program of its own, because plugins of other tests
// stay mapped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "core/device/registry.h"
#include "tests/device/test_backend.h"

namespace fth {

std::span<const fth_backend_query_fn> builtin_backends() {
  static constexpr fth_backend_query_fn kAll[] = {&sdk::query<test::AddBackend<test::DefaultConfig>>};
  return kAll;
}

namespace {

std::string read_all(const std::filesystem::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
}

RegistryOptions cpu_only() {
  RegistryOptions o;
  o.n_threads = 1;
  o.builtin_only = true;
  o.plugin_paths = {FTH_TEST_PLUGINS, std::filesystem::path(FTH_TEST_PLUGINS) / "libfth_newer_minor.so"};
  return o;
}

TEST(BuiltinOnly, MapsNoPlugin) {
  const auto r = Registry::open(cpu_only());
  ASSERT_TRUE(r);
  EXPECT_EQ(read_all("/proc/self/maps").find("libfth_"), std::string::npos);
  EXPECT_EQ((*r)->backends().size(), 1u);
  EXPECT_TRUE((*r)->searched().empty());
}

TEST(BuiltinOnly, OpensNoPluginFile) {
  if (std::system("strace -V > /dev/null 2>&1") != 0) GTEST_SKIP() << "strace is not installed";
  const std::filesystem::path trace = std::filesystem::temp_directory_path() / ("fth_builtin_only." + std::to_string(getpid()));
  const std::string program = std::filesystem::canonical("/proc/self/exe");
  const std::string command =
      "strace -f -e trace=%file -o '" + trace.string() + "' '" + program + "' --gtest_filter=BuiltinOnly.MapsNoPlugin > /dev/null 2>&1";
  if (std::system(command.c_str()) != 0 && read_all(trace).find("exited with") == std::string::npos) {
    std::filesystem::remove(trace);
    GTEST_SKIP() << "strace may not trace here";
  }
  const std::string calls = read_all(trace);
  std::filesystem::remove(trace);
  EXPECT_THAT(calls, ::testing::HasSubstr("/proc/self/maps"));
  EXPECT_EQ(calls.find("libfth_"), std::string::npos);
  EXPECT_EQ(calls.find(FTH_TEST_PLUGINS), std::string::npos);
}

}  // namespace
}  // namespace fth
