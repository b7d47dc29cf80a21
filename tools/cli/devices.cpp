// forethought devices: what was looked for, what was found, what will not be used and why.

#include <boost/json.hpp>

#include "core/base/bytes.h"
#include "tools/cli/command.h"
#include "tools/cli/kernel_tables.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Lists the devices that models can run on, the plugins that were looked for, and the reason for each that is not used.\n"
    "With -v also what the backends log while they are opened, and the CPU's kernel tables.\n\n"
    "  forethought devices\n"
    "  forethought devices --plugin ./build/plugins -v\n";

struct DevicesFlags : CommonFlags {
  DeviceFlags devices;
  bool refresh = false;
};

void describe(DevicesFlags& f, po::options_description& options) {
  add_devices(f.devices, options);
  options.add_options()("refresh", po::bool_switch(&f.refresh),
                        "test and measure again what is kept: every device, and the memory bandwidth");
  add_common(f, options, "print one JSON object");
}

std::string_view kind_name(uint32_t kind) {
  switch (kind) {
    case FTH_KIND_CPU: return "cpu";
    case FTH_KIND_GPU: return "gpu";
    case FTH_KIND_NPU: return "npu";
    default: return "other";
  }
}

std::string description(const fth_device_info& info) { return {info.description, strnlen(info.description, sizeof info.description)}; }

const SelfTest* tested(Registry& registry, const DeviceChecks& checks, const DeviceEntry& entry) {
  const BackendReport& backend = registry.backends()[entry.backend];
  return backend.path.empty() ? nullptr : checks.tested(backend, entry.index);
}

std::string devices_text(Registry& registry, const DeviceChecks& checks, const MachineProfile& profile, const Log& log, bool verbose) {
  const auto lines = log.lines();
  std::string out = "devices\n";
  bool accelerator = false;
  for (const DeviceEntry& entry : registry.devices()) {
    const fth_device_info& info = entry.device.info();
    accelerator = accelerator || (info.kind != FTH_KIND_CPU && entry.refusal.empty());
    out += "  " + printable(entry.device.name()) + " (" + std::string(kind_name(info.kind)) + "): " + printable(description(info)) + '\n';
    out += "      ";
    if (info.memory_bytes > 0) out += format_bytes(info.free_bytes) + " free of " + format_bytes(info.memory_bytes) + "; ";
    out += entry.device.reads_host_memory() ? "works in RAM" : "has its own memory";
    if (info.kind == FTH_KIND_CPU) out += text("; %u threads", registry.pool().n_threads());
    if (info.bytes_per_second > 0) out += "; " + format_rate(info.bytes_per_second);
    if (info.flops_per_second > 0) out += text("; %.0f GFLOP/s", info.flops_per_second / 1e9);
    out += '\n';
    if (verbose) {
      if (info.kind == FTH_KIND_CPU) out += "      " + describe(find_cores()) + '\n';
      for (const KernelSet& k : kernel_sets(whole_description(description(info), lines)))
        out += "      --cpu-isa " + printable(k.name) + (k.used ? ": in use" : k.runs ? ": runs here" : ": " + printable(k.reason)) + '\n';
    }
    if (verbose && info.kind == FTH_KIND_CPU && registry.backends()[entry.backend].path.empty())
      for (const std::string& line : gather_lines(registry.pool().n_threads())) out += "      " + printable(line) + '\n';
    if (const SelfTest* test = tested(registry, checks, entry)) out += "      self-test: " + self_test_text(*test) + '\n';
    if (!entry.refusal.empty()) out += (entry.check.wrong ? "      refused: " : "      not chosen: ") + printable(entry.refusal) + '\n';
  }
  out += "\nbackends\n";
  for (const BackendReport& b : registry.backends()) {
    out += "  " + printable(b.name) + (b.path.empty() ? " (linked in)" : " (" + printable(b.path) + ")") +
           (b.loaded ? ": loaded" : ": not loaded");
    if (!b.reason.empty()) out += ": " + printable(b.reason);
    if (verbose && !b.build.empty()) out += "\n      built with " + printable(b.build);
    out += '\n';
  }
  out += "\nplugins (libfth_*.so) were looked for in\n";
  for (const auto& folder : registry.searched()) {
    std::error_code error;
    out += "  " + printable(folder.string()) + (std::filesystem::exists(folder, error) ? "" : " (not there)") + '\n';
  }
  if (registry.searched().empty()) out += "  nowhere: --cpu-only\n";
  if (!accelerator)
    out +=
        "\nNo accelerator is used: no plugin offers one here. A plugin goes into one of the folders above, or is named with --plugin\n"
        "or FORETHOUGHT_PLUGIN_PATH; its line above then says what came of it.\n";
  if (verbose)
    out +=
        "\nmemory bandwidth: " + (profile.bytes_per_second > 0 ? format_rate(profile.bytes_per_second) + ", " : "") + profile.note + '\n';
  return out;
}

