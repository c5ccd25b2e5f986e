// Kernel set "neon": NEON, which every aarch64 CPU has; bf16 is expanded to fp32 in registers.
#include "simd_generic.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_neon.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kNeonBf16 = make_kernels<WideBf16>("neon", Dtype::kBf16);
const Kernels kNeonFp32 = make_kernels<PlainFp32>("neon", Dtype::kFp32);

}  // namespace superinfer::cpu
