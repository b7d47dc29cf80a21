#pragma once
// The table of architectures: a name as `general.architecture` has it, and the function that turns such a file's keys and tensors into a Model.
// A new model is one file with such a function and one line in table.cpp (docs/adding-a-model.md).

#include <span>
#include <string_view>

#include "core/base/result.h"
#include "core/model/config.h"
#include "core/model/model_reader.h"

namespace fth {

struct Architecture {
  std::string_view name;
  // Fills `model` but for its file, architecture and name, which the caller has set.
  Result<void> (*read)(ModelReader& reader, Model& model);
};

std::span<const Architecture> architectures();

}  // namespace fth
