// Fuzzes the model loader: any bytes end in a typed error or in a model whose every byte can be read.

#include <cstddef>
#include <cstdint>

#include "tests/model/touch.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  auto file = fth::Gguf::parse(bytes, "fuzz");
  if (!file) return 0;
  [[maybe_unused]] static volatile uint64_t sink = 0;
  sink = fth::test::touch(*file);
  // The override lets files without the gating key through; where nothing asks for it, the load is refused at its end.
  const fth::Override gating{"expert_gating_func", "sigmoid"};
  const bool sparse = file->string("general.architecture") == std::string_view("smallthinker");
  const auto model = fth::load_model(std::move(*file), std::span(&gating, sparse ? 1 : 0));
  if (model) sink = fth::test::touch(*model);
  return 0;
}
