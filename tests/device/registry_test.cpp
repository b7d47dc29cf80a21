// The registry with good plugins, bad plugins and files that are none. FTH_TEST_PLUGINS is where the build put the plugins of plugins/*.cpp.

#include "core/device/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <mutex>
#include <numeric>

#include "core/device/elf_file.h"
#include "tests/device/segment_maker.h"
#include "tests/device/test_backend.h"

namespace {
using LinkedIn = fth::test::AddBackend<fth::test::DefaultConfig>;
// The registry knows its cpu options belong to the backend of this name.
struct CpuConfig : fth::test::DefaultConfig {
  static constexpr const char* kName = "cpu";
  static constexpr const char* kDevice = "cpu";
};
bool g_with_builtin = true;
}  // namespace

namespace fth {

std::span<const fth_backend_query_fn> builtin_backends() {
  static constexpr fth_backend_query_fn kAll[] = {&sdk::query<LinkedIn>, &sdk::query<test::AddBackend<CpuConfig>>};
  return {kAll, g_with_builtin ? size_t{2} : size_t{0}};
}

namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

fs::path plugin(const std::string& name) { return fs::path(FTH_TEST_PLUGINS) / ("libfth_" + name + ".so"); }

std::string maps() {
  std::ifstream in("/proc/self/maps");
  return {std::istreambuf_iterator<char>(in), {}};
}

class RegistryTest : public ::testing::Test {
 protected:
  RegistryTest() {
    dir_ = fs::temp_directory_path() / ("fth_registry_test." + std::to_string(getpid()));
    fs::remove_all(dir_);
    fs::create_directories(dir_);
    options_.n_threads = 2;
  }
  ~RegistryTest() override {
    g_with_builtin = true;
    fs::remove_all(dir_);
  }

  std::unique_ptr<Registry> open() {
    auto r = Registry::open(options_);
    EXPECT_TRUE(r) << r.error().message;
    return r ? *std::move(r) : nullptr;
  }
  // The report of the file, or an empty one.
  static BackendReport report(const Registry& r, const fs::path& file) {
    for (const BackendReport& b : r.backends())
      if (b.path == file.string()) return b;
    ADD_FAILURE() << "no report for " << file;
    return {};
  }
  BackendReport report_of(const fs::path& file) {
    options_.plugin_paths = {file};
    const auto r = open();
    return r ? report(*r, file) : BackendReport{};
  }

  fs::path dir_;
  RegistryOptions options_;
};

TEST_F(RegistryTest, LinkedInBackendsComeFirstAndWork) {
  const auto r = open();
  ASSERT_GE(r->backends().size(), 2u);
  EXPECT_EQ(r->backends()[0].name, "add");
  EXPECT_TRUE(r->backends()[0].loaded);
  EXPECT_EQ(r->backends()[0].path, "");
  EXPECT_THAT(r->backends()[0].build, HasSubstr("forethought " FTH_SDK_VERSION));
  ASSERT_TRUE(r->find("add:0"));
  EXPECT_EQ(*r->find("add:0"), 0u);
  const auto missing = r->find("vulkan:3");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Code::not_found);
  EXPECT_THAT(missing.error().message, AllOf(HasSubstr("'vulkan:3'"), HasSubstr("add:0, cpu")));
  EXPECT_EQ(r->pool().n_threads(), 2u);
}

