// The compiled copy kernels, inside this library.
#pragma once

namespace duplexkv::cuda {

// For the driver's module loader; nullptr in a build that had no nvcc. Static.
const void* kernel_image() noexcept;

}  // namespace duplexkv::cuda
