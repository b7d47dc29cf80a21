// The tiles' functions with AVX-512 F, BW, DQ and VL.

#include "backends/onednn/kernels/tiles.inc"

namespace fth::onednn {
extern const TileTable kTilesAvx512;
const TileTable kTilesAvx512 = {"avx512", codes, floats, pack_f32, pack_q8, pack_q8_group, add_group};
}  // namespace fth::onednn
