#pragma once
// What timing experts on several devices gave: kept between runs in experts.json of the cache folder, and shown.

#include <boost/json/object.hpp>
#include <string>

#include "core/engine/engine.h"

namespace fth::cli {

KeptExpertTimes kept_expert_times();
// Seconds that devices took to compile a model, in compile.json.
KeptExpertTimes kept_compile_times();
// The crossover of `forethought plan`: time by rows of an expert, and what each bucket uses; empty when there was nothing to choose.
std::string expert_choice_text(const Engine& engine);
boost::json::object expert_choice_json(const Engine& engine);

}  // namespace fth::cli
