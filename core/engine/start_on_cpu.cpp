// Devices that come late: which ones the CPU begins for, and what their compilations took.
#include <algorithm>
#include <cstdio>

#include "core/engine/engine_impl.h"

namespace fth {

std::string Engine::Impl::compile_key(size_t d) {
  const fth_device_info& info = device(d).info();
  const Config& c = model->config;
  return "compile on " + device(d).name() + ", " + std::string(info.description, strnlen(info.description, sizeof info.description)) +
         ", " + device(d).api().build + "; " + std::to_string(c.n_layer) + " layers of " + std::to_string(c.n_embd) + ", vocabulary of " +
         std::to_string(c.n_vocab) + ", " + std::to_string(model->bytes_per_token()) + " bytes a token";
}

void Engine::Impl::find_late() {
  const size_t n = registry->devices().size();
  late.assign(n, {});
  compile_seconds.assign(n, 0);
  for (size_t d = 1; d < n && options.start_on_cpu != StartOnCpu::off; ++d) {
    if (!device(d).reads_host_memory()) continue;
    if (options.start_on_cpu == StartOnCpu::on) {
      late[d] = "as asked";
      continue;
    }
    const uint32_t kind = device(d).info().kind;
    if (kind == FTH_KIND_NPU) late[d] = "an NPU takes its time to compile";
    // One that is a CPU compiles on the cores that would stand in for it.
    if (kind == FTH_KIND_NPU || kind == FTH_KIND_CPU || !options.compile_times.load) continue;
    const std::vector<double> took = options.compile_times.load(compile_key(d));
    if (took.size() != 1 || !(took[0] > kSlowCompile)) continue;
    char seconds[48];
    std::snprintf(seconds, sizeof seconds, "compiling took it %.1f s", took[0]);
    late[d] = seconds;
  }
}

bool Engine::Impl::any_late() const {
  return std::any_of(late.begin(), late.end(), [](const std::string& why) { return !why.empty(); });
}

void Engine::Impl::say_late() {
  for (size_t d = 0; d < late.size(); ++d) {
    const bool used = std::any_of(plan.placements.begin(), plan.placements.end(), [d](const Placement& p) { return p.device == d; });
    if (late[d].empty() || !used) continue;
    plan.notes.push_back(device(0).name() + " begins while " + device(d).name() + " compiles, which takes over when it is ready (" +
                         late[d] + "); --start-on-cpu off waits for it");
  }
}

void Engine::Impl::keep_compile_seconds() {
  for (size_t d = 0; d < compile_seconds.size(); ++d)
    if (const double took = std::exchange(compile_seconds[d], 0); took > 0 && options.compile_times.store)
      options.compile_times.store(compile_key(d), std::span(&took, 1));
}

}  // namespace fth
