// Kernel set "portable": plain C++ for whatever the compiler is told to target.
#include "simd_generic.h"
// The tile goes between the arithmetic and the loops that use it.
#include "tile_generic.h"
// clang-format off
#include "body_rows.h"
// clang-format on
#include "sets.h"

namespace superinfer::cpu {

const Kernels kPortableBf16 = make_kernels<WideBf16>("portable", Dtype::kBf16);
const Kernels kPortableFp32 = make_kernels<PlainFp32>("portable", Dtype::kFp32);

}  // namespace superinfer::cpu
