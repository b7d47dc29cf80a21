#pragma once
// The bounds of a chat template: it comes with a model file and is not trusted. Past one of them, parse or render returns resource_exhausted.
// docs/chat-templates.md lists them for users.

#include <cstdint>

namespace fth::jinja {

inline constexpr uint64_t kMaxSourceBytes = 256 * 1024;
inline constexpr int kMaxNesting = 100;               // of the source's blocks and expressions, and of lists and dicts in a value
inline constexpr uint64_t kMaxSteps = 1'000'000;      // expressions and statements evaluated, list elements made
inline constexpr uint64_t kBytesPerStep = 256;        // text that is made or compared costs steps too
inline constexpr uint64_t kMaxOutputBytes = 8 << 20;  // rendered, with the blocks and macros being captured
inline constexpr uint64_t kMaxStringBytes = 8 << 20;  // strings that the template made and that are alive
inline constexpr int64_t kMaxRange = 100'000;
inline constexpr int kMaxMacroDepth = 64;
inline constexpr int kMaxDepth = 800;  // evaluation frames: macros within expressions within blocks; keeps the C++ stack below 2 MiB

}  // namespace fth::jinja
