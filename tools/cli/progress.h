#pragma once
// A progress bar on standard error: only on a terminal, only when the work takes longer than a blink, gone when it is done.

#include <chrono>
#include <cstdint>
#include <string>

namespace fth::cli {

class Progress {
 public:
  enum class Unit { bytes, tokens };
  Progress(std::string what, Unit unit, bool enabled);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(uint64_t done, uint64_t total);
  void clear();

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_;
  Unit unit_;
  bool enabled_, drawn_ = false;
  Clock::time_point start_ = Clock::now(), last_ = start_;
};

}  // namespace fth::cli
