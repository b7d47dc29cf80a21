// Who is looked for, in order: the backends linked in, the caller's paths, the program's own folders, the installed folder.

#include "core/device/registry.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <set>
#include <system_error>
#include <utility>

#include "core/device/plugin_loader.h"

namespace fth {
namespace fs = std::filesystem;
namespace {

// What a plugin's fth_host points at. Plugins are never unloaded and may keep the pointer, so it is never freed; after its registry is gone it
// logs nothing and runs parallel_for on the calling thread.
struct HostServices {
  fth_host host{};
  std::atomic<ThreadPool*> pool{nullptr};
  std::mutex log_mutex;  // a driver's thread may log while the registry goes away
  void (*log)(void*, int32_t, const char*) = nullptr;
  void* log_self = nullptr;

  static void log_entry(void* self, int32_t level, const char* message) {
    auto& s = *static_cast<HostServices*>(self);
    const std::lock_guard lock(s.log_mutex);
    if (s.log != nullptr && message != nullptr) s.log(s.log_self, level, message);
  }
  static void parallel_for_entry(void* self, uint32_t n, void (*body)(void*, uint32_t), void* arg) {
    if (ThreadPool* const p = static_cast<HostServices*>(self)->pool.load(std::memory_order_acquire)) return p->parallel_for(n, body, arg);
    for (uint32_t i = 0; i < n; ++i) body(arg, i);
  }
  void detach() {
    pool.store(nullptr, std::memory_order_release);
    const std::lock_guard lock(log_mutex);
    log = nullptr;
  }
};

// The one state of the process: the loaded libraries are its own, so the list of hosts they point at is too. Its lock is held while a registry
// opens, because a backend keeps the host of the last query and two registries must not cross theirs.
struct Process {
  std::mutex opening;
  std::deque<HostServices> hosts;
};
Process& process() {
  static Process& p = *new Process;  // not destroyed at exit: plugins' own threads may still run then
  return p;
}

constexpr uint32_t kMaxDevices = 64;  // of one backend

std::string bounded(const char* text, size_t most) { return std::string(text, strnlen(text, most)); }

bool is_plugin_name(const fs::path& file) {
  const std::string n = file.filename().string();
  return n.starts_with("libfth_") && n.ends_with(".so") && n.size() > 10;
}
// libfth_cpu.so -> cpu
std::string short_name(const fs::path& file) {
  const std::string stem = file.stem().string();
  return stem.starts_with("libfth_") ? stem.substr(7) : stem;
}

std::vector<fs::path> default_directories() {
  std::vector<fs::path> dirs;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (!error && program.is_absolute()) {
    const fs::path dir = program.parent_path();
    dirs = {dir / "plugins", dir, dir.parent_path() / "lib/forethought"};
#ifdef FTH_MULTIARCH
    dirs.push_back(dir.parent_path() / "lib" / FTH_MULTIARCH / "forethought");
#endif
  }
#ifdef FTH_INSTALLED_PLUGIN_DIR
  dirs.emplace_back(FTH_INSTALLED_PLUGIN_DIR);
#endif
  std::vector<fs::path> unique;
  for (const fs::path& d : dirs)
    if (std::find(unique.begin(), unique.end(), d.lexically_normal()) == unique.end()) unique.push_back(d.lexically_normal());
  return unique;
}

}  // namespace

struct Registry::Impl {
  HostServices* services = nullptr;
  std::unique_ptr<ThreadPool> pool;
  std::vector<BackendReport> backends;
  std::vector<fs::path> searched;
  std::vector<DeviceEntry> devices;  // destroyed before the pool that they run on
  std::set<fs::path> seen;           // canonical files: one that two directories lead to is opened and reported once
  RegistryOptions options;
  std::optional<Error> refused_options;  // that somebody asked for

  ~Impl() {
    devices.clear();
    if (services != nullptr) services->detach();
  }

  size_t report(std::string name, std::string path, std::string reason) {
    backends.push_back({std::move(name), std::move(path), {}, false, std::move(reason)});
    return backends.size() - 1;
  }

  const BackendReport* loaded_as(const std::string& name) const {
    const auto it = std::find_if(backends.begin(), backends.end(), [&](const BackendReport& b) { return b.loaded && b.name == name; });
    return it == backends.end() ? nullptr : &*it;
  }
  // Empty if no backend of this name is in use.
  std::string taken(const std::string& name) const {
    const BackendReport* other = loaded_as(name);
    if (other == nullptr) return {};
    return "not used: " + name + (other->path.empty() ? " is linked in" : " was loaded from " + other->path) +
           "; name this file itself to load it too";
  }

