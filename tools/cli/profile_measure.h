#pragma once
// One column of a profile: a placement, measured. The same tokens for every column.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/engine/engine.h"
#include "core/profile/statistics.h"

namespace fth::cli {

struct ProfileWork {
  std::vector<int32_t> prompt;  // read in steps of the engine's ubatch
  std::vector<int32_t> decode;  // one by one after it; empty: `n_decode` tokens, each the likeliest after the one before
  int64_t n_decode = 0;
  int64_t repetitions = 3;
  double seconds = 10;  // about how long prefill may take, and decoding; a slow device gets fewer tokens and repetitions
};

struct Column {
  std::string name;   // "cpu", "vulkan:0"
  std::string about;  // the device's description
  bool software = false;
  std::vector<std::string> devices;                     // names by index, as the rows refer to them
  std::vector<Roofline> rooflines;                      // by index
  size_t subject = 0;                                   // the index of the device that the column is about
  int64_t n_prompt = 0, n_decode = 0, repetitions = 0;  // what was measured
  bool shortened = false;                               // less than asked for, because of ProfileWork::seconds
  std::vector<SegmentRow> segments;
  StepRow decode, prefill;
  Spread sample;
  std::vector<Arena> arenas;
  std::string streaming;
  double predicted_s = 0;  // of one token, by the plan
  uint64_t resident_bytes = 0;
  int64_t minor_faults = 0, major_faults = 0;  // while measuring
  std::vector<uint64_t> experts;               // [layer * n_expert + expert] how often chosen, over what was measured
  std::vector<double> live;                    // live_shares()
  std::unique_ptr<Recorder> recorder;
};

// Measures: once unrecorded, then work.repetitions, then once with the CPU clocks. on_progress(share done) may be null.
// cancelled when interrupted.
Result<Column> measure_column(Engine& engine, std::string name, const ProfileWork& work, const std::function<void(double)>& on_progress);

}  // namespace fth::cli
