// The tables that this build has; which of them the CPU can run is for dispatch.cpp to say.
#pragma once

#include "kernels.h"

namespace superinfer::cpu {

extern const Kernels kPortableBf16;
extern const Kernels kPortableFp32;
#if defined(__x86_64__)
extern const Kernels kAvx2Bf16;
extern const Kernels kAvx2Fp32;
extern const Kernels kAvx512Bf16;
extern const Kernels kAvx512Fp32;
extern const Kernels kAvx512Bf16PairBf16;
extern const Kernels kAmxBf16;
#elif defined(__aarch64__)
extern const Kernels kNeonBf16;
extern const Kernels kNeonFp32;
extern const Kernels kNeonPairBf16;
#endif

}  // namespace superinfer::cpu
