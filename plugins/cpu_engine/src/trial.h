// A start-up trial of a kernel set: the same small products as by the portable set.
//
// For sets whose instructions need the kernel's consent or cannot be told from CPUID alone.
#pragma once

#include "kernels.h"

namespace superinfer::cpu {

// Whether `kernels` (bf16 activations) agrees with `reference` (fp32 activations, bf16 weights).
bool passes_trial(const Kernels& kernels, const Kernels& reference);

}  // namespace superinfer::cpu
