#include "cuda_image.hpp"

#ifdef DUPLEXKV_KERNELS
// The build gives the path of what nvcc made of cuda_kernels.cu.
asm(R"(
  .section .rodata
  .balign 64
  .local duplexkv_kernels
duplexkv_kernels:
  .incbin ")" DUPLEXKV_KERNELS R"("
  .byte 0
  .previous
)");
extern "C" const unsigned char duplexkv_kernels[] __attribute__((visibility("hidden")));
#endif

namespace duplexkv::cuda {

const void* kernel_image() noexcept {
#ifdef DUPLEXKV_KERNELS
  return duplexkv_kernels;
#else
  return nullptr;
#endif
}

}  // namespace duplexkv::cuda
