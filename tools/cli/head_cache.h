#pragma once
// What was measured of a screened head, kept from run to run: head.json in the cache folder, by model.

#include "core/engine/engine.h"
#include "tools/cli/flags.h"

namespace fth::cli {

// Gives the engine what earlier runs measured of its model, and keeps what this one adds when it ends. Does nothing without a screened head. The engine
// outlives it.
class HeadCache {
 public:
  explicit HeadCache(Engine& engine);
  HeadCache(const HeadCache&) = delete;
  HeadCache& operator=(const HeadCache&) = delete;
  ~HeadCache();

 private:
  Engine& engine_;
  HeadErrors known_;  // at the start
};

// "LM head: screened, ..." with what was multiplied, or why the exact one was used; empty when the exact one was asked for.
std::string head_line(const Engine& engine, const Stats& stats);

}  // namespace fth::cli
