#pragma once
// Which backends are being called right now, by thread: for who has to say whose code it was when a signal ends the process. Kept by the handles of device.h.

#include <array>
#include <atomic>
#include <cstddef>

#include "plugins/abi/fth_backend.h"

namespace fth {

// A thread that calls backends has a lane; the seventeenth shares the first's. A global, and no object that is passed down, because a signal handler reaches nothing else.
class PluginCalls {
 public:
  static constexpr size_t kLanes = 16;
  // The backend that this thread is in; null: in none.
  static const fth_backend* own() { return lane_ < 0 ? nullptr : at(static_cast<size_t>(lane_)).load(std::memory_order_relaxed); }
  // Whether this thread has ever called one: a driver's own threads and the pool's have not.
  static bool calls() { return lane_ >= 0; }
  static std::atomic<const fth_backend*>& at(size_t lane) { return lanes_[lane]; }

 private:
  friend class PluginCall;
  static size_t lane() {
    if (lane_ < 0) lane_ = static_cast<int>(next_.fetch_add(1, std::memory_order_relaxed) % kLanes);
    return static_cast<size_t>(lane_);
  }
  static inline constinit std::array<std::atomic<const fth_backend*>, kLanes> lanes_{};
  static inline constinit std::atomic<size_t> next_{0};
  static inline constinit thread_local int lane_ = -1;
};

// One call, for as long as it lasts. They nest: a backend may be called while another's handle is built.
class PluginCall {
 public:
  explicit PluginCall(const fth_backend& api) : lane_(PluginCalls::at(PluginCalls::lane())) {
    before_ = lane_.load(std::memory_order_relaxed);
    lane_.store(&api, std::memory_order_relaxed);
  }
  PluginCall(const PluginCall&) = delete;
  PluginCall& operator=(const PluginCall&) = delete;
  ~PluginCall() { lane_.store(before_, std::memory_order_relaxed); }

 private:
  std::atomic<const fth_backend*>& lane_;
  const fth_backend* before_;
};

}  // namespace fth
