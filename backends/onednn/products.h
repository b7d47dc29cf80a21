#pragma once
// Products of one tile by one panel (kernels/tiles.h) done by oneDNN, from an ordered list of its implementations: brgemm ukernels on 8 bits, exact for a
// group of 32; matmul primitives on 8 bits; brgemm ukernels on f32; matmul primitives on f32. One is used only after it has computed right at the sizes
// of a model, and never one that calls itself "ref": those are a thousand times slower than a kernel.
//
// The shapes are few and fixed, whatever the model: 64 rows by panels of 8, 16, 32 or 64 columns, 256 or 32 deep. All are made when the device is opened,
// at most 8 for each implementation; a submit makes none.

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backends/onednn/kernels/tiles.h"
#include "core/base/result.h"

namespace fth::onednn {

// How products are done. Functions return false when oneDNN fails; any thread, several at once; they do not throw.
struct Products {
  void* self = nullptr;
  bool int8 = false;
  bool interleaved = false;                             // int8: panels as pack_q8 interleaves them
  int64_t unit = 8;                                     // panels have a multiple of these columns
  int64_t groups_at_once = 1;                           // int8: what multiply_groups takes, or 1
  double seconds_per_tile = 0, seconds_per_column = 0;  // measured: 64 rows of 2560 values, by no column and for each

  // int8: products [n_groups, kTile * p] of codes [kTile, kChunk] and a panel of groups.
  bool (*multiply_groups)(void* self, const uint8_t* codes, const int8_t* panel, int64_t n_groups, int64_t p, int32_t* products) = nullptr;
  // f32: acc [kTile, kWide] += values [kTile, kChunk] * panel; depth at most kChunk.
  bool (*multiply)(void* self, const float* values, const float* panel, int64_t depth, int64_t p, float* acc) = nullptr;
  // Called once by each thread behind its products.
  void (*leave)() = nullptr;
};

inline constexpr std::array<int64_t, 4> kPanels{8, 16, 32, 64};
inline size_t panel_index(int64_t p) { return p == 8 ? 0 : p == 16 ? 1 : p == 32 ? 2 : 3; }

enum class Implementation { int8_ukernel, int8_matmul, f32_ukernel, f32_matmul };
inline constexpr std::array<std::string_view, 4> kImplementations{"int8_ukernel", "int8_matmul", "f32_ukernel", "f32_matmul"};
inline std::string_view name(Implementation i) { return kImplementations[static_cast<size_t>(i)]; }

// failed_precondition for what oneDNN calls a reference implementation.
Result<> check_implementation(std::string_view impl_info);

// oneDNN's own, from an ordered list.
class Library {
 public:
  // only: one name of kImplementations, or empty. impl_info: what every primitive is taken to answer, for tests; empty: what it answers.
  Library(const TileTable& tiles, std::string_view only, std::string_view impl_info);
  ~Library();
  // For q4_0 and q8_0; null: there is none, f32() serves them.
  const Products* int8() const { return int8_; }
  const Products* f32() const { return f32_; }  // null: there is none
  std::string describe() const;                 // "int8_ukernel: no VNNI; f32_ukernel used: brgemm"
  static std::string version();

  struct Made;

 private:
  std::vector<std::unique_ptr<Made>> made_;
  const Products* int8_ = nullptr;
  const Products* f32_ = nullptr;
  std::vector<std::string> lines_;
};

// Multiplies a known matrix of q4_0 and one of q8_0, 64 rows of 2560 values with the largest codes among them, by 64 activation rows, in every panel
// width, and compares with sums in double; internal, with the numbers, when a value is off by more than rounding. Then takes the times.
Result<> self_check(const TileTable& tiles, Products* products);

// One tile: acc [kTile, kWide] = rows of the weight times panels that lie one behind the other. False when oneDNN fails.
struct Panels {
  const std::byte* data = nullptr;  // int8: codes, [columns][groups * kGroup]; else f32
  const float* scales = nullptr;    // int8: [columns][groups]
  const int32_t* sums = nullptr;
  int64_t groups = 0;   // of a column
  int64_t columns = 0;  // padded, at most kWide
};
bool multiply_tile(const TileTable& tiles, const Products& products, const WeightView& weight, int64_t row, int64_t n, const Panels& panels,
                   float* acc);

// The widest panel of at most `columns`, a multiple of 8.
inline int64_t first_panel(int64_t columns) { return columns >= 64 ? 64 : columns >= 32 ? 32 : columns >= 16 ? 16 : 8; }

}  // namespace fth::onednn
