// The onednn backend's own tests: which implementations are refused, and the 8-bit path on any CPU, with plain loops in oneDNN's place.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "backends/onednn/plan.h"
#include "core/base/half.h"
#include "core/model/interleaved.h"
#include "core/model/neuron_major.h"

namespace fth::onednn {
namespace {

using testing::HasSubstr;

// What a unit with VNNI computes, written out.
template <bool kInterleaved>
bool plain_groups(void*, const uint8_t* codes, const int8_t* panel, int64_t n_groups, int64_t p, int32_t* products) {
  for (int64_t g = 0; g < n_groups; ++g)
    for (int64_t r = 0; r < kTile; ++r)
      for (int64_t c = 0; c < p; ++c) {
        int32_t sum = 0;
        for (int64_t i = 0; i < kGroup; ++i) {
          const int64_t at = kInterleaved ? i / 4 * 4 * p + c * 4 + i % 4 : i * p + c;
          sum += codes[r * kChunk + g * kGroup + i] * panel[g * kGroup * p + at];
        }
        products[g * kTile * p + r * p + c] = sum;
      }
  return true;
}

// What a unit without VNNI does: pairs of products are added in 16 bits and saturate.
bool saturating_groups(void*, const uint8_t* codes, const int8_t* panel, int64_t n_groups, int64_t p, int32_t* products) {
  for (int64_t g = 0; g < n_groups; ++g)
    for (int64_t r = 0; r < kTile; ++r)
      for (int64_t c = 0; c < p; ++c) {
        int32_t sum = 0;
        for (int64_t i = 0; i < kGroup; i += 2) {
          const uint8_t* const a = codes + r * kChunk + g * kGroup + i;
          const int8_t* const b = panel + g * kGroup * p + i * p + c;
          sum += std::clamp(a[0] * b[0] + a[1] * b[p], -32768, 32767);
        }
        products[g * kTile * p + r * p + c] = sum;
      }
  return true;
}

bool plain_f32(void*, const float* values, const float* panel, int64_t depth, int64_t p, float* acc) {
  for (int64_t r = 0; r < kTile; ++r)
    for (int64_t i = 0; i < depth; ++i)
      for (int64_t c = 0; c < p; ++c) acc[r * kWide + c] += values[r * kChunk + i] * panel[i * p + c];
  return true;
}

// Adds nothing behind the 256th value of a row, as an implementation that is right for short rows only.
bool short_f32(void* left, const float* values, const float* panel, int64_t depth, int64_t p, float* acc) {
  int64_t& calls = *static_cast<int64_t*>(left);
  return calls++ % 10 == 0 ? plain_f32(nullptr, values, panel, depth, p, acc) : true;
}

Products int8_products(bool interleaved) {
  Products p;
  p.int8 = true;
  p.interleaved = interleaved;
  p.unit = interleaved ? 16 : 8;
  p.groups_at_once = interleaved ? 1 : 8;
  p.multiply_groups = interleaved ? plain_groups<true> : plain_groups<false>;
  return p;
}
Products f32_products() {
  Products p;
  p.multiply = plain_f32;
  return p;
}

class Onednn : public testing::Test {
 protected:
  void SetUp() override {
    if (tile_table() == nullptr) GTEST_SKIP() << "no AVX2, FMA and F16C";
  }
  const TileTable& tiles() const { return *tile_table(); }
};

TEST_F(Onednn, ReferenceImplementationsAreRefused) {
  for (const char* info : {"ref:any", "ref_int8:any", "ref"}) {
    const auto r = check_implementation(info);
    ASSERT_FALSE(r);
    EXPECT_THAT(r.error().message, HasSubstr(info));
  }
  EXPECT_TRUE(check_implementation("brg_matmul:avx2"));
  EXPECT_TRUE(check_implementation("gemm:jit"));

  const Library as_it_is(tiles(), "f32_matmul", "");
  EXPECT_NE(as_it_is.f32(), nullptr) << as_it_is.describe();
  const Library pretending(tiles(), "f32_matmul", "ref:any");
  EXPECT_EQ(pretending.f32(), nullptr);
  EXPECT_THAT(pretending.describe(), HasSubstr("ref:any"));
}

TEST_F(Onednn, SelfCheckTellsRightFromWrong) {
  for (const bool interleaved : {true, false}) {
    Products right = int8_products(interleaved);
    const auto checked = self_check(tiles(), &right);
    EXPECT_TRUE(checked) << checked.error().message;
    EXPECT_GT(right.seconds_per_column, 0);
  }
  Products f32 = f32_products();
  EXPECT_TRUE(self_check(tiles(), &f32));

  Products saturating = int8_products(false);
  saturating.multiply_groups = saturating_groups;
  const auto saturated = self_check(tiles(), &saturating);
  ASSERT_FALSE(saturated);
  EXPECT_THAT(saturated.error().message, HasSubstr("computes wrong: q8_0"));

  int64_t calls = 0;
  Products shortened = f32_products();
  shortened.self = &calls;
  shortened.multiply = short_f32;
  EXPECT_FALSE(self_check(tiles(), &shortened));
}

TEST_F(Onednn, NeuronMajorTilesAreThoseOfRows) {
  constexpr int64_t kRows = 96, kCols = 160;
  for (const DType type : {DType::q4_0, DType::q8_0}) {
    std::vector<std::byte> rows(static_cast<size_t>(kRows) * row_bytes(type, kCols)), neurons(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::byte>(i * 167 + i / 251);
    ASSERT_TRUE(to_neuron_major(type, kRows, kCols, rows.data(), neurons.data()));
    const WeightView a{rows.data(), static_cast<uint16_t>(type), false, false, kRows, kCols, row_bytes(type, kCols)};
    const WeightView b{neurons.data(), static_cast<uint16_t>(type), true, false, kRows, kCols, 0};
    for (const auto& [row, n] : {std::pair<int64_t, int64_t>{0, 64}, {64, 32}}) {
      std::vector<uint8_t> codes[2];
      std::vector<float> scales[2];
      for (int i = 0; i < 2; ++i) {
        codes[i].assign(static_cast<size_t>(kTile * kChunk), 0);
        scales[i].assign(static_cast<size_t>(kChunk / kGroup * kTile), 0);
        tiles().codes({.weight = i == 0 ? &a : &b, .row = row, .n = n, .k0 = 0, .depth = kCols}, codes[i].data(), scales[i].data());
      }
      for (int64_t r = 0; r < n; ++r)
        for (int64_t i = 0; i < kCols; ++i)
          ASSERT_EQ(codes[0][static_cast<size_t>(r * kChunk + i)], codes[1][static_cast<size_t>(r * kChunk + i)])
              << name(type) << r << ' ' << i;
      EXPECT_EQ(std::memcmp(scales[0].data(), scales[1].data(), scales[0].size() * sizeof(float)), 0);
    }
  }
}

TEST_F(Onednn, InterleavedTilesAreThoseOfRows) {
  constexpr int64_t kRows = 80, kCols = 288;  // 64 rows and 16, 256 columns and 32
  for (const DType type : {DType::q4_0, DType::q4_1}) {
    std::vector<std::byte> rows(static_cast<size_t>(kRows) * row_bytes(type, kCols)), panels(rows.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::byte>((i * 167 + i / 251) & 0xbf);  // no NaN among scales
    ASSERT_TRUE(to_interleaved(type, kRows, kCols, rows.data(), panels.data()));
    const WeightView a{rows.data(), static_cast<uint16_t>(type), false, false, kRows, kCols, row_bytes(type, kCols)};
    const WeightView b{panels.data(), static_cast<uint16_t>(type), false, true, kRows, kCols, row_bytes(type, kCols)};
    for (const auto& [row, n] : {std::pair<int64_t, int64_t>{0, 64}, {64, 16}})
      for (const auto& [k0, depth] : {std::pair<int64_t, int64_t>{0, 256}, {256, 32}}) {
        const TileArgs at{.weight = nullptr, .row = row, .n = n, .k0 = k0, .depth = depth};
        const auto tile = [&at](const WeightView& w) {
          TileArgs of = at;
          of.weight = &w;
          return of;
        };
        std::vector<float> values[2] = {std::vector<float>(static_cast<size_t>(kTile * kChunk)), {}};
        values[1] = values[0];
        tiles().floats(tile(a), values[0].data());
        tiles().floats(tile(b), values[1].data());
        EXPECT_EQ(values[0], values[1]) << name(type) << row << ' ' << k0;
        EXPECT_NE(values[0], std::vector<float>(values[0].size()));
        if (type != DType::q4_0) continue;
        std::vector<uint8_t> codes[2] = {std::vector<uint8_t>(values[0].size()), {}};
        std::vector<float> scales[2] = {std::vector<float>(static_cast<size_t>(kChunk / kGroup * kTile)), {}};
        codes[1] = codes[0], scales[1] = scales[0];
        tiles().codes(tile(a), codes[0].data(), scales[0].data());
        tiles().codes(tile(b), codes[1].data(), scales[1].data());
        EXPECT_EQ(codes[0], codes[1]);
        EXPECT_EQ(scales[0], scales[1]);
      }
  }
}

// One EXPERTS op, planned and run with given products.
struct Run8 {
  static constexpr int64_t kTokens = 21, kTopK = 2, kSlots = 3, kWidth = 96, kFf = 160;
  std::vector<float> x = std::vector<float>(kTokens * kWidth), y = std::vector<float>(kTokens * kTopK * kWidth);
  std::vector<int32_t> begin, rows;
  std::vector<std::vector<std::byte>> matrices;  // gate, up, down of each slot
  bool neuron_major;

  explicit Run8(bool by_neuron) : neuron_major(by_neuron) {
    uint32_t state = 1;
    const auto random = [&] { return state = state * 1664525u + 1013904223u, state >> 8; };
    for (float& v : x) v = static_cast<float>(random()) * 0x1p-23f - 1.0f;
    for (int64_t slot = 0; slot < kSlots; ++slot) {
      begin.push_back(static_cast<int32_t>(rows.size()));
      for (int64_t r = 0; r < kTokens * kTopK; ++r)
        if (r % kSlots == slot) rows.push_back(static_cast<int32_t>(r));
    }
    begin.push_back(static_cast<int32_t>(rows.size()));
    for (int64_t i = 0; i < 3 * kSlots; ++i) {
      const bool down = i % 3 == 2;
      const int64_t n = down ? kWidth : kFf, k = down ? kFf : kWidth;
      std::vector<std::byte> m(static_cast<size_t>(n) * row_bytes(DType::q4_0, k));
      for (size_t b = 0; b < m.size(); b += 18) {
        const uint16_t scale = f32_to_f16(0.02f);
        std::memcpy(m.data() + b, &scale, 2);
        for (size_t j = 2; j < 18; ++j) m[b + j] = static_cast<std::byte>(random());
      }
      if (down && neuron_major) {
        auto moved = m;
        EXPECT_TRUE(to_neuron_major(DType::q4_0, n, k, m.data(), moved.data()));
        m = std::move(moved);
      }
      matrices.push_back(std::move(m));
    }
  }

  Result<std::vector<float>> run(const TileTable& tiles, const Products* int8, const Products& f32) {
    const auto tensor = [](DType type, uint16_t role, std::initializer_list<int64_t> dims) {
      fth_tensor t{};
      t.dtype = static_cast<uint16_t>(type), t.role = role, t.rank = static_cast<uint32_t>(dims.size());
      std::copy(dims.begin(), dims.end(), t.dims);
      return t;
    };
    const fth_tensor tensors[] = {
        tensor(DType::f32, FTH_ROLE_INPUT, {kTokens, kWidth}),         tensor(DType::i32, FTH_ROLE_INPUT, {kSlots + 1}),
        tensor(DType::i32, FTH_ROLE_INPUT, {kTokens * kTopK}),         tensor(DType::q4_0, FTH_ROLE_SLOTS, {kSlots, kFf, kWidth}),
        tensor(DType::q4_0, FTH_ROLE_SLOTS, {kSlots, kFf, kWidth}),    tensor(DType::q4_0, FTH_ROLE_SLOTS, {kSlots, kWidth, kFf}),
        tensor(DType::f32, FTH_ROLE_OUTPUT, {kTokens * kTopK, kWidth})};
    fth_op op{};
    op.kind = FTH_OP_EXPERTS, op.n_in = 6, op.n_out = 1;
    for (uint16_t i = 0; i < 6; ++i) op.in[i] = i;
    op.out[0] = 6;
    op.attr[1] = kTopK, op.attr[2] = neuron_major ? 2 : 0;
    fth_segment segment{};
    segment.struct_size = sizeof segment, segment.n_tensors = 7, segment.n_ops = 1, segment.n_scalars = FTH_SCALAR_COUNT;
    segment.name = "experts", segment.tensors = tensors, segment.ops = &op;
    const auto view = sdk::SegmentView::make(&segment);
    EXPECT_TRUE(view);
    fth_host host{};
    host.struct_size = sizeof host, host.n_threads = 1;
    host.parallel_for = [](void*, uint32_t n, void (*body)(void*, uint32_t), void* arg) {
      for (uint32_t i = n; i-- > 0;) body(arg, i);
    };
    const Units units{tiles, int8, f32, 1};
    const auto plan = plan_segment(*view, units);
    EXPECT_TRUE(plan) << plan.error().message;
    std::vector<std::byte> workspace(plan->rules.workspace_bytes + 64, std::byte{0xff});
    auto* const aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64);
    std::byte* values[7] = {reinterpret_cast<std::byte*>(x.data()),
                            reinterpret_cast<std::byte*>(begin.data()),
                            reinterpret_cast<std::byte*>(rows.data()),
                            nullptr,
                            nullptr,
                            nullptr,
                            reinterpret_cast<std::byte*>(y.data())};
    std::byte* slots[3 * kSlots];
    for (size_t i = 0; i < 3 * kSlots; ++i) slots[i % 3 * kSlots + i / 3] = matrices[i].empty() ? nullptr : matrices[i].data();
    const sdk::Host services(&host);
    const Run run{
        .host = services, .units = units, .values = values, .slots = slots, .scratch = aligned, .n_tokens = kTokens, .n_slots = kSlots};
    FTH_RETURN_IF_ERROR(run_step(std::get<ExpertsStep>(plan->steps[0]), run));
    return y;
  }
};

TEST_F(Onednn, ExpertsOnEightBitsAreCloseToF32AndEqualInBothOrders) {
  const Products f32 = f32_products();
  std::vector<float> first;
  for (const bool interleaved : {true, false}) {
    const Products int8 = int8_products(interleaved);
    for (const bool by_neuron : {false, true}) {
      Run8 one(by_neuron);
      const std::vector<float> rounded = one.run(tiles(), &int8, f32).value(), whole = one.run(tiles(), nullptr, f32).value();
      double error = 0, power = 0;
      for (size_t i = 0; i < whole.size(); ++i) {
        error += std::pow(static_cast<double>(rounded[i] - whole[i]), 2);
        power += std::pow(static_cast<double>(whole[i]), 2);
      }
      EXPECT_LT(error, 1e-3 * power);
      EXPECT_GT(error, 0);  // activations were rounded
      if (first.empty()) first = rounded;
      EXPECT_EQ(first, rounded) << "interleaved " << interleaved << ", by neuron " << by_neuron;
    }
  }
}

TEST_F(Onednn, MalformedTablesAreRefusedBeforeAnythingIsWritten) {
  const Products f32 = f32_products();
  const std::pair<const char*, void (*)(Run8&)> kSpoilt[] = {
      {"slot_begin[0] is -1", [](Run8& r) { r.begin[0] = -1; }},
      {"slot_begin goes from", [](Run8& r) { r.begin[2] = 0; }},
      {"slot_begin goes from", [](Run8& r) { r.begin.back() += 1; }},
      {"rows[3] is -5", [](Run8& r) { r.rows[3] = -5; }},
      {"rows[0] is 42", [](Run8& r) { r.rows[0] = 42; }},
      {"is in two slots", [](Run8& r) { r.rows.front() = r.rows.back(); }},
      {"empty binding", [](Run8& r) { r.matrices[4].clear(); }},
  };
  for (const auto& [message, spoil] : kSpoilt) {
    Run8 one(false);
    spoil(one);
    const auto done = one.run(tiles(), nullptr, f32);
    ASSERT_FALSE(done) << message;
    EXPECT_THAT(done.error().message, HasSubstr(message));
    EXPECT_EQ(done.error().code, Code::invalid_argument);
    EXPECT_EQ(std::count(one.y.begin(), one.y.end(), 0.0f), static_cast<ptrdiff_t>(one.y.size()));
  }
}

TEST_F(Onednn, FailuresOfOneDnnAreErrors) {
  Run8 one(false);
  Products failing = f32_products();
  failing.multiply = [](void*, const float*, const float*, int64_t, int64_t, float*) { return false; };
  const auto done = one.run(tiles(), nullptr, failing);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::internal);
  EXPECT_FALSE(self_check(tiles(), &failing));
}

}  // namespace
}  // namespace fth::onednn