  std::string unique_name(const std::string& wanted) const {
    const auto free = [&](const std::string& n) {
      return std::none_of(devices.begin(), devices.end(), [&](const DeviceEntry& d) { return d.device.name() == n; });
    };
    if (free(wanted)) return wanted;
    const size_t colon = std::min(wanted.find(':'), wanted.size());
    for (int i = 1;; ++i) {
      const std::string suffix = "-plugin" + (i > 1 ? std::to_string(i) : std::string()) + wanted.substr(colon);
      // A name has room for 63 bytes: the suffix is kept whole.
      const std::string n = wanted.substr(0, std::min(colon, 63 - std::min<size_t>(63, suffix.size()))) + suffix;
      if (free(n.substr(0, 63))) return n.substr(0, 63);
    }
  }

  // Opened with the options for it; without those that only the program wanted when the backend does not know them.
  Result<Device> open_device(const fth_backend& api, const std::string& backend, uint32_t index, const std::string& first) {
    const auto joined = [&](bool all) {
      std::string text = first;
      for (const DeviceOptions& o : options.device_options)
        if (o.backend == backend && o.index.value_or(index) == index && (all || o.asked_for)) text += (text.empty() ? "" : ",") + o.options;
      return text;
    };
    const auto open = [&](const std::string& text) { return Device::open(api, index, text.empty() ? nullptr : text.c_str()); };
    const std::string all = joined(true), asked_for = joined(false);
    auto device = open(all);
    if (device || device.error().code != Code::invalid_argument) return device;
    if (all != asked_for) device = open(asked_for);
    if (!device && device.error().code == Code::invalid_argument && asked_for != first)
      refused_options = Error(device.error()).context(backend + " options \"" + asked_for + "\"");
    return device;
  }

  // Opens every device of the table; what fails goes into the report. The error of the last open that failed, for the caller that gave options.
  Result<> open_devices(const fth_backend& api, size_t backend, const std::string& first_options) {
    std::string reasons;
    Result<> last;
    const auto say = [&](const std::string& text) { reasons += (reasons.empty() ? "" : "; ") + text; };
    try {
      fth_error e{};
      uint32_t n = 0;
      if (Result<> counted = check(api.device_count(&n, &e), e); !counted) {
        say(counted.error().message);
      } else if (n == 0) {
        say("its driver is present and reports no device");
      }
      if (n > kMaxDevices) say("reports " + std::to_string(n) + " devices, the first " + std::to_string(kMaxDevices) + " are opened");
      for (uint32_t i = 0; i < std::min(n, kMaxDevices); ++i) {
        auto device = open_device(api, backends[backend].name, i, first_options);
        if (!device) {
          say("device " + std::to_string(i) + ": " + device.error().message);
          last = tl::unexpected<Error>(std::move(device).error());
          continue;
        }
        const std::string own = device->name();
        device->rename(unique_name(own.empty() ? backends[backend].name + ":" + std::to_string(i) : own));
        DeviceCheck known;
        if (options.check && !backends[backend].path.empty()) known = options.check(backends[backend], i, *device);
        std::string refusal = known.refusal;
        if ((device->info().flags & FTH_DEVICE_SOFTWARE) != 0 && !known.wrong)
          refusal = "software device (" + bounded(device->info().description, sizeof device->info().description) + "): listed, not chosen";
        devices.push_back({*std::move(device), backend, i, std::move(refusal), std::move(known)});
      }
    } catch (const std::exception& e) {
      // The boundary forbids it; a plugin that did not use the guard is still no reason to end the program.
      say(std::string("threw an exception through the boundary: ") + e.what());
    } catch (...) {
      say("threw an exception through the boundary");
    }
    backends[backend].reason = reasons;
    return last;
  }

  Result<> open_builtin(fth_backend_query_fn query, const std::string& cpu_options) {
    const auto api = query_backend(query, &services->host);
    if (!api) {
      report("linked-in", {}, api.error().message);
      return {};
    }
    const std::string name = (*api)->name;
    if (std::string reason = taken(name); !reason.empty()) {
      report(name, {}, std::move(reason));
      return {};
    }
    backends.push_back({name, {}, bounded((*api)->build, 256), true, {}});
    const bool has_options = name == "cpu" && !cpu_options.empty();
    Result<> opened = open_devices(**api, backends.size() - 1, has_options ? cpu_options : std::string());
    if (has_options && !opened && opened.error().code == Code::invalid_argument)
      return tl::unexpected<Error>(std::move(opened).error().context("cpu options \"" + cpu_options + "\""));
    return {};
  }

