// conformance: any backend against the reference, through the plugin boundary. The command line is parsed by hand: this program is also built for
// machines where the rest of the project's libraries are not.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "tests/conformance/suite.h"

namespace {

constexpr const char* kUsage =
    "usage: conformance [--backend cpu|PATH] [--device N] [--isa NAME] [--options KEY=VALUE,...] [--threads N]\n"
    "                   [--mode test|perf|support|leaks] [--cases FILE|FOLDER]... [--filter GLOB] [--expect FILE] [--json] [--verbose]\n"
    "                   [--device-keeps BYTES]\n"
    "  test     runs every case of the files but perf.txt; exit 1 when one is not as expected\n"
    "  perf     times the cases of perf.txt (or of the files given)\n"
    "  support  prints what the device supports, as markdown\n"
    "  leaks    makes and frees devices, buffers and segments (leaks.txt) many times; exit 1 when something stays each time. A driver that "
    "keeps\n"
    "           some heap of every device that was opened may do so to --device-keeps\n"
    "Exit 77: the backend has no such device here, or the machine cannot run that instruction set; the reason is printed.\n";

struct Arguments {
  fth::conformance::SuiteOptions suite;
  std::string mode = "test", isa, expect;
  std::vector<std::string> cases;
};

[[noreturn]] void usage(const std::string& why) {
  std::fprintf(stderr, "conformance: %s\n%s", why.c_str(), kUsage);
  std::exit(2);
}

uint32_t number(const std::string& flag, const std::string& value) {
  char* end = nullptr;
  const unsigned long n = std::strtoul(value.c_str(), &end, 10);
  if (value.empty() || *end != '\0' || n > 4096) usage(flag + " " + value + ": need a number to 4096");
  return static_cast<uint32_t>(n);
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) usage(flag + " needs a value");
      return argv[++i];
    };
    if (flag == "--backend") {
      a.suite.backend.backend = value();
    } else if (flag == "--device") {
      a.suite.backend.device = number(flag, value());
    } else if (flag == "--threads") {
      a.suite.backend.n_threads = number(flag, value());
    } else if (flag == "--isa") {
      a.isa = value();
    } else if (flag == "--options") {
      a.suite.backend.options = value();
    } else if (flag == "--mode") {
      a.mode = value();
    } else if (flag == "--cases") {
      a.cases.push_back(value());
    } else if (flag == "--filter") {
      a.suite.filter = value();
    } else if (flag == "--expect") {
      a.expect = value();
    } else if (flag == "--device-keeps") {
      a.suite.device_keeps = std::strtod(value().c_str(), nullptr);
    } else if (flag == "--json") {
      a.suite.json = true;
    } else if (flag == "--verbose") {
      a.suite.backend.log_level = FTH_LOG_DEBUG;
    } else if (flag == "--help" || flag == "-h") {
      std::printf("%s", kUsage);
      std::exit(0);
    } else {
      usage("unknown argument " + flag);
    }
  }
  if (a.mode != "test" && a.mode != "perf" && a.mode != "support" && a.mode != "leaks") usage("unknown mode " + a.mode);
  if (!a.isa.empty()) a.suite.backend.options += (a.suite.backend.options.empty() ? "isa=" : ",isa=") + a.isa;
  if (a.cases.empty()) a.cases.push_back(a.mode == "leaks" ? FTH_LEAK_CASES : FTH_CASES_DIR);
  return a;
}

// The files of a folder in order, perf.txt only for mode perf and the others only for the rest; a file named on the command line always.
std::vector<std::string> case_files(const Arguments& a) {
  std::vector<std::string> files;
  for (const std::string& path : a.cases) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    std::vector<std::string> inside;
    for (const auto& entry : std::filesystem::directory_iterator(path))
      if (entry.path().extension() == ".txt" && (entry.path().filename() == "perf.txt") == (a.mode == "perf"))
        inside.push_back(entry.path().string());
    std::sort(inside.begin(), inside.end());
    files.insert(files.end(), inside.begin(), inside.end());
  }
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace fth::conformance;
  Arguments a = parse(argc, argv);
  if (!a.expect.empty()) {
    auto expectations = read_expectations(a.expect);
    if (!expectations) usage(expectations.error().message);
    a.suite.expectations = *std::move(expectations);
  }
  std::vector<Case> cases;
  for (const std::string& file : case_files(a)) {
    const auto more = read_cases(file);
    if (!more) usage(more.error().message);
    cases.insert(cases.end(), more->begin(), more->end());
  }
  const auto backend = Backend::open(a.suite.backend);
  if (!backend) {
    // The list in the backend's answer tells a table that this machine cannot run, "avx512 (no avx512f in cpuid)", from a typing error.
    const std::string& why = backend.error().message;
    const bool absent =
        backend.error().code == fth::Code::unavailable || (!a.isa.empty() && why.find(" " + a.isa + " (") != std::string::npos);
    std::fprintf(stderr, "conformance: %s: %s\n", absent ? "skipped" : "failed", why.c_str());
    return absent ? 77 : 2;
  }
  if (!a.suite.json && a.mode != "support")
    std::printf("%s: %s\n", (*backend)->device().name().c_str(), (*backend)->device().info().description);
  if (a.mode == "perf") return run_perf(**backend, a.suite, cases);
  if (a.mode == "leaks") return run_leaks(**backend, a.suite, cases);
  if (a.mode == "support") return run_support(**backend, a.suite);
  return run_tests(**backend, a.suite, cases);
}
