// The .npy header has a fixed 128 bytes here, so that it can be rewritten with the final shape.

#include "tools/cli/npy.h"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "tools/cli/output.h"

namespace fth::cli {

static_assert(std::endian::native == std::endian::little, "the header says '<f4'");

NpyWriter::NpyWriter(std::filesystem::path path, std::filesystem::path temporary, std::FILE* file, int64_t cols)
    : path_(std::move(path)), temporary_(std::move(temporary)), file_(file), cols_(cols) {}

NpyWriter::~NpyWriter() {
  if (!file_) return;
  file_.reset();
  std::error_code ignored;
  std::filesystem::remove(temporary_, ignored);
}

Result<NpyWriter> NpyWriter::create(const std::filesystem::path& path, int64_t cols) {
  auto temporary = path;
  temporary += text(".%ld.part", static_cast<long>(::getpid()));
  std::FILE* file = std::fopen(temporary.c_str(), "wbe");
  if (file == nullptr) return fail(Code::failed_precondition, temporary.string() + ": " + std::strerror(errno));
  NpyWriter out(path, temporary, file, cols);
  FTH_RETURN_IF_ERROR(out.write_header());
  return out;
}

Result<> NpyWriter::write_header() {
  constexpr size_t kHeader = 128;
  std::string header("\x93NUMPY\x01\x00\x76\x00", 10);  // version 1.0; 0x76: the 118 bytes that follow
  header += text("{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }", static_cast<long long>(rows_),
                 static_cast<long long>(cols_));
  header.resize(kHeader - 1, ' ');
  header += '\n';
  if (std::fseek(file_.get(), 0, SEEK_SET) != 0 || std::fwrite(header.data(), 1, kHeader, file_.get()) != kHeader)
    return fail(Code::internal, temporary_.string() + ": " + std::strerror(errno));
  return {};
}

Result<> NpyWriter::append(std::span<const float> rows) {
  if (std::fwrite(rows.data(), sizeof(float), rows.size(), file_.get()) != rows.size())
    return fail(Code::internal, temporary_.string() + ": " + std::strerror(errno) + "; is the disk full?");
  rows_ += static_cast<int64_t>(rows.size()) / cols_;
  return {};
}

Result<> NpyWriter::finish() {
  FTH_RETURN_IF_ERROR(write_header());
  if (std::fflush(file_.get()) != 0 || ::fsync(::fileno(file_.get())) != 0)
    return fail(Code::internal, temporary_.string() + ": " + std::strerror(errno) + "; is the disk full?");
  std::error_code error;
  std::filesystem::rename(temporary_, path_, error);
  if (error) return fail(Code::internal, path_.string() + ": " + error.message());
  file_.reset();
  return {};
}

}  // namespace fth::cli
