#pragma once
// What a run says at its end: what ran where, and one line of speeds. The same figures as JSON.

#include <boost/json/object.hpp>
#include <span>
#include <string>
#include <vector>

#include "tools/cli/open.h"

namespace fth::cli {

// "cpu  attention  240  12.1 ms  9.31 GB/s", a row for each device and kind of segment. Empty when nothing ran.
std::string segment_table(const Stats& stats);
// One line: prompt and decode tok/s, GB/s and its share of the measured bandwidth, peak RSS, devices.
std::string summary_line(const Opened& opened, const Stats& stats);
// What reading experts cost while decoding, two lines; empty when none were streamed.
std::string streaming_lines(const Opened& opened, const Stats& stats);
// max(time computing, time reading) / time taken, of the decoding: 1 when storage is hidden as far as physics allows.
double overlap(const Stats& stats);
// For each refusal of the plan: "vulkan:0: software device".
// What went to and came from the file of the KV cache; empty when it is all in memory.
std::string kv_line(const Stats& stats);
std::string refusal_lines(const Plan& plan);

// By layer, which share of the neurons of the chosen experts let something pass, of single tokens since the engine was opened. Empty where no device counts them.
std::vector<double> live_shares(const Engine& engine);
// Bytes of a token's chosen experts that decoding need not read, by those shares: up rows of dead neurons, and their codes where down has a run for each neuron.
double dead_bytes(const Engine& engine);
// "live neurons 34.9 %; by layer: 36 35 34"; empty when there are none.
std::string live_text(std::span<const double> shares);

boost::json::object stats_json(const Opened& opened, const Stats& stats);
// The devices that the plan uses, "cpu, vulkan:0".
std::string devices_used(const Plan& plan);
std::vector<std::string> device_names(const Plan& plan);
double per_second(double amount, double seconds);  // 0 when no time has passed

}  // namespace fth::cli
