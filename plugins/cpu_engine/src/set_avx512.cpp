// Kernel set "avx512": AVX-512 F, BW, DQ and VL; bf16 is expanded to fp32 in registers.
#include "simd_avx512.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_avx512.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kAvx512Bf16 = make_kernels<WideBf16>("avx512", Dtype::kBf16);
const Kernels kAvx512Fp32 = make_kernels<PlainFp32>("avx512", Dtype::kFp32);

}  // namespace superinfer::cpu
