#pragma once
// Loads models from memory and states what must come of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/model/config.h"
#include "tests/model/gguf_writer.h"

namespace fth::test {

// The bytes live as long as the model that maps them.
struct Loaded {
  std::unique_ptr<const Bytes> bytes;
  Result<Model> model;
  Model* operator->() { return &*model; }
};

inline Loaded load(const GgufWriter& writer, const std::vector<Override>& overrides = {}) {
  auto bytes = std::make_unique<const Bytes>(writer.bytes());
  auto file = Gguf::parse(*bytes, "mem.gguf");
  if (!file) return {std::move(bytes), tl::unexpected<Error>(file.error())};
  auto model = load_model(std::move(*file), overrides);
  return {std::move(bytes), std::move(model)};
}

inline void expect_refused(const GgufWriter& writer, Code code, const std::string& says, const std::vector<Override>& overrides = {}) {
  const Loaded loaded = load(writer, overrides);
  ASSERT_FALSE(loaded.model) << "loads, but should say: " << says;
  EXPECT_EQ(loaded.model.error().code, code) << loaded.model.error().message;
  EXPECT_THAT(loaded.model.error().message, ::testing::HasSubstr(says));
}

}  // namespace fth::test
