// Kernel set "amx": AMX-BF16 for the matrix products, AVX-512 with BF16 for the rest.
#include "simd_avx512.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_amx.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kAmxBf16 = make_kernels<PairBf16>("amx", Dtype::kBf16);

}  // namespace superinfer::cpu