boost::json::object devices_json(Registry& registry, const DeviceChecks& checks, const MachineProfile& profile, const Log& log) {
  boost::json::array devices, backends, searched;
  const auto lines = log.lines();
  for (const DeviceEntry& entry : registry.devices()) {
    const fth_device_info& info = entry.device.info();
    const std::string_view about = whole_description(info.description, lines);
    boost::json::array tables;
    for (const KernelSet& k : kernel_sets(about))
      tables.push_back({{"name", utf8_lossy(k.name)}, {"used", k.used}, {"runs", k.runs}, {"reason", utf8_lossy(k.reason)}});
    devices.push_back({{"name", utf8_lossy(entry.device.name())},
                       {"kind", kind_name(info.kind)},
                       {"description", utf8_lossy(about)},
                       {"backend", utf8_lossy(registry.backends()[entry.backend].name)},
                       {"host_memory", entry.device.reads_host_memory()},
                       {"software", (info.flags & FTH_DEVICE_SOFTWARE) != 0},
                       {"memory_bytes", info.memory_bytes},
                       {"free_bytes", info.free_bytes},
                       {"bytes_per_second", info.bytes_per_second},
                       {"flops_per_second", info.flops_per_second},
                       {"refusal", utf8_lossy(entry.refusal)}});
    if (!tables.empty()) devices.back().get_object()["isa"] = std::move(tables);
    if (const SelfTest* test = tested(registry, checks, entry)) devices.back().get_object()["self_test"] = self_test_json(*test);
  }
  for (const BackendReport& b : registry.backends())
    backends.push_back({{"name", utf8_lossy(b.name)},
                        {"path", utf8_lossy(b.path)},
                        {"build", utf8_lossy(b.build)},
                        {"loaded", b.loaded},
                        {"reason", utf8_lossy(b.reason)}});
  for (const auto& folder : registry.searched()) searched.push_back(boost::json::string(utf8_lossy(folder.string())));
  return {{"devices", std::move(devices)},
          {"backends", std::move(backends)},
          {"searched", std::move(searched)},
          {"threads", registry.pool().n_threads()},
          {"cpu", profile.cpu},
          {"bytes_per_second", profile.bytes_per_second},
          {"log", boost::json::value_from(lines)}};
}

Result<int> run(DevicesFlags& f) {
  Log log(f);
  FTH_RETURN_IF_ERROR(registry_options(f.devices, {}, log));
  const MachineProfile profile = machine_profile(threads_asked(f.devices), f.refresh ? Measure::anew : Measure::once);
  FTH_ASSIGN_OR_RETURN(RegistryOptions options, registry_options(f.devices, profile, log));
  DeviceChecks checks({true, f.refresh, {}, options.n_threads, options.cpu_options});
  FTH_ASSIGN_OR_RETURN(options, registry_options(f.devices, profile, log, &checks));
  FTH_ASSIGN_OR_RETURN(const auto registry, Registry::open(options));
  FTH_RETURN_IF_ERROR(
      put(f.json ? json_text(devices_json(*registry, checks, profile, log)) : devices_text(*registry, checks, profile, log, f.verbose)));
  return 0;
}

}  // namespace

const Command kDevices = make_command<DevicesFlags, describe, run>("devices", "list devices, plugins, and why one is not used", kHelp);

}  // namespace fth::cli
