#pragma once
// Expert files for tests: every byte follows from its position, so that a test knows what has to be in memory without keeping it.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "core/experts/checksum.h"
#include "core/experts/expert_store.h"
#include "tests/model/files.h"

namespace fth::test {

inline std::byte byte_at(uint64_t offset, uint64_t salt) {
  const uint64_t x = ((offset >> 3) + salt * 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  return static_cast<std::byte>((x >> 29 ^ x >> 51) + offset);
}

struct Shape {
  bool packed = false;
  int64_t n_layer = 4, n_expert = 8, top_k = 3;
  uint64_t gate = 9000, up = 9000, down = 7001;  // bytes of one matrix; nothing is a multiple of a block
  uint64_t lead = 777;                           // before the first expert, as a header would be
};

inline void write_file(const std::filesystem::path& path, uint64_t bytes, uint64_t salt) {
  std::vector<std::byte> content(bytes);
  for (uint64_t i = 0; i < bytes; ++i) content[i] = byte_at(i, salt);
  std::FILE* f = std::fopen(path.c_str(), "wb");
  ASSERT_NE(f, nullptr);
  ASSERT_EQ(std::fwrite(content.data(), 1, bytes, f), bytes);
  ASSERT_EQ(std::fclose(f), 0);
}

// Unpacked: stacks of matrices as a GGUF has them, layers in turn in two files. Packed: a slab per expert at multiples of 4096, one file, with checksums.
// Layer 1 is dense when there are at least four.
class ExpertFiles {
 public:
  explicit ExpertFiles(const Shape& shape) : shape_(shape) {
    source_.top_k = shape.top_k;
    source_.fingerprint = 0x1234567890abcdefu;
    const size_t n_files = shape.packed ? 1 : 2;
    std::vector<uint64_t> at(n_files, shape.lead);
    for (size_t f = 0; f < n_files; ++f) source_.files.push_back(folder_ / ("experts-" + std::to_string(f) + ".bin"));
    for (int64_t l = 0; l < shape.n_layer; ++l) {
      ExpertSource::Layer layer;
      if (l != 1 || shape.n_layer < 4) {
        layer.n_expert = shape.n_expert;
        const auto n = static_cast<uint64_t>(shape.n_expert);
        const uint32_t file = static_cast<uint32_t>(static_cast<size_t>(l) % n_files);
        if (shape.packed) {
          const uint64_t begin = (at[0] + 4095) / 4096 * 4096;
          const uint64_t stride = (shape.gate + shape.up + shape.down + 64 + 4095) / 4096 * 4096;
          layer.gate = {0, begin, shape.gate, stride};
          layer.up = {0, begin + shape.gate, shape.up, stride};
          layer.down = {0, begin + shape.gate + shape.up + 64, shape.down, stride};  // a gap that no checksum covers
          at[0] = begin + n * stride;
          for (uint64_t e = 0; e < n; ++e) {
            std::vector<std::byte> slab;
            for (const auto* p : {&layer.gate, &layer.up, &layer.down})
              for (uint64_t i = 0; i < p->bytes; ++i) slab.push_back(byte_at(p->offset + e * stride + i, 0));
            layer.xxh3.push_back(xxh3_64({slab}));
          }
        } else {
          const auto stack = [&](uint64_t bytes) {
            const ExpertSource::Part part{file, at[file], bytes, bytes};
            at[file] += n * bytes + 33;
            return part;
          };
          layer.down = stack(shape.down);  // not in the order of use
          layer.gate = stack(shape.gate);
          layer.up = stack(shape.up);
        }
      }
      source_.layers.push_back(std::move(layer));
    }
    // The last expert ends with the file: its last block is short.
    for (size_t f = 0; f < n_files; ++f) write_file(source_.files[f], end(static_cast<uint32_t>(f)), f);
  }

  const ExpertSource& source() const { return source_; }
  const std::filesystem::path& file(size_t i) const { return source_.files[i]; }
  const std::filesystem::path& folder() const { return folder_.path(); }
  uint64_t slots(uint64_t n) const { return n * ExpertStore::slot_bytes(source_).value(); }
  bool sparse(int64_t layer) const { return source_.layers[static_cast<size_t>(layer)].n_expert > 0; }

  // Are the three matrices in memory what the file has?
  ::testing::AssertionResult right(const ExpertStore& store, int64_t layer, const ExpertPlace& place) const {
    const auto& l = source_.layers[static_cast<size_t>(layer)];
    const auto same = [&](const ExpertSource::Part& p, uint64_t at, const char* what) -> ::testing::AssertionResult {
      const auto memory = store.memory();
      const uint64_t offset = p.offset + static_cast<uint64_t>(place.expert) * p.stride;
      if (at + p.bytes > memory.size()) return ::testing::AssertionFailure() << what << " is outside of the memory";
      if (at % 4096 != offset % 4096) return ::testing::AssertionFailure() << what << " lost its alignment";
      for (uint64_t i = 0; i < p.bytes; ++i)
        if (memory[at + i] != byte_at(offset + i, p.file))
          return ::testing::AssertionFailure() << "layer " << layer << " expert " << place.expert << ' ' << what << " differs at byte "
                                               << i;
      return ::testing::AssertionSuccess();
    };
    if (auto r = same(l.gate, place.gate, "gate"); !r || !place.whole) return r;
    if (auto r = same(l.up, place.up, "up"); !r) return r;
    return same(l.down, place.down, "down");
  }

 private:
  uint64_t end(uint32_t file) const {
    uint64_t end = 0;
    for (const auto& l : source_.layers)
      for (const auto* p : {&l.gate, &l.up, &l.down})
        if (l.n_expert > 0 && p->file == file)
          end = std::max(end, p->offset + static_cast<uint64_t>(l.n_expert - 1) * p->stride + p->bytes);
    return end;
  }
  Shape shape_;
  TempDir folder_;
  ExpertSource source_;
};

// Takes all that a lease has; the experts in the order they came. Fails the test on an error.
inline std::vector<int32_t> drain(const ExpertFiles& files, const ExpertStore& store, int64_t layer, ExpertStore::Lease* lease) {
  std::vector<int32_t> ids;
  while (true) {
    const auto places = lease->next();
    if (!places) {
      ADD_FAILURE() << places.error().message;
      return ids;
    }
    if (places->empty()) return ids;
    for (const ExpertPlace& p : *places) {
      EXPECT_TRUE(files.right(store, layer, p));
      ids.push_back(p.expert);
    }
  }
}

}  // namespace fth::test
