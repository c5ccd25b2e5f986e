// Kernel set "avx2": AVX2 and FMA; bf16 is expanded to fp32 in registers.
#include "simd_avx2.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_avx2.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kAvx2Bf16 = make_kernels<WideBf16>("avx2", Dtype::kBf16);
const Kernels kAvx2Fp32 = make_kernels<PlainFp32>("avx2", Dtype::kFp32);

}  // namespace superinfer::cpu
