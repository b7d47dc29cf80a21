// Opening a device, what it says of itself, and its clock.

#include "backends/opencl/context.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>

namespace fth::opencl {
namespace {

// What a product reaches on two cores through PoCL. A software device is not timed unless asked: it is listed and not chosen, and compiling a kernel to
// time would cost every program a second.
constexpr double kSoftwareBytesPerSecond = 4e9, kSoftwareFlopsPerSecond = 20e9, kSoftwareLaunchSeconds = 30e-6,
                 kSoftwareDispatchSeconds = 10e-6;
// The kernels multiply in f32; a GPU is built with a few such operations per byte of its memory's speed.
constexpr double kFlopsPerByte = 4;
constexpr uint64_t kLocalMemory = 16 * kKiB;  // what the largest kernel takes with 128 work-items
constexpr uint32_t kMostThreads = 128;

bool has_word(const std::string& list, std::string_view word) {
  for (size_t at = list.find(word); at != std::string::npos; at = list.find(word, at + 1))
    if ((at == 0 || list[at - 1] == ' ') && (at + word.size() == list.size() || list[at + word.size()] == ' ')) return true;
  return false;
}

const char* kind_name(cl_device_type type) {
  if ((type & CL_DEVICE_TYPE_CPU) != 0) return "software on the CPU";
  return (type & CL_DEVICE_TYPE_GPU) != 0 ? "GPU" : "accelerator";
}

const char* math_name(Math math) {
  switch (math) {
    case Math::f16: return "f16";
    case Math::int8: return "8-bit integers";
    default: return "f32";
  }
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Result<std::unique_ptr<Context>> Context::open(sdk::Host host, uint32_t index, const Settings& settings) {
  std::unique_ptr<Context> self(new Context(host, settings));
  FTH_RETURN_IF_ERROR(self->check_device(index));
  FTH_RETURN_IF_ERROR(self->make_queue());
  if (settings.host_memory && (self->type_ & CL_DEVICE_TYPE_CPU) != 0) FTH_RETURN_IF_ERROR(self->check_host_memory());
  FTH_RETURN_IF_ERROR(self->measure());
  const fth_device_info info = self->info();
  host.log(FTH_LOG_DEBUG, text(self->label_, ": ", info.description, "; ", info.bytes_per_second / 1e9, " GB/s, launch ",
                               self->launch_seconds_ * 1e6, " us, dispatch ", self->dispatch_seconds_ * 1e6, " us"));
  return self;
}

Context::~Context() {
  if (queue_) (void)clFinish(queue_.get());
}

// Picks the device and fills limits_ and the descriptions; refuses what cannot run the kernels.
Result<> Context::check_device(uint32_t index) {
  FTH_ASSIGN_OR_RETURN(const std::vector<FoundDevice> all, find_devices());
  if (index >= all.size()) return fail(Code::not_found, text("opencl: device ", index, " of ", all.size()));
  platform_ = all[index].platform;
  device_ = all[index].device;
  label_ = text("opencl:", index);
  name_ = device_text(device_, CL_DEVICE_NAME);
  driver_ = text(platform_text(platform_, CL_PLATFORM_NAME), " ", device_text(device_, CL_DRIVER_VERSION));
  version_ = device_text(device_, CL_DEVICE_VERSION);  // "OpenCL 3.0 ..."
  extensions_ = device_text(device_, CL_DEVICE_EXTENSIONS);
  type_ = device_value<cl_device_type>(device_, CL_DEVICE_TYPE, 0);
  const std::string title = text(label_, " (", name_, ")");
  const auto lacks = [&](const std::string& why) { return fail(Code::unimplemented, text(title, ": ", why)); };
  if (device_value<cl_bool>(device_, CL_DEVICE_AVAILABLE, CL_FALSE) == CL_FALSE)
    return fail(Code::unavailable, text(title, ": the driver says that the device is not available"));
  if ((type_ & (CL_DEVICE_TYPE_CPU | CL_DEVICE_TYPE_GPU)) == 0) return lacks("neither a GPU nor a CPU");
  if (version_.size() < 10 || version_.compare(0, 7, "OpenCL ") != 0 || version_.compare(7, 3, "1.2") < 0)
    return lacks(text("\"", version_, "\", need OpenCL 1.2: update the driver"));
  if (device_value<cl_bool>(device_, CL_DEVICE_COMPILER_AVAILABLE, CL_FALSE) == CL_FALSE) return lacks("its driver has no compiler");
  if (device_value<cl_bool>(device_, CL_DEVICE_ENDIAN_LITTLE, CL_FALSE) == CL_FALSE) return lacks("not little-endian");
  const uint64_t local = device_value<cl_ulong>(device_, CL_DEVICE_LOCAL_MEM_SIZE, 0);
  if (local < kLocalMemory) return lacks(text(format_bytes(local), " of local memory, need ", format_bytes(kLocalMemory)));

  limits_.max_buffer = device_value<cl_ulong>(device_, CL_DEVICE_MAX_MEM_ALLOC_SIZE, 0);
  limits_.compute_units = std::max<cl_uint>(1, device_value<cl_uint>(device_, CL_DEVICE_MAX_COMPUTE_UNITS, 1));
  // A CPU's driver runs a work-group's items one after the other: there the vectors are in the kernel, and sharing a row only costs.
  if (!settings_.alone.value_or((type_ & CL_DEVICE_TYPE_CPU) != 0)) {
    const size_t most = device_value<size_t>(device_, CL_DEVICE_MAX_WORK_GROUP_SIZE, 1);
    limits_.threads = std::bit_floor(static_cast<uint32_t>(std::min<size_t>(most, kMostThreads)));
    limits_.lanes = std::min(32u, limits_.threads);
    limits_.columns = 8;
  }
  return choose_math();
}

// What the device is fast at, unless the options say otherwise.
Result<> Context::choose_math() {
  const bool has_f16 = has_word(extensions_, "cl_khr_fp16");
  bool fast_dot = false;
#ifdef cl_khr_integer_dot_product
  if (has_word(extensions_, "cl_khr_integer_dot_product")) {
    const auto kinds =
        device_value<cl_device_integer_dot_product_capabilities_khr>(device_, CL_DEVICE_INTEGER_DOT_PRODUCT_CAPABILITIES_KHR, 0);
    const auto speed = device_value<cl_device_integer_dot_product_acceleration_properties_khr>(
        device_, CL_DEVICE_INTEGER_DOT_PRODUCT_ACCELERATION_PROPERTIES_4x8BIT_PACKED_KHR, {});
    limits_.int_dot = (kinds & CL_DEVICE_INTEGER_DOT_PRODUCT_INPUT_4x8BIT_PACKED_KHR) != 0;
    fast_dot = limits_.int_dot && speed.signed_accelerated != CL_FALSE;
  }
#endif
  // On CPUs f32 is the fastest: Intel's driver, which has both of the others, takes 3 to 5 times as long with them.
  if ((type_ & CL_DEVICE_TYPE_GPU) != 0) limits_.math = fast_dot ? Math::int8 : has_f16 ? Math::f16 : Math::f32;
  if (!settings_.math) return {};
  limits_.math = *settings_.math;
  if (limits_.math == Math::f16 && !has_f16)
    return fail(Code::unimplemented, text(label_, " (", name_, "): option math=f16: the device has no cl_khr_fp16"));
  return {};
}

Result<> Context::make_queue() {
  cl_int error = CL_SUCCESS;
  const cl_context_properties properties[] = {CL_CONTEXT_PLATFORM, reinterpret_cast<cl_context_properties>(platform_), 0};
  context_ = ContextHandle(clCreateContext(properties, 1, &device_, nullptr, nullptr, &error));
  FTH_RETURN_IF_ERROR(check(error, text(label_, ": clCreateContext")));
  queue_ = QueueHandle(
      clCreateCommandQueue(context_.get(), device_, CL_QUEUE_PROFILING_ENABLE, &error));  // in order; the newer call needs OpenCL 2.0
  return check(error, text(label_, ": clCreateCommandQueue"));
}

fth_device_info Context::info() const {
  fth_device_info i{};
  const bool software = (type_ & CL_DEVICE_TYPE_CPU) != 0;
  i.kind = software ? FTH_KIND_CPU : FTH_KIND_GPU;
  i.flags = (software ? FTH_DEVICE_SOFTWARE : 0) | (in_host_memory_ ? FTH_DEVICE_HOST_MEMORY : 0);
  std::snprintf(i.name, sizeof i.name, "%s", label_.c_str());
  const std::string description = text(name_, "; ", kind_name(type_), "; ", driver_, "; ", version_.substr(0, 10), "; products in ",
                                       math_name(limits_.math), ", ", limits_.lanes, limits_.lanes > 1 ? " lanes" : " lane");
  std::snprintf(i.description, sizeof i.description, "%s", description.c_str());
  i.memory_bytes = device_value<cl_ulong>(device_, CL_DEVICE_GLOBAL_MEM_SIZE, 0);
  i.free_bytes = free_bytes();
  i.alignment = 64;
  i.bytes_per_second = bytes_per_second_;
  i.flops_per_second = flops_per_second_;
  i.launch_seconds = launch_seconds_;
  return i;
}

// Three short timings, so that placement rests on this machine's numbers: a smallest kernel alone, one of many, a copy within the device.
Result<> Context::measure() {
  constexpr uint32_t kDispatches = 64, kCopies = 8;
  constexpr uint64_t kBytes = 64 * kMiB;  // two of these pass the largest cache on a device
  if ((type_ & CL_DEVICE_TYPE_CPU) != 0 && !settings_.measure) {
    launch_seconds_ = kSoftwareLaunchSeconds;
    dispatch_seconds_ = kSoftwareDispatchSeconds;
    bytes_per_second_ = settings_.bytes_per_second > 0 ? settings_.bytes_per_second : kSoftwareBytesPerSecond;
    flops_per_second_ = settings_.flops_per_second > 0 ? settings_.flops_per_second : kSoftwareFlopsPerSecond;
    return {};
  }
  const auto best_of = [&](int times, const auto& enqueue) -> Result<double> {
    double best = 1e9;
    for (int i = 0; i < times; ++i) {
      const auto start = std::chrono::steady_clock::now();
      FTH_RETURN_IF_ERROR(enqueue());
      FTH_RETURN_IF_ERROR(check_run(clFinish(queue_.get()), text(label_, ": clFinish")));
      best = std::min(best, seconds_since(start));
    }
    return best;
  };
  FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> small, allocate(kKiB));
  FTH_ASSIGN_OR_RETURN(const KernelHandle add, kernel({KernelName::Source::basic, "add", text("-DTHREADS=", limits_.threads)}, 64));
  const cl_mem memory = small->memory();
  const cl_ulong at = small->base();
  const cl_uint width = 64;
  for (cl_uint i = 0; i < 3; ++i) {
    FTH_RETURN_IF_ERROR(set_argument(add.get(), 2 * i, memory, "add"));
    FTH_RETURN_IF_ERROR(set_argument(add.get(), 2 * i + 1, at, "add"));
  }
  FTH_RETURN_IF_ERROR(set_argument(add.get(), 6, width, "add"));
  const auto dispatch = [&](uint32_t times) -> Result<> {
    constexpr size_t kItems[] = {64, 1}, kLocal[] = {64, 1};
    for (uint32_t i = 0; i < times; ++i)
      FTH_RETURN_IF_ERROR(check_run(clEnqueueNDRangeKernel(queue_.get(), add.get(), 2, nullptr, kItems, kLocal, 0, nullptr, nullptr),
                                    text(label_, ": clEnqueueNDRangeKernel")));
    return {};
  };
  FTH_ASSIGN_OR_RETURN(launch_seconds_, best_of(5, [&] { return dispatch(1); }));
  FTH_ASSIGN_OR_RETURN(const double many, best_of(3, [&] { return dispatch(kDispatches); }));
  dispatch_seconds_ = std::max(1e-7, (many - launch_seconds_) / kDispatches);

  bytes_per_second_ = settings_.bytes_per_second;
  if (bytes_per_second_ == 0) {
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> a, allocate(kBytes));
    FTH_ASSIGN_OR_RETURN(const std::unique_ptr<Buffer> b, allocate(kBytes));
    FTH_ASSIGN_OR_RETURN(const double seconds, best_of(3, [&]() -> Result<> {
                           for (uint32_t i = 0; i < kCopies; ++i) {
                             const cl_mem src = (i % 2 == 0 ? a : b)->memory(), dst = (i % 2 == 0 ? b : a)->memory();
                             FTH_RETURN_IF_ERROR(check_run(clEnqueueCopyBuffer(queue_.get(), src, dst, 0, 0, kBytes, 0, nullptr, nullptr),
                                                           text(label_, ": clEnqueueCopyBuffer")));
                           }
                           return {};
                         }));
    bytes_per_second_ = 2.0 * kCopies * static_cast<double>(kBytes) / std::max(1e-7, seconds - launch_seconds_);  // read and written
  }
  flops_per_second_ = settings_.flops_per_second > 0 ? settings_.flops_per_second : kFlopsPerByte * bytes_per_second_;
  return {};
}

}  // namespace fth::opencl
