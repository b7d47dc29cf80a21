#pragma once
// Writes float32 matrices as .npy files (NumPy format 1.0), row by row: the number of rows need not be known at the start. The file appears under its
// name only when it is complete (temporary file beside it, then rename).

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>

#include "core/base/result.h"

namespace fth::cli {

class NpyWriter {
 public:
  static Result<NpyWriter> create(const std::filesystem::path& path, int64_t cols);
  NpyWriter(NpyWriter&&) = default;
  NpyWriter& operator=(NpyWriter&&) = delete;
  ~NpyWriter();  // without finish(): the temporary file is removed

  Result<> append(std::span<const float> rows);  // a multiple of cols
  Result<> finish();                             // writes the shape, flushes to disk, renames
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }

 private:
  struct Close {
    void operator()(std::FILE* f) const { std::fclose(f); }
  };
  NpyWriter(std::filesystem::path path, std::filesystem::path temporary, std::FILE* file, int64_t cols);
  Result<> write_header();
  std::filesystem::path path_, temporary_;
  std::unique_ptr<std::FILE, Close> file_;
  int64_t cols_ = 0, rows_ = 0;
};

}  // namespace fth::cli
