#pragma once
// Opening a store over made-up files, and picking experts.

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "tests/experts/faulty_reader.h"
#include "tests/experts/files.h"

namespace fth::test {

inline std::vector<int32_t> some_experts(std::mt19937* random, int64_t n_expert, int64_t count) {
  std::vector<int32_t> ids(static_cast<size_t>(n_expert));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), *random);
  ids.resize(static_cast<size_t>(count));
  return ids;
}

inline std::unique_ptr<ExpertStore> open_store(const ExpertFiles& files, uint64_t n_slots, ExpertStoreOptions options = {}) {
  options.bytes = files.slots(n_slots);
  auto store = ExpertStore::open(files.source(), options);
  if (!store) throw std::runtime_error(store.error().message);
  return std::move(*store);
}

inline std::unique_ptr<ExpertStore> open_faulty(const ExpertFiles& files, uint64_t n_slots, Faults faults,
                                                ExpertStoreOptions options = {}) {
  options.bytes = files.slots(n_slots);
  auto store = ExpertStore::open(files.source(), options, faulty(std::move(faults)));
  if (!store) throw std::runtime_error(store.error().message);
  return std::move(*store);
}

}  // namespace fth::test
