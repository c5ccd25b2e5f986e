// Kernel set "avx512-bf16": AVX-512 with VDPBF16PS.
#include "simd_avx512.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_avx512.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kAvx512Bf16PairBf16 = make_kernels<PairBf16>("avx512-bf16", Dtype::kBf16);

}  // namespace superinfer::cpu
