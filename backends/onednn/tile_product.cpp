// One tile by many panels, and the check of a set of products before it is used.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/onednn/products.h"
#include "core/base/dtype.h"
#include "core/base/half.h"
#include "plugins/sdk/text.h"

namespace fth::onednn {
namespace {

constexpr int64_t kGroupsAtOnce = kChunk / kGroup;

bool multiply_int8(const TileTable& tiles, const Products& products, const TileArgs& args, const Panels& panels, float* acc) {
  alignas(64) uint8_t codes[kTile * kChunk];
  alignas(64) float weight_scales[kGroupsAtOnce * kTile];
  alignas(64) int32_t sums[kGroupsAtOnce * kTile * kPanel];
  tiles.codes(args, codes, weight_scales);
  const int32_t zero = args.weight->type == static_cast<uint16_t>(DType::q4_0) ? 8 : 128;
  const int64_t first = args.k0 / kGroup, groups = args.depth / kGroup;
  for (int64_t column = 0; column < panels.columns;) {
    const int64_t p = first_panel(panels.columns - column);
    const auto* const panel = reinterpret_cast<const int8_t*>(panels.data) + column * panels.groups * kGroup;
    const int64_t side = column * panels.groups;  // of the panel's scales and sums
    for (int64_t g = 0; g < groups;) {
      const int64_t n = groups - g >= products.groups_at_once ? products.groups_at_once : 1;
      if (!products.multiply_groups(products.self, codes + g * kGroup, panel + (first + g) * kGroup * p, n, p, sums)) return false;
      for (int64_t i = 0; i < n; ++i, ++g)
        tiles.add_group(sums + i * kTile * p, p, zero, weight_scales + g * kTile, panels.scales + side + (first + g) * p,
                        panels.sums + side + (first + g) * p, acc + column);
    }
    column += p;
  }
  return true;
}

bool multiply_f32(const TileTable& tiles, const Products& products, const TileArgs& args, const Panels& panels, float* acc) {
  alignas(64) float values[kTile * kChunk];
  tiles.floats(args, values);
  for (int64_t column = 0; column < panels.columns;) {
    const int64_t p = first_panel(panels.columns - column);
    const float* const panel = reinterpret_cast<const float*>(panels.data) + column * panels.groups * kGroup + args.k0 * p;
    if (!products.multiply(products.self, values, panel, args.depth, p, acc + column)) return false;
    column += p;
  }
  return true;
}

}  // namespace

bool multiply_tile(const TileTable& tiles, const Products& products, const WeightView& weight, int64_t row, int64_t n, const Panels& panels,
                   float* acc) {
  std::memset(acc, 0, static_cast<size_t>(kTile * kWide) * sizeof(float));
  const int64_t depth = panels.groups * kGroup;
  for (int64_t k0 = 0; k0 < depth; k0 += kChunk) {
    const TileArgs args{.weight = &weight, .row = row, .n = n, .k0 = k0, .depth = std::min(kChunk, depth - k0)};
    if (!(products.int8 ? multiply_int8(tiles, products, args, panels, acc) : multiply_f32(tiles, products, args, panels, acc)))
      return false;
  }
  return true;
}

namespace {

constexpr int64_t kCheckedDepth = 2560;  // of a model: some implementations are right at 256 and wrong here
constexpr int64_t kGroups = kCheckedDepth / kGroup;

// A small generator whose numbers are the same everywhere.
struct Random {
  uint64_t state = 0x9e3779b97f4a7c15u;
  uint32_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return static_cast<uint32_t>(state >> 32);
  }
  float unit() { return static_cast<float>(next()) * 0x1p-31f - 1.0f; }
};

struct Check {
  std::vector<std::byte> weights;
  std::vector<float> x;  // [kPanel, kCheckedDepth]
  std::vector<std::byte> data;
  std::vector<float> scales;
  std::vector<int32_t> sums;
  std::vector<float> acc = std::vector<float>(static_cast<size_t>(kTile * kWide));
  WeightView view{};
  Panels panels;

  void fill(DType type) {
    const DTypeTraits& t = traits(type);
    Random random;
    weights.resize(static_cast<size_t>(kTile * kGroups) * t.block_bytes);
    for (std::byte& b : weights) b = static_cast<std::byte>(random.next());
    for (size_t block = 0; block < static_cast<size_t>(kTile * kGroups); ++block) {
      std::byte* const at = weights.data() + block * t.block_bytes;
      const uint16_t scale = f32_to_f16(0.01f + 0.005f * random.unit());
      std::memcpy(at, &scale, sizeof scale);
      // Codes at their ends: sums of two products that pass 16 bits show units that saturate.
      if (block % 5 == 0) std::memset(at + 2, type == DType::q8_0 ? 0x7f : 0xff, t.block_bytes - 2);
    }
    x.resize(static_cast<size_t>(kPanel * kCheckedDepth));
    for (size_t i = 0; i < x.size(); ++i) x[i] = i / static_cast<size_t>(kGroup) % 7 == 0 ? 1.0f : random.unit();
    view = {
        weights.data(), static_cast<uint16_t>(type), false, false, kTile, kCheckedDepth, static_cast<uint64_t>(kGroups) * t.block_bytes};
  }

