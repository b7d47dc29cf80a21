// forethought doctor: is this machine ready, and if not, what to do.

#include <linux/io_uring.h>
#include <linux/magic.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/base/bytes.h"
#include "tools/cli/command.h"
#include "tools/cli/machine.h"
#include "tools/cli/open.h"
#include "tools/cli/output.h"
#include "tools/cli/repack.h"

namespace fth::cli {
namespace {

constexpr std::string_view kHelp =
    "Checks this machine: memory, cores, settings, the disk that holds the model, plugins, measured memory bandwidth.\n"
    "Each line is ok, warn or bad, with the next step. Ends with exit code 1 when one of them is bad.\n\n"
    "  forethought doctor\n"
    "  forethought doctor -m model.gguf --refresh\n";

struct DoctorFlags : CommonFlags {
  DeviceFlags devices;
  std::string model;
  bool refresh = false;
};

void describe(DoctorFlags& f, po::options_description& options) {
  options.add_options()                                                                                                        //
      ("model,m", po::value(&f.model)->value_name("FILE"), "the model whose disk and size are checked (default: as for run)")  //
      ("refresh", po::bool_switch(&f.refresh), "measure the memory bandwidth and the disk again");
  add_devices(f.devices, options);
  add_common(f, options, "print one JSON object");
}

enum class Level { ok, warn, bad };
constexpr std::string_view kLevels[] = {"ok", "warn", "bad"};

struct Check {
  Level level;
  std::string subject, finding, next_step;
};
using Checks = std::vector<Check>;

void check_memory(Checks& out, uint64_t model_bytes) {
  const Memory memory = read_memory();
  const uint64_t free = memory.free_for_us();
  const bool small = model_bytes > 0 && free < model_bytes;
  out.push_back({small ? Level::warn : Level::ok, "memory", format_bytes(memory.available) + " available of " + format_bytes(memory.total),
                 small ? "the model is " + format_bytes(model_bytes) +
                             ": close other programs, or use a smaller one; `forethought plan` has the exact sum"
                       : ""});
  if (memory.cgroup_limit) {
    const bool tight = model_bytes > 0 && *memory.cgroup_limit < model_bytes;
    out.push_back({tight ? Level::bad : Level::ok, "cgroup",
                   format_bytes(memory.cgroup_used) + " used of a limit of " + format_bytes(*memory.cgroup_limit),
                   tight ? "the model is " + format_bytes(model_bytes) + ": raise the container's memory limit" : ""});
  } else {
    out.push_back({Level::ok, "cgroup", "no memory limit", ""});
  }
}

void check_cores(Checks& out) {
  const uint32_t online = std::thread::hardware_concurrency();
  out.push_back({Level::ok, "cores", describe(find_cores()) + text(", %u hardware threads allowed; ", online) + cpu_model(), ""});
  double load = 0;
  if (::getloadavg(&load, 1) == 1) {
    const bool busy = load > 0.5 * online;
    out.push_back({busy ? Level::warn : Level::ok, "load", text("%.1f", load),
                   busy ? "other programs are running: speeds measured now will be low" : ""});
  }
  const std::string governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  const bool slow = governor == "powersave" || governor == "conservative";
  // intel_pstate calls its normal mode powersave too; there the advice is still the faster one.
  out.push_back({slow ? Level::warn : Level::ok, "governor", governor.empty() ? "not readable (usual in a virtual machine)" : governor,
                 slow ? "sudo cpupower frequency-set -g performance" : ""});
}

void check_pages(Checks& out) {
  const std::string setting = first_line("/sys/kernel/mm/transparent_hugepage/enabled");  // "always [madvise] never"
  const bool never = setting.find("[never]") != std::string::npos;
  out.push_back({never ? Level::warn : Level::ok, "huge pages", setting.empty() ? "no such setting" : setting,
                 never ? "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled" : ""});
}

struct FileSystem {
  uint32_t magic;
  const char* name;
  const char* advice;  // null: as good as it gets
};
constexpr const char* kRemote = "weights are read over the network: copy the model to a local disk";
constexpr FileSystem kFileSystems[] = {
    {EXT4_SUPER_MAGIC, "ext4", nullptr},
    {XFS_SUPER_MAGIC, "xfs", nullptr},
    {BTRFS_SUPER_MAGIC, "btrfs", nullptr},
    {F2FS_SUPER_MAGIC, "f2fs", nullptr},
    {OVERLAYFS_SUPER_MAGIC, "overlay", nullptr},
    {0x2fc12fc1u, "zfs", nullptr},
    {TMPFS_MAGIC, "tmpfs", "the file itself is in RAM: it counts against the memory that the model needs"},
    {RAMFS_MAGIC, "ramfs", "the file itself is in RAM: it counts against the memory that the model needs"},
    {NFS_SUPER_MAGIC, "nfs", kRemote},
    {SMB2_SUPER_MAGIC, "smb", kRemote},
    {CIFS_SUPER_MAGIC, "cifs", kRemote},
    {V9FS_MAGIC, "9p", kRemote},
    {FUSE_SUPER_MAGIC, "fuse", "a file system in user space reads slowly: copy the model to a local disk"},
};

void check_disk(Checks& out, const std::filesystem::path& model) {
  struct statfs fs {};
  if (::statfs(model.c_str(), &fs) != 0) {
    out.push_back({Level::warn, "disk", model.string() + ": " + std::strerror(errno), ""});
    return;
  }
  const auto magic = static_cast<uint32_t>(fs.f_type);
  const FileSystem* known = nullptr;
  for (const FileSystem& candidate : kFileSystems)
    if (candidate.magic == magic) known = &candidate;
  const uint64_t free = static_cast<uint64_t>(fs.f_bavail) * static_cast<uint64_t>(fs.f_bsize);
  const std::string what =
      (known != nullptr ? std::string(known->name) : text("file system 0x%x", magic)) + ", " + format_bytes(free) + " free";
  const bool advice = known != nullptr && known->advice != nullptr;
  out.push_back({advice ? Level::warn : Level::ok, "disk", what, advice ? known->advice : ""});
}

void check_io_uring(Checks& out) {
  io_uring_params params{};
  const long fd = ::syscall(SYS_io_uring_setup, 1, &params);
  if (fd >= 0) ::close(static_cast<int>(fd));
  out.push_back({fd >= 0 ? Level::ok : Level::warn, "io_uring", fd >= 0 ? "allowed" : std::string("refused: ") + std::strerror(errno),
                 fd >= 0 ? ""
                         : "nothing to do for a model that fits in memory; otherwise sysctl kernel.io_uring_disabled=0, or the container's "
                           "seccomp profile"});
}

Result<> check_devices(Checks& out, const DoctorFlags& f, const MachineProfile& profile) {
  Log log(f);
  FTH_ASSIGN_OR_RETURN(RegistryOptions options, registry_options(f.devices, profile, log));
  DeviceChecks known({false, false, {}, options.n_threads, options.cpu_options});
  FTH_ASSIGN_OR_RETURN(options, registry_options(f.devices, profile, log, &known));
  const auto registry = Registry::open(options);
  if (!registry) {
    out.push_back({Level::bad, "devices", registry.error().message, "`forethought devices` says what was looked for"});
    return {};
  }
  for (const BackendReport& b : (*registry)->backends()) {
    if (b.loaded && b.reason.empty()) continue;
    out.push_back(
        {Level::warn, "plugin " + printable(b.name), printable(b.reason), b.path.empty() ? "" : "rebuild or remove " + printable(b.path)});
  }
  for (const DeviceEntry& entry : (*registry)->devices()) {
    const fth_device_info& info = entry.device.info();
    const std::string what = printable(std::string_view(info.description, strnlen(info.description, sizeof info.description)));
    const bool refused = !entry.refusal.empty();
    out.push_back({refused ? Level::warn : Level::ok, "device " + printable(entry.device.name()), refused ? printable(entry.refusal) : what,
                   entry.check.wrong ? "update its driver; `forethought devices --refresh` tests it again"
                   : refused         ? "--device " + printable(entry.device.name()) + " uses it all the same"
                                     : ""});
  }
  return {};
}

void check_model(Checks& out, const std::filesystem::path& path) {
  const auto model = load_model(path);
  out.push_back({model ? Level::ok : Level::bad, "model",
                 model
                     ? printable(path.string()) + ": " + printable(model->config.architecture) + ", " + format_bytes(model->weight_bytes())
                     : printable(model.error().message),
                 model ? "" : "`forethought inspect` shows what is in the file"});
}

Result<int> run(DoctorFlags& f) {
  FTH_RETURN_IF_ERROR(take_positional_model(f, f));
  Checks checks;
  const MachineProfile profile = machine_profile(threads_asked(f.devices), f.refresh ? Measure::anew : Measure::once);
  const auto model = find_model(f.model);
  if (!model && !f.model.empty()) return tl::unexpected<Error>(model.error());
  std::error_code error;
  // Before any thread, as the bandwidth.
  const StorageProfile storage =
      model ? storage_profile(*model, "auto", f.refresh ? Measure::anew : Measure::once, IfUnknown::measure) : StorageProfile{};
  const uint64_t model_bytes = model ? std::filesystem::file_size(*model, error) : 0;
  check_memory(checks, error ? 0 : model_bytes);
  check_cores(checks);
  check_pages(checks);
  check_io_uring(checks);
  const bool measured = profile.bytes_per_second > 0;
  checks.push_back(
      {measured ? Level::ok : Level::warn, "bandwidth",
       (measured ? format_rate(profile.bytes_per_second) + text(" with %u threads, ", profile.threads) : "") + profile.note,
       measured ? "" : "run `forethought doctor --refresh` when the machine is idle; without it the plan's speeds are estimates"});
  FTH_RETURN_IF_ERROR(check_devices(checks, f, profile));
  if (model) {
    check_disk(checks, *model);
    const bool fast = storage.bytes_per_second > 0;
    checks.push_back({fast ? Level::ok : Level::warn, "storage",
                      (fast ? format_rate(storage.bytes_per_second) + " while the cores compute, " : "") + storage.note,
                      fast ? "" : "nothing to do for a model that fits in memory; otherwise the plan of a streamed one assumes 1 GB/s"});
    check_model(checks, *model);
  } else {
    checks.push_back({Level::warn, "model", model.error().message, ""});
  }

  for (const PackedCopy& copy : packed_copies())
    checks.push_back({copy.current ? Level::ok : Level::warn, "packed copy",
                      printable(copy.source.string()) + ", " + format_bytes(copy.bytes) + ": " + printable(copy.copy.string()),
                      copy.current ? "" : "its model has changed or is gone: remove it, or run the model with --repack file"});

  Level worst = Level::ok;
  for (const Check& check : checks) worst = std::max(worst, check.level);
  if (f.json) {
    boost::json::array lines;
    for (const Check& check : checks)
      lines.push_back({{"level", kLevels[static_cast<size_t>(check.level)]},
                       {"subject", utf8_lossy(check.subject)},
                       {"finding", utf8_lossy(check.finding)},
                       {"next_step", utf8_lossy(check.next_step)}});
    FTH_RETURN_IF_ERROR(put(json_text(boost::json::object{{"worst", kLevels[static_cast<size_t>(worst)]},
                                                          {"bytes_per_second", profile.bytes_per_second},
                                                          {"storage_bytes_per_second", storage.bytes_per_second},
                                                          {"checks", std::move(lines)}})));
  } else {
    constexpr const char* kColours[] = {"\033[32m", "\033[33m", "\033[31m"};
    const bool colour = wants_colour(STDOUT_FILENO);
    std::string out;
    for (const Check& check : checks) {
      const auto level = static_cast<size_t>(check.level);
      out += std::string(colour ? kColours[level] : "") + text("%-4s", std::string(kLevels[level]).c_str()) + (colour ? "\033[0m" : "") +
             "  " + text("%-12s ", check.subject.c_str()) + check.finding + '\n';
      if (!check.next_step.empty()) out += "                   -> " + check.next_step + '\n';
    }
    FTH_RETURN_IF_ERROR(put(out));
  }
  return worst == Level::bad ? 1 : 0;
}

}  // namespace

const Command kDoctor =
    make_command<DoctorFlags, describe, run>("doctor", "check this machine, with the next step for what is wrong", kHelp, "MODEL");

}  // namespace fth::cli