// One segment through the handles: estimate, compile, bind, run; the body runs on the registry's pool.
void add_on(Device& device) {
  const test::TestSegment s = test::TestSegment::add(3, 5);
  const fth_segment raw = s.view();
  ASSERT_TRUE(device.estimate(raw));
  const auto x = device.compile(raw, {});
  ASSERT_TRUE(x) << x.error().message;
  std::vector<float> a(15), y(15, -1.0f);
  std::iota(a.begin(), a.end(), 0.0f);
  const auto in = device.alloc(60), out = device.import_host(y.data(), 60);
  ASSERT_TRUE(in && out);
  ASSERT_TRUE(in->write(0, a.data(), 60));
  const fth_binding bindings[] = {in->whole(), in->at(0, 60), out->whole()};
  const int64_t scalars[FTH_SCALAR_COUNT] = {2, 0, 0};
  const Result<> ran = x->run(bindings, scalars);
  ASSERT_TRUE(ran) << ran.error().message;
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[9], 18.0f);
  EXPECT_EQ(y[10], -1.0f) << "row 2 holds no token";
  EXPECT_FALSE(x->run(std::span(bindings).first(2), scalars));
  float back = 0;
  ASSERT_TRUE(out->read(36, &back, 4));
  EXPECT_EQ(back, 18.0f);
  const Result<> past = in->write(58, a.data(), 4);
  ASSERT_FALSE(past);
  EXPECT_EQ(past.error().code, Code::out_of_range);
  EXPECT_THAT(past.error().message, HasSubstr("4 bytes at 58 of a buffer of 60 bytes"));
}

TEST_F(RegistryTest, RunsASegmentOnALinkedInBackend) { add_on(open()->devices()[0].device); }

TEST_F(RegistryTest, RunsASegmentOnAPluginOfANewerMinorVersion) {
  options_.plugin_paths = {plugin("newer_minor")};
  const auto r = open();
  const BackendReport b = report(*r, plugin("newer_minor"));
  EXPECT_TRUE(b.loaded) << b.reason;
  EXPECT_EQ(b.name, "newer");
  EXPECT_EQ(b.reason, "");
  ASSERT_TRUE(r->find("newer:0"));
  add_on(r->devices()[*r->find("newer:0")].device);
}

struct Refusal {
  const char* file;
  const char* reason;
};
class BadPlugin : public RegistryTest, public ::testing::WithParamInterface<Refusal> {};

TEST_P(BadPlugin, IsListedWithItsReason) {
  const BackendReport b = report_of(plugin(GetParam().file));
  EXPECT_FALSE(b.loaded);
  EXPECT_EQ(b.name, GetParam().file);
  EXPECT_THAT(b.reason, HasSubstr(GetParam().reason));
}

INSTANTIATE_TEST_SUITE_P(Device, BadPlugin,
                         ::testing::Values(Refusal{"no_symbol", "has no symbol fth_backend_query: not a forethought plugin"},
                                           Refusal{"other_major", "serves ABI 2, this program serves 1.2"},
                                           Refusal{"lying_major", "built for ABI 2.2, this program serves 1.2"},
                                           Refusal{"null_function", "lacks estimate, wait"}, Refusal{"short_table", "lacks submit, wait"},
                                           Refusal{"garbage_size", "struct_size 3735928559, expected 152 (ABI 1.2)"},
                                           Refusal{"bad_name", "no usable name"},
                                           Refusal{"throws_query", "fth_backend_query threw: no driver today"},
                                           Refusal{"undefined_symbol", "fth_test_nowhere_defined"},
                                           Refusal{"wants_sanitizer", "san, this program with"}),
                         [](const auto& test) { return test.param.file; });

TEST_F(RegistryTest, PluginsWithoutADeviceAreLoadedAndSayWhy) {
  const auto expect = [&](const char* name, const char* reason) {
    const BackendReport b = report_of(plugin(name));
    EXPECT_TRUE(b.loaded) << name << ": " << b.reason;
    EXPECT_THAT(b.reason, HasSubstr(reason));
  };
  expect("count_fails", "libnodriver.so.1 is not installed");
  expect("no_devices", "reports no device");
  expect("open_fails", "device 1: in use by another process");
  expect("throws_raw", "threw an exception through the boundary: unguarded");
}

TEST_F(RegistryTest, TheDevicesThatOpenAreKept) {
  options_.plugin_paths = {plugin("open_fails")};
  const auto r = open();
  EXPECT_TRUE(r->find("halfopen:0"));
}

