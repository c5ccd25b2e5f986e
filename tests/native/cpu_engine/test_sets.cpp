// Which kernel sets this CPU runs, so that the other tests, which go over all of them, cannot pass
// by leaving one out. Arguments: the sets that must be there (CMake: SUPERINFER_KERNEL_SETS).
#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "check.h"
#include "kernels.h"

using namespace superinfer::cpu;

int main(int count, char** arguments) {
  std::set<std::string> found;
  for (const Dtype dtype : {Dtype::kBf16, Dtype::kFp32}) {
    const std::vector<const Kernels*> sets = supported_kernels(dtype);
    CHECK(!sets.empty());
    CHECK(std::strcmp(sets.back()->name, "portable") == 0);
    CHECK(&select_kernels("auto", dtype) == sets.front());
    for (const Kernels* kernels : sets) {
      CHECK(kernels->dtype == dtype);
      std::printf("%s %s\n", kernels->name, dtype == Dtype::kBf16 ? "bf16" : "fp32");
      found.insert(kernels->name);
    }
  }
  for (int i = 1; i < count; ++i) {
    if (found.count(arguments[i]) == 0) {
      std::fprintf(stderr, "the kernel set %s does not run here\n", arguments[i]);
      return 1;
    }
  }
  return 0;
}