  void open_file(const fs::path& file, bool named) {
    std::error_code error;
    const fs::path canonical = fs::canonical(file, error);
    if (!error && !seen.insert(canonical).second) return;
    const std::string name = short_name(file);
    // By the file's name alone, so that a backend that is there already is not opened a second time.
    if (std::string reason = named ? "" : taken(name); !reason.empty()) {
      report(name, file.string(), std::move(reason));
      return;
    }
    if (options.admit) {
      if (std::string reason = options.admit(canonical); !error && !reason.empty()) {
        report(name, file.string(), std::move(reason));
        return;
      }
    }
    const auto api = load_plugin(file, &services->host);
    if (!api) {
      report(name, file.string(), api.error().message);
      return;
    }
    if (std::string reason = named ? "" : taken((*api)->name); !reason.empty()) {
      report((*api)->name, file.string(), std::move(reason));
      return;
    }
    backends.push_back({(*api)->name, file.string(), bounded((*api)->build, 256), true, {}});
    (void)open_devices(**api, backends.size() - 1, {});  // its reasons are in the report
  }

  void open_directory(const fs::path& dir) {
    searched.push_back(dir);
    std::error_code error;
    std::vector<fs::path> files;
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
      if (is_plugin_name(it->path())) files.push_back(it->path());
    std::sort(files.begin(), files.end());  // the same order on every file system
    for (const fs::path& f : files) open_file(f, false);
  }

  void open_path(const fs::path& path) {
    if (!path.is_absolute()) {
      report(path.empty() ? "(empty path)" : path.string(), path.string(),
             "ignored: a plugin path must be absolute; nothing is searched in the working directory");
      return;
    }
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (fs::is_directory(status)) return open_directory(path);
    if (fs::is_regular_file(status)) return open_file(path, true);
    report(short_name(path), path.string(), error ? error.message() : "neither a file nor a directory");
    if (!path.has_extension()) searched.push_back(path);
  }
};

Registry::Registry(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Registry::~Registry() = default;

Result<std::unique_ptr<Registry>> Registry::open(const RegistryOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->pool = std::make_unique<ThreadPool>(options.n_threads > 0 ? options.n_threads : usable_cores(), options.cpus);
  impl->options = options;

  const std::lock_guard lock(process().opening);
  HostServices& s = process().hosts.emplace_back();
  s.pool.store(impl->pool.get(), std::memory_order_release);
  s.log = options.log;
  s.log_self = options.log_self;
  s.host = {.struct_size = sizeof(fth_host),
            .n_threads = impl->pool->n_threads(),
            .self = &s,
            .log = HostServices::log_entry,
            .parallel_for = HostServices::parallel_for_entry};
  impl->services = &s;

  for (const fth_backend_query_fn query : builtin_backends()) FTH_RETURN_IF_ERROR(impl->open_builtin(query, options.cpu_options));
  if (!options.cpu_options.empty() && impl->loaded_as("cpu") == nullptr)
    return fail(Code::invalid_argument, "cpu options \"" + options.cpu_options + "\": no cpu backend is linked in");
  if (!options.builtin_only) {
    for (const fs::path& path : options.plugin_paths) impl->open_path(path);
    if (!options.named_only)
      for (const fs::path& dir : default_directories()) impl->open_directory(dir);
  }
  if (impl->refused_options) return tl::unexpected<Error>(*std::move(impl->refused_options));
  for (const DeviceOptions& o : options.device_options)
    if (o.asked_for && impl->loaded_as(o.backend) == nullptr)
      return fail(Code::invalid_argument, "options \"" + o.options + "\": no backend " + o.backend + " is loaded");
  if (impl->devices.empty()) {
    std::string reasons;
    for (const BackendReport& b : impl->backends) reasons += "; " + b.name + ": " + b.reason;
    return fail(Code::unavailable,
                "no device: " + (reasons.empty() ? "no backend is linked in and no plugin was found" : reasons.substr(2)));
  }
  return std::unique_ptr<Registry>(new Registry(std::move(impl)));
}

ThreadPool& Registry::pool() { return *impl_->pool; }
std::span<const BackendReport> Registry::backends() const { return impl_->backends; }
std::span<DeviceEntry> Registry::devices() { return impl_->devices; }
std::span<const DeviceEntry> Registry::devices() const { return impl_->devices; }
std::span<const fs::path> Registry::searched() const { return impl_->searched; }

Result<size_t> Registry::find(const std::string& name) const {
  std::string known;
  for (size_t i = 0; i < impl_->devices.size(); ++i) {
    const std::string n = impl_->devices[i].device.name();
    if (n == name) return i;
    known += (known.empty() ? "" : ", ") + n;
  }
  return fail(Code::not_found, "no device '" + name + "'; there are: " + known);
}

}  // namespace fth