TEST_F(RegistryTest, SoftwareDevicesAreListedAndRefused) {
  options_.plugin_paths = {plugin("software")};
  const auto r = open();
  ASSERT_TRUE(r->find("software:0"));
  EXPECT_EQ(r->devices()[*r->find("software:0")].refusal, "software device (adds on 2 threads): listed, not chosen");
  EXPECT_EQ(r->devices()[0].refusal, "");
}

TEST_F(RegistryTest, EveryThrowingFunctionBecomesAnError) {
  options_.plugin_paths = {plugin("throws_guarded")};
  const auto r = open();
  EXPECT_THAT(report(*r, plugin("throws_guarded")).reason, HasSubstr("device 1: boom in open"));
  ASSERT_TRUE(r->find("throwing:0"));
  Device& d = r->devices()[*r->find("throwing:0")].device;
  char byte = 0;
  const auto big = d.alloc(9);
  ASSERT_FALSE(big);
  EXPECT_EQ(big.error().code, Code::resource_exhausted);
  const auto b = d.alloc(1);
  ASSERT_TRUE(b);
  EXPECT_EQ(b->write(0, &byte, 1).error().message, "boom in write");
  EXPECT_EQ(b->read(0, &byte, 1).error().message, "unknown exception");
  EXPECT_EQ(d.import_host(&byte, 1).error().message, "boom in import_host");
  test::TestSegment s = test::TestSegment::add(1, 1);
  fth_segment raw = s.view();
  EXPECT_EQ(d.estimate(raw).error().message, "boom in estimate");
  const auto x = d.compile(raw, {});
  ASSERT_TRUE(x);
  const int64_t scalars[FTH_SCALAR_COUNT] = {1, 0, 0};
  EXPECT_EQ(x->run({}, scalars).error().message, "boom in wait");
  EXPECT_EQ(x->run({}, scalars).error().message, "boom in submit");
  raw.n_ops = 0;
  EXPECT_EQ(d.compile(raw, {}).error().message, "boom in compile");
}

TEST_F(RegistryTest, FilesThatAreNoLibraries) {
  const fs::path text = dir_ / "libfth_text.so", empty = dir_ / "libfth_empty.so", object = dir_ / "libfth_object.so";
  std::ofstream(text) << "not a library\n";
  std::ofstream{empty};
  EXPECT_THAT(report_of(text).reason, HasSubstr("not an ELF file (14 bytes)"));
  EXPECT_THAT(report_of(empty).reason, HasSubstr("not an ELF file (0 bytes)"));
  EXPECT_THAT(report_of(dir_ / "libfth_absent.so").reason, HasSubstr("No such file"));
  EXPECT_THAT(report_of("/dev/null").reason, HasSubstr("neither a file nor a directory"));
}

