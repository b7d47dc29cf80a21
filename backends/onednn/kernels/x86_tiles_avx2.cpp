// The tiles' functions with AVX2, FMA and F16C.

#include "backends/onednn/kernels/tiles.inc"

namespace fth::onednn {
extern const TileTable kTilesAvx2;
const TileTable kTilesAvx2 = {"avx2", codes, floats, pack_f32, pack_q8, pack_q8_group, add_group};
}  // namespace fth::onednn
