// See runner.h. The host is made by hand rather than through the Registry: any plugin file can be named, whatever its place, and the same program
// builds without the rest of the core for other machines.

#include "tests/conformance/runner.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <thread>

extern "C" const fth_backend* fth_cpu_query(uint32_t abi_major, const fth_host* host);

namespace fth::conformance {

Result<std::unique_ptr<Backend>> Backend::open(const BackendOptions& options) {
  const uint32_t n = options.n_threads > 0 ? options.n_threads : std::max(1u, std::thread::hardware_concurrency());
  std::unique_ptr<Backend> b(new Backend(n));
  b->log_level_ = options.log_level;
  b->host_.struct_size = sizeof b->host_;
  b->host_.n_threads = n;
  b->host_.self = b.get();
  b->host_.log = [](void* self, int32_t level, const char* message) {
    Backend& of = *static_cast<Backend*>(self);
    if (level == FTH_LOG_ERROR) of.errors_.fetch_add(1, std::memory_order_relaxed);
    if (level <= of.log_level_) std::fprintf(stderr, "%s\n", message);
  };
  b->host_.parallel_for = [](void* self, uint32_t count, void (*body)(void*, uint32_t), void* arg) {
    static_cast<Backend*>(self)->pool_.parallel_for(count, body, arg);
  };
  fth_backend_query_fn query = &fth_cpu_query;
  if (options.backend != "cpu") {
    if (options.backend.find('/') == std::string::npos)
      return fail(Code::not_found, "backend " + options.backend + ": `cpu` is linked in, another is named by the path of its file");
    void* const library = dlopen(options.backend.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) return fail(Code::not_found, dlerror());
    query = reinterpret_cast<fth_backend_query_fn>(dlsym(library, FTH_BACKEND_QUERY_SYMBOL));
    if (!query) return fail(Code::invalid_argument, options.backend + ": no symbol " FTH_BACKEND_QUERY_SYMBOL);
  }
  const fth_backend* const api = query(FTH_ABI_MAJOR, &b->host_);
  if (!api) return fail(Code::unavailable, options.backend + ": does not serve ABI " + std::to_string(FTH_ABI_MAJOR));
  uint32_t count = 0;
  fth_error e{};
  FTH_RETURN_IF_ERROR(check(api->device_count(&count, &e), e));
  if (options.device >= count)
    return fail(Code::unavailable, options.backend + ": device " + std::to_string(options.device) + " of " + std::to_string(count));
  FTH_ASSIGN_OR_RETURN(Device device, Device::open(*api, options.device, options.options.c_str()));
  b->device_ = std::make_unique<Device>(std::move(device));
  return b;
}

Result<Prepared> Prepared::make(const Device& device, const Problem& problem) {
  Prepared r;
  r.problem_ = problem;
  // Moving a vector keeps its data where it is, so buffers may import the tensors' own memory.
  std::vector<Tensor>& tensors = r.problem_.tensors;
  const Problem::Segment segment = r.problem_.segment();
  FTH_ASSIGN_OR_RETURN(const fth_estimate estimate, device.estimate(segment.segment));
  const auto constant = [&](std::vector<std::byte>& data) -> Result<Buffer> {
    if (device.reads_host_memory()) return device.import_host(data.data(), data.size());
    FTH_ASSIGN_OR_RETURN(Buffer buffer, device.alloc(data.size()));
    FTH_RETURN_IF_ERROR(buffer.write(0, data.data(), data.size()));
    return buffer;
  };
  // Outputs, states and the workspace between guards, which are canaries too.
  const auto guarded = [&](uint64_t bytes, const std::vector<std::byte>& data, std::byte otherwise) -> Result<Buffer> {
    FTH_ASSIGN_OR_RETURN(Buffer buffer, device.alloc(bytes + 2 * kGuard));
    std::vector<std::byte> all(bytes + 2 * kGuard, kCanary);
    if (data.empty()) {
      std::fill_n(all.data() + kGuard, bytes, otherwise);
    } else {
      std::copy(data.begin(), data.end(), all.data() + kGuard);
    }
    FTH_RETURN_IF_ERROR(buffer.write(0, all.data(), all.size()));
    return buffer;
  };

  std::vector<fth_binding> weight_bindings;
  for (size_t t = 0; t < tensors.size(); ++t) {
    Tensor& x = tensors[t];
    const uint64_t bytes = slot_bytes(x.desc);
    switch (x.desc.role) {
      case FTH_ROLE_WEIGHT: {
        FTH_ASSIGN_OR_RETURN(Buffer b, constant(x.data));
        weight_bindings.push_back(b.whole());
        r.weights_.push_back(std::move(b));
        break;
      }
      case FTH_ROLE_SLOTS: {
        FTH_ASSIGN_OR_RETURN(Buffer b, constant(x.data));
        for (int64_t s = 0; s < x.desc.dims[0]; ++s)
          r.bindings_.push_back(s < r.problem_.scalars[FTH_SCALAR_SLOTS] ? b.at(static_cast<uint64_t>(s) * bytes, bytes) : fth_binding{});
        r.weights_.push_back(std::move(b));
        break;
      }
      case FTH_ROLE_INPUT: {
        FTH_ASSIGN_OR_RETURN(Buffer b, constant(x.data));
        r.bindings_.push_back(b.whole());
        r.bound_.push_back({t, std::move(b), false});
        break;
      }
      case FTH_ROLE_OUTPUT:
      case FTH_ROLE_STATE: {
        if (x.data.empty()) x.data.assign(bytes, kCanary);
        FTH_ASSIGN_OR_RETURN(Buffer b, guarded(bytes, x.data, kCanary));
        r.bindings_.push_back(b.at(kGuard, bytes));
        r.bound_.push_back({t, std::move(b), true});
        break;
      }
      default: break;
    }
  }
  r.workspace_bytes_ = estimate.workspace_bytes;
  if (r.workspace_bytes_ > 0) {
    FTH_ASSIGN_OR_RETURN(r.workspace_, guarded(r.workspace_bytes_, {}, std::byte{0xff}));  // NaN: scratch read before it is written shows
    r.bindings_.push_back(r.workspace_.at(kGuard, r.workspace_bytes_));
  }
  FTH_ASSIGN_OR_RETURN(r.executable_, device.compile(segment.segment, weight_bindings));
  return r;
}

Result<> Prepared::run() { return executable_.run(bindings_, problem_.scalars); }

Result<Problem> Prepared::collect() const {
  Problem p = problem_;
  const auto check_guards = [](const Buffer& buffer, uint64_t bytes, const std::string& what) -> Result<> {
    std::vector<std::byte> guard(kGuard);
    for (const uint64_t at : {uint64_t{0}, kGuard + bytes}) {
      FTH_RETURN_IF_ERROR(buffer.read(at, guard.data(), kGuard));
      for (uint64_t i = 0; i < kGuard; ++i)
        if (guard[i] != kCanary)
          return fail(Code::internal,
                      what + ": wrote the guard byte at " + (at == 0 ? "-" + std::to_string(kGuard - i) : "end + " + std::to_string(i)));
    }
    return {};
  };
  for (const Bound& b : bound_) {
    if (!b.guarded) continue;
    Tensor& t = p.tensors[b.tensor];
    FTH_RETURN_IF_ERROR(b.buffer.read(kGuard, t.data.data(), t.data.size()));
    FTH_RETURN_IF_ERROR(check_guards(b.buffer, t.data.size(), t.name));
  }
  if (workspace_bytes_ > 0) FTH_RETURN_IF_ERROR(check_guards(workspace_, workspace_bytes_, "workspace"));
  return p;
}

Result<Problem> run_once(const Device& device, const Problem& problem) {
  FTH_ASSIGN_OR_RETURN(Prepared prepared, Prepared::make(device, problem));
  FTH_RETURN_IF_ERROR(prepared.run());
  return prepared.collect();
}

}  // namespace fth::conformance