TEST_F(RegistryTest, TruncatedAndDamagedLibrariesAreRefusedBeforeTheyAreMapped) {
  std::string bytes;
  {
    std::ifstream in(plugin("newer_minor"), std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  ASSERT_GT(bytes.size(), 4096u);
  const fs::path file = dir_ / "libfth_cut.so";
  for (const size_t n : {size_t{1}, size_t{4}, size_t{63}, size_t{64}, size_t{100}, size_t{4096}, bytes.size() / 2, bytes.size() - 1}) {
    std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(n));
    const Result<> r = check_elf(file);
    ASSERT_FALSE(r) << n;
    EXPECT_EQ(r.error().code, Code::data_loss) << r.error().message;
  }
  EXPECT_THAT(report_of(file).reason, HasSubstr("truncated"));
  // Every byte of the headers, overwritten: a verdict each time, whatever it is, and no crash.
  std::ofstream(file, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  EXPECT_TRUE(check_elf(file));
  int refused = 0;
  for (size_t at = 0; at < 64 + 11 * 56; ++at) {
    const auto put = [&](char c) {
      std::fstream out(file, std::ios::binary | std::ios::in | std::ios::out);
      out.seekp(static_cast<std::streamoff>(at));
      out.put(c);
    };
    put(static_cast<char>(0xff));
    refused += check_elf(file) ? 0 : 1;
    put(bytes[at]);
  }
  EXPECT_GT(refused, 50);
  EXPECT_TRUE(check_elf(plugin("newer_minor")));
}

TEST_F(RegistryTest, RelativePathsAreNeverSearched) {
  fs::copy_file(plugin("newer_minor"), dir_ / "libfth_newer.so");
  const fs::path before = fs::current_path();
  fs::current_path(dir_);
  options_.plugin_paths = {"", ".", "libfth_newer.so"};
  const auto r = open();
  fs::current_path(before);
  EXPECT_EQ(maps().find(dir_.string()), std::string::npos);
  int ignored = 0;
  for (const BackendReport& b : r->backends()) {
    if (b.reason.find("must be absolute") == std::string::npos) continue;
    EXPECT_FALSE(b.loaded);
    EXPECT_FALSE(b.name.empty());
    ++ignored;
  }
  EXPECT_EQ(ignored, 3);
  for (const fs::path& p : r->searched()) EXPECT_TRUE(p.is_absolute() && p != dir_) << p;
}

TEST_F(RegistryTest, DirectoriesHoldPluginsByName) {
  fs::copy_file(plugin("newer_minor"), dir_ / "libfth_zz.so");
  fs::copy_file(plugin("newer_minor"), dir_ / "newer.so");
  fs::copy_file(plugin("no_symbol"), dir_ / "libfth_aa.so");
  fs::create_directory(dir_ / "libfth_dir.so");
  options_.plugin_paths = {dir_, dir_, dir_ / "absent"};
  const auto r = open();
  std::vector<std::string> names;
  for (const BackendReport& b : r->backends())
    if (b.path.starts_with(dir_.string())) names.push_back(b.name);  // the program's own folders may hold plugins of other tests
  // Sorted, each file once though its directory was given twice.
  EXPECT_THAT(names, ::testing::ElementsAre("aa", "dir", "newer", "absent"));
  ASSERT_GE(r->searched().size(), 4u);
  EXPECT_EQ(r->searched()[0], dir_);
  const fs::path program_dir = fs::canonical("/proc/self/exe").parent_path();
  EXPECT_THAT(std::vector(r->searched().begin(), r->searched().end()), ::testing::Contains(program_dir / "plugins"));
}

TEST_F(RegistryTest, ANameThatIsTakenIsSkippedInADirectoryAndLoadedAsANamedFile) {
  fs::copy_file(plugin("same_name"), dir_ / "libfth_add.so");
  fs::copy_file(plugin("same_name"), dir_ / "libfth_other.so");
  options_.plugin_paths = {dir_};
  {
    const auto r = open();
    EXPECT_THAT(report(*r, dir_ / "libfth_add.so").reason, HasSubstr("not used: add is linked in"));
    EXPECT_EQ(maps().find("libfth_add.so"), std::string::npos) << "the file's name alone decides";
    EXPECT_THAT(report(*r, dir_ / "libfth_other.so").reason, HasSubstr("not used: add is linked in"));
    EXPECT_FALSE(r->find("add-plugin:0"));
  }
  options_.plugin_paths = {dir_ / "libfth_add.so", dir_ / "libfth_other.so"};
  const auto r = open();
  EXPECT_TRUE(report(*r, dir_ / "libfth_add.so").loaded);
  ASSERT_TRUE(r->find("add-plugin:0")) << r->find("add-plugin:0").error().message;
  ASSERT_TRUE(r->find("add-plugin2:0"));
  add_on(r->devices()[*r->find("add:0")].device);
  add_on(r->devices()[*r->find("add-plugin:0")].device);
}

TEST_F(RegistryTest, CpuOptionsGoToTheCpuBackendOnly) {
  options_.cpu_options = "isa=generic";
  EXPECT_TRUE(open()->find("cpu"));
  options_.cpu_options = "isa=avx9";
  auto r = Registry::open(options_);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code, Code::invalid_argument);
  EXPECT_THAT(r.error().message, AllOf(HasSubstr("cpu options \"isa=avx9\""), HasSubstr("only generic")));
  options_.cpu_options = "turbo=1";
  r = Registry::open(options_);
  ASSERT_FALSE(r);
  EXPECT_THAT(r.error().message, HasSubstr("'turbo' is not known; known: isa"));
}

TEST_F(RegistryTest, AFileThatIsRemovedBetweenTheSearchAndTheOpening) {
  const fs::path file = dir_ / "libfth_newer.so";
  fs::copy_file(plugin("newer_minor"), file);
  options_.plugin_paths = {dir_};
  options_.named_only = true;  // nobody else's files go
  options_.admit = [](const fs::path& found) {
    fs::remove(found);
    return std::string();
  };
  EXPECT_THAT(report(*open(), file).reason, HasSubstr("cannot be opened for reading"));
}

TEST_F(RegistryTest, WhatIsKnownOfPluginsAndDevicesDecides) {
  options_.plugin_paths = {plugin("newer_minor"), plugin("same_name")};
  options_.named_only = true;
  options_.admit = [](const fs::path& file) {
    return std::string(file == fs::canonical(plugin("same_name")) ? "its self-test ended with SIGSEGV" : "");
  };
  options_.check = [](const BackendReport& backend, uint32_t index, const Device& device) {
    DeviceCheck known;
    known.refusal = backend.name + " " + std::to_string(index) + " " + device.name() + ": wrong";
    known.wrong = true;
    return known;
  };
  const auto r = open();
  EXPECT_EQ(report(*r, plugin("same_name")).reason, "its self-test ended with SIGSEGV");
  EXPECT_FALSE(report(*r, plugin("same_name")).loaded);
  const DeviceEntry& entry = r->devices()[*r->find("newer:0")];
  EXPECT_EQ(entry.refusal, "newer 0 newer:0: wrong");
  EXPECT_TRUE(entry.check.wrong);
  EXPECT_EQ(r->devices()[0].refusal, "") << "those linked in are not asked about";
  EXPECT_TRUE(r->searched().empty());
}

TEST_F(RegistryTest, FailsOnlyWithoutAnyDevice) {
  g_with_builtin = false;
  options_.builtin_only = true;
  auto r = Registry::open(options_);
  ASSERT_FALSE(r);
  EXPECT_EQ(r.error().code, Code::unavailable);
  options_.builtin_only = false;
  options_.plugin_paths = {plugin("count_fails"), plugin("newer_minor")};
  EXPECT_TRUE(Registry::open(options_));
  options_.cpu_options = "isa=generic";
  r = Registry::open(options_);
  ASSERT_FALSE(r);
  EXPECT_THAT(r.error().message, HasSubstr("no cpu backend is linked in"));
}

TEST_F(RegistryTest, LogReachesTheCallerUntilTheRegistryIsGone) {
  struct Sink {
    std::mutex mutex;
    std::vector<std::string> lines;
  } sink;
  options_.log = [](void* self, int32_t, const char* message) {
    auto& s = *static_cast<Sink*>(self);
    const std::lock_guard lock(s.mutex);
    s.lines.emplace_back(message);
  };
  options_.log_self = &sink;
  open();
  EXPECT_THAT(sink.lines, ::testing::Contains("add: counting"));
}

TEST_F(RegistryTest, TwoRegistriesAtOnceKeepTheirPools) {
  options_.n_threads = 3;
  const auto a = open();
  options_.n_threads = 2;
  auto b = open();
  EXPECT_THAT(a->devices()[0].device.info().description, HasSubstr("3 threads"));
  EXPECT_THAT(b->devices()[0].device.info().description, HasSubstr("2 threads"));
  b.reset();
  add_on(a->devices()[0].device);
}

}  // namespace
}  // namespace fth
