// The progress bar: at most ten updates a second, so that drawing costs nothing beside the work.

#include "tools/cli/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "core/base/bytes.h"
#include "tools/cli/output.h"

namespace fth::cli {

Progress::Progress(std::string what, Unit unit, bool enabled)
    : what_(std::move(what)), unit_(unit), enabled_(enabled && is_terminal(STDERR_FILENO)) {}

Progress::~Progress() { clear(); }

void Progress::update(uint64_t done, uint64_t total) {
  const auto now = Clock::now();
  if (!enabled_ || total == 0 || now - start_ < std::chrono::milliseconds(300) || now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  drawn_ = true;
  constexpr size_t kWidth = 30;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const auto filled = static_cast<size_t>(share * kWidth);
  const std::string amount = unit_ == Unit::bytes ? format_bytes(done) + " of " + format_bytes(total)
                                                  : std::to_string(done) + " of " + std::to_string(total) + " tokens";
  const double left = share > 0 ? seconds / share - seconds : 0;
  const std::string line = text("\r\033[K%s [%s%s] %3.0f %% %s, %.0f s left", what_.c_str(), std::string(filled, '#').c_str(),
                                std::string(kWidth - filled, '.').c_str(), 100 * share, amount.c_str(), left);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

void Progress::clear() {
  if (!drawn_) return;
  std::fputs("\r\033[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

}  // namespace fth::cli
