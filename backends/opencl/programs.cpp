// The kernels' text, embedded when the project was built, and the programs made of it on each device. What a driver compiled is kept in a folder if the
// device was opened with program_cache=FOLDER: a file for each program, named by a hash of all that it depends on.

#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "backends/opencl/context.h"

namespace fth::opencl {
namespace {

constexpr std::string_view kCommon =
#include "kernels/common.inc"
    ;
constexpr std::string_view kBlocks =
#include "kernels/blocks.inc"
    ;
constexpr std::string_view kBasic =
#include "kernels/basic.inc"
    ;
constexpr std::string_view kEmbed =
#include "kernels/embed.inc"
    ;
constexpr std::string_view kAttention =
#include "kernels/attention.inc"
    ;
constexpr std::string_view kMatmul =
#include "kernels/matmul.inc"
    ;

std::string source_of(KernelName::Source s) {
  switch (s) {
    case KernelName::Source::embed: return text(kCommon, kBlocks, kEmbed);
    case KernelName::Source::attention: return text(kCommon, kAttention);
    case KernelName::Source::matmul: return text(kCommon, kBlocks, kMatmul);
    default: return text(kCommon, kBasic);
  }
}

constexpr uint64_t kMaxBinary = 64 * kMiB;

// FNV-1a. A file that rots is meant to be noticed, not one that somebody forged: who can write there can write the plugin.
uint64_t hash_of(std::string_view bytes) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : bytes) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return h;
}

struct BinaryHead {
  char magic[8];
  uint64_t key_bytes, binary_bytes, hash;  // hash: of the key and the binary behind this head
};
constexpr char kMagic[8] = {'F', 'T', 'H', 'C', 'L', 'B', '1', '\n'};

}  // namespace

Result<ProgramHandle> Context::build(const std::string& source, const std::string& options) {
  cl_int error = CL_SUCCESS;
  const char* code = source.c_str();
  const size_t length = source.size();
  ProgramHandle made(clCreateProgramWithSource(context_.get(), 1, &code, &length, &error));
  FTH_RETURN_IF_ERROR(check(error, text(label_, ": clCreateProgramWithSource")));
  const cl_int built = clBuildProgram(made.get(), 1, &device_, options.c_str(), nullptr, nullptr);
  if (built == CL_SUCCESS) return made;
  std::string log;
  size_t bytes = 0;
  if (clGetProgramBuildInfo(made.get(), device_, CL_PROGRAM_BUILD_LOG, 0, nullptr, &bytes) == CL_SUCCESS && bytes < kMiB) {
    log.resize(bytes);
    if (clGetProgramBuildInfo(made.get(), device_, CL_PROGRAM_BUILD_LOG, bytes, log.data(), nullptr) != CL_SUCCESS) log.clear();
  }
  host_.log(FTH_LOG_ERROR, text(label_, ": the driver does not compile a kernel (", options, "): ", log.c_str()));
  Result<> failed = check(built, text(label_, ": clBuildProgram (", options, ")"));
  return tl::unexpected<Error>(std::move(failed).error());
}

