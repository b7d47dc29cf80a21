#pragma once
// A recorder's lanes as a trace viewer shows them: one track per thread, per device that was used, per read in flight, and counters.

#include <cstdint>
#include <string>
#include <vector>

#include "core/profile/recorder.h"

namespace fth {

enum class TrackKind { thread, device, storage };

// Events in order of their begin, an enclosing one before those inside it. On a track any two events either nest or do not overlap.
struct Track {
  TrackKind kind = TrackKind::thread;
  std::string name;
  std::vector<Event> events;
};

// The engine's thread first, then the pool's other threads, then devices, then storage: reads overlap, so each goes to the first row that is free,
// and the waits for them have a row of their own. Tracks without events are left out, the engine's and the pool's are not.
std::vector<Track> make_tracks(const Recorder& recorder);

// The sampled counters, and "bytes in flight": what reads have under way, at every change. In order of time.
std::vector<Event> make_counters(const Recorder& recorder);

}  // namespace fth
