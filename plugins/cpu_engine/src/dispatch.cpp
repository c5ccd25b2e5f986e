// Which kernel sets this CPU can run.
#include <stdexcept>

#include "sets.h"
#include "trial.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace superinfer::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

// Whether the CPU has AMX-TILE and AMX-BF16 and the kernel lets this process use the tile
// registers.
bool may_use_amx() {
  constexpr unsigned kTileBit = 1U << 24;
  constexpr unsigned kBf16Bit = 1U << 22;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kTileBit) == 0 || (edx & kBf16Bit) == 0) return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Once a process: permission is granted to all its threads, and the trial's answer does not change.
bool has_amx() {
  static const bool usable =
      has_avx512_bf16() && may_use_amx() && passes_trial(kAmxBf16, kPortableBf16);
  return usable;
}
#elif defined(__aarch64__)
bool has_bfdot() {
  constexpr unsigned long kBf16 = 1UL << 14;  // HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
}
#endif

std::vector<const Kernels*> find_supported(Dtype dtype) {
  std::vector<const Kernels*> sets;
  const bool bf16 = dtype == Dtype::kBf16;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (bf16 && has_amx()) sets.push_back(&kAmxBf16);
  if (bf16 && has_avx512_bf16()) sets.push_back(&kAvx512Bf16PairBf16);
  if (has_avx512()) sets.push_back(bf16 ? &kAvx512Bf16 : &kAvx512Fp32);
  if (has_avx2()) sets.push_back(bf16 ? &kAvx2Bf16 : &kAvx2Fp32);
#elif defined(__aarch64__)
  if (bf16 && has_bfdot()) sets.push_back(&kNeonPairBf16);
  sets.push_back(bf16 ? &kNeonBf16 : &kNeonFp32);
#endif
  sets.push_back(bf16 ? &kPortableBf16 : &kPortableFp32);
  return sets;
}

}  // namespace

std::vector<const Kernels*> supported_kernels(Dtype dtype) {
  return find_supported(dtype);
}

const Kernels& select_kernels(const std::string& name, Dtype dtype) {
  const std::vector<const Kernels*> sets = supported_kernels(dtype);
  if (name == "auto") return *sets.front();
  std::string known = "auto";
  for (const Kernels* set : sets) {
    if (name == set->name) return *set;
    known += std::string(", ") + set->name;
  }
  throw std::invalid_argument("kernels: '" + name + "' is not one of " + known);
}

}  // namespace superinfer::cpu