// Null where there is no such file, it is not whole, was made of something else, or the driver does not take it: the program is then built.
ProgramHandle Context::load_binary(const std::string& path, const std::string& key, const std::string& options) {
  std::error_code e;
  if (!std::filesystem::is_regular_file(path, e) || std::filesystem::file_size(path, e) > kMaxBinary || e) return {};
  std::ifstream in(path, std::ios::binary);
  const std::string file((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  BinaryHead head{};
  if (file.size() < sizeof head) return {};
  std::memcpy(&head, file.data(), sizeof head);
  const std::string_view rest = std::string_view(file).substr(sizeof head);
  if (std::memcmp(head.magic, kMagic, sizeof kMagic) != 0 || head.key_bytes != key.size() || head.key_bytes > rest.size() ||
      head.binary_bytes != rest.size() - head.key_bytes || head.hash != hash_of(rest) || rest.substr(0, key.size()) != key)
    return {};
  const std::string_view binary = rest.substr(key.size());
  const size_t bytes = binary.size();
  const auto* data = reinterpret_cast<const unsigned char*>(binary.data());
  cl_int error = CL_SUCCESS, status = CL_SUCCESS;
  ProgramHandle made(clCreateProgramWithBinary(context_.get(), 1, &device_, &bytes, &data, &status, &error));
  if (error != CL_SUCCESS || status != CL_SUCCESS ||
      clBuildProgram(made.get(), 1, &device_, options.c_str(), nullptr, nullptr) != CL_SUCCESS)
    return {};
  return made;
}

// Through a temporary file and a rename: two programs that run together leave one whole file. What fails here costs only time at the next start.
void Context::save_binary(const std::string& path, const std::string& key, cl_program program) {
  size_t bytes = 0;
  if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof bytes, &bytes, nullptr) != CL_SUCCESS || bytes == 0 || bytes > kMaxBinary)
    return;
  std::string rest = key;
  rest.resize(key.size() + bytes);
  auto* data = reinterpret_cast<unsigned char*>(rest.data() + key.size());
  if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof data, &data, nullptr) != CL_SUCCESS) return;
  BinaryHead head{.magic = {}, .key_bytes = key.size(), .binary_bytes = bytes, .hash = hash_of(rest)};
  std::memcpy(head.magic, kMagic, sizeof kMagic);
  std::error_code e;
  std::filesystem::create_directory(settings_.program_cache, e);
  const std::string temporary = text(path, ".", static_cast<int>(getpid()));
  std::ofstream out(temporary, std::ios::binary);
  out.write(reinterpret_cast<const char*>(&head), sizeof head);
  out.write(rest.data(), static_cast<std::streamsize>(rest.size()));
  out.close();
  if (!out || std::rename(temporary.c_str(), path.c_str()) != 0) {
    host_.log(FTH_LOG_WARNING, text(label_, ": the program cache ", path, " could not be written"));
    std::remove(temporary.c_str());
  }
}

Result<cl_program> Context::program(const KernelName& kernel) {
  const std::string id = text(static_cast<uint32_t>(kernel.source), " ", kernel.options);
  if (const auto found = programs_.find(id); found != programs_.end()) return found->second.get();
  const std::string source = source_of(kernel.source);
  // The dot products are of OpenCL C 3.0, where f16 and the rest are of every version.
  const std::string options = text("-w -cl-std=", limits_.int_dot ? "CL3.0" : "CL1.2", " ", kernel.options);
  ProgramHandle made;
  std::string path, key;
  if (!settings_.program_cache.empty()) {
    key = text(driver_, "\n", platform_text(platform_, CL_PLATFORM_VERSION), "\n", name_, "\n", version_, "\n", options, "\n",
               std::to_string(hash_of(source)), "\n");
    char name[32];
    std::snprintf(name, sizeof name, "%016llx.clbin", static_cast<unsigned long long>(hash_of(key)));
    path = (std::filesystem::path(settings_.program_cache) / name).string();
    made = load_binary(path, key, options);
  }
  if (!made) {
    FTH_ASSIGN_OR_RETURN(made, build(source, options));
    if (!path.empty()) save_binary(path, key, made.get());
  }
  return programs_.emplace(id, std::move(made)).first->second.get();
}

Result<KernelHandle> Context::kernel(const KernelName& kernel, uint32_t local) {
  FTH_ASSIGN_OR_RETURN(const cl_program code, program(kernel));
  cl_int error = CL_SUCCESS;
  KernelHandle made(clCreateKernel(code, kernel.name, &error));
  FTH_RETURN_IF_ERROR(check(error, text(label_, ": clCreateKernel ", kernel.name)));
  size_t most = 0;
  FTH_RETURN_IF_ERROR(check(clGetKernelWorkGroupInfo(made.get(), device_, CL_KERNEL_WORK_GROUP_SIZE, sizeof most, &most, nullptr),
                            text(label_, ": clGetKernelWorkGroupInfo ", kernel.name)));
  if (most < local)
    return fail(Code::unimplemented, text(label_, ": kernel ", kernel.name, " needs work-groups of ", local, ", the device allows ", most));
  return made;
}

}  // namespace fth::opencl
