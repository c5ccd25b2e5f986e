// Kernel set "neon-bf16": NEON with BFDOT for the matrix products.
#include "simd_generic.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_neon.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kNeonPairBf16 = make_kernels<PairBf16>("neon-bf16", Dtype::kBf16);

}  // namespace superinfer::cpu