  void pack(const TileTable& tiles, const Products& products, int64_t p) {
    const float* rows[kPanel];
    for (int64_t c = 0; c < p; ++c) rows[c] = x.data() + c * kCheckedDepth;
    data.resize(static_cast<size_t>(p * kCheckedDepth) * (products.int8 ? 1 : sizeof(float)));
    scales.resize(static_cast<size_t>(p * kGroups));
    sums.resize(scales.size());
    if (products.int8) {
      tiles.pack_q8(rows, p, p, kCheckedDepth, p, products.interleaved, reinterpret_cast<int8_t*>(data.data()), scales.data(), sums.data());
    } else {
      tiles.pack_f32(rows, p, p, kCheckedDepth, p, reinterpret_cast<float*>(data.data()));
    }
    panels = {data.data(), scales.data(), sums.data(), kGroups, p};
  }

  double weight(int64_t row, int64_t i) const {
    const bool q4 = view.type == static_cast<uint16_t>(DType::q4_0);
    const std::byte* const block = weights.data() + static_cast<uint64_t>(row) * view.row_bytes + i / kGroup * (q4 ? 18 : 34);
    uint16_t scale = 0;
    std::memcpy(&scale, block, sizeof scale);
    const int64_t at = i % kGroup;
    const int code =
        q4 ? static_cast<int>(block[2 + at % 16] >> (at < 16 ? 0 : 4) & std::byte{15}) - 8 : static_cast<int8_t>(block[2 + at]);
    return static_cast<double>(f16_to_f32(scale)) * code;
  }
  // What the product is made of: x itself, or as 8 bits hold it.
  double activation(const Products& products, int64_t c, int64_t i) const {
    const double value = static_cast<double>(x[static_cast<size_t>(c * kCheckedDepth + i)]);
    if (!products.int8) return value;
    const float* const block = x.data() + c * kCheckedDepth + i / kGroup * kGroup;
    float most = 0;
    for (int64_t j = 0; j < kGroup; ++j) most = std::max(most, std::fabs(block[j]));
    return static_cast<double>(std::nearbyint(block[i % kGroup] * (127.0f / most))) * static_cast<double>(most / 127.0f);
  }
};

template <class F>
double shortest(const F& f) {
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 4; ++repeat) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

constexpr double kTolerance = 2e-5;  // of the sum of magnitudes: 2560 additions in f32

}  // namespace

Result<> self_check(const TileTable& tiles, Products* products) {
  Check check;
  bool same = true;
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    check.fill(type);
    std::vector<float> first_column;
    for (const int64_t p : kPanels) {
      if (p % products->unit != 0) continue;
      check.pack(tiles, *products, p);
      if (!multiply_tile(tiles, *products, check.view, 0, kTile, check.panels, check.acc.data()))
        return fail(Code::internal, sdk::text("oneDNN fails at ", p, " columns"));
      for (int64_t row = 0; row < kTile; row += 13)
        for (int64_t c = p / 8 - 1; c < p; c += p / 8) {
          double want = 0, magnitude = 0;
          for (int64_t i = 0; i < kCheckedDepth; ++i) {
            const double part = check.weight(row, i) * check.activation(*products, c, i);
            want += part, magnitude += std::fabs(part);
          }
          const double got = static_cast<double>(check.acc[static_cast<size_t>(row * kWide + c)]);
          if (!(std::fabs(got - want) <= kTolerance * magnitude))
            return fail(Code::internal, sdk::text("computes wrong: ", name(type), " row ", row, " column ", c, " of ", p, " at K ",
                                                  kCheckedDepth, " is ", got, ", not ", want));
        }
      std::vector<float> column;
      for (int64_t row = 0; row < kTile; ++row) column.push_back(check.acc[static_cast<size_t>(row * kWide)]);
      if (first_column.empty()) first_column = column;
      same = same && first_column == column;
    }
  }
  // A token's bits must not depend on how many others there are: where they do, panels have one width only.
  if (!same) products->unit = kPanel;
  // Unpacking alone, then the whole product of the widest panel.
  const double unpacking = shortest([&] {
    alignas(64) float values[kTile * kChunk];
    for (int64_t k0 = 0; k0 < kCheckedDepth; k0 += kChunk) {
      const TileArgs args{.weight = &check.view, .row = 0, .n = kTile, .k0 = k0, .depth = kChunk};
      if (products->int8) {
        tiles.codes(args, reinterpret_cast<uint8_t*>(values), check.acc.data());
      } else {
        tiles.floats(args, values);
      }
    }
  });
  const double product = shortest([&] { multiply_tile(tiles, *products, check.view, 0, kTile, check.panels, check.acc.data()); });
  if (products->leave) products->leave();
  products->seconds_per_tile = unpacking;
  products->seconds_per_column = std::max(0.0, product - unpacking) / static_cast<double>(kPanel);
  return {};
}

}  // namespace fth::onednn
