// The worker: one job after another, the devices' lock held for each.
#include "core/engine/background_compiler.h"

#include <utility>

#include "core/base/bytes.h"
#include "core/engine/engine_impl.h"

namespace fth {
namespace {

Result<> compile(BackgroundCompiler::Job& job) {
  Compiled& c = *job.compiled;
  FTH_ASSIGN_OR_RETURN(const fth_estimate estimate, job.device->estimate(c.segment.view()));
  c.workspace_bytes = estimate.workspace_bytes;
  if (c.workspace_bytes > job.workspace_limit)
    return fail(Code::internal,
                "a workspace of " + format_bytes(c.workspace_bytes) + ", planned were " + format_bytes(job.workspace_limit));
  std::vector<fth_binding> bound;
  for (const std::span<std::byte> w : job.weights) {
    FTH_ASSIGN_OR_RETURN(Buffer buffer, job.device->import_host(w.data(), w.size()));
    bound.push_back(buffer.whole());
    c.weights.push_back(std::move(buffer));
  }
  FTH_ASSIGN_OR_RETURN(c.executable, job.device->compile(c.segment.view(), bound));
  return {};
}

}  // namespace

BackgroundCompiler::BackgroundCompiler() = default;
BackgroundCompiler::~BackgroundCompiler() { ends_ = true; }

void BackgroundCompiler::add(Job job) {
  known_.insert(job.index);
  waiting_.push_back(std::move(job));
}

void BackgroundCompiler::start() {
  if (busy() || waiting_.empty()) return;
  begin_ = std::chrono::steady_clock::now();
  worker_ = std::async(std::launch::async, [this, jobs = std::exchange(waiting_, {})]() mutable {
    for (Job& job : jobs) {
      const std::lock_guard lock(devices_);
      if (ends_) break;
      const auto begin = std::chrono::steady_clock::now();
      job.outcome = compile(job);
      job.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    return std::move(jobs);
  });
}

std::vector<BackgroundCompiler::Job> BackgroundCompiler::take(bool wait) {
  if (!busy() || (!wait && worker_.wait_for(std::chrono::seconds(0)) != std::future_status::ready)) return {};
  return worker_.get();
}

void BackgroundCompiler::forget() {
  ends_ = true;
  take(true);
  ends_ = false;
  waiting_.clear();
  known_.clear();
}

double BackgroundCompiler::seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

}  // namespace fth
