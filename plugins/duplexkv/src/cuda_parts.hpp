// From the C configuration of an engine to the GPU its lanes work on. No state.
#pragma once

#include <memory>

#include "cuda_driver.hpp"
#include "duplexkv/duplexkv.h"
#include "gpu.hpp"

namespace duplexkv::cuda {

// NoDevice, Unsupported (a route or batches this GPU has not), Invalid for pools that are not where
// they belong: the device's in the GPU's memory, the host's page-locked. Throws std::bad_alloc.
Status make_gpu(const Driver& driver, const void* kernels, const dkv_config& config,
                std::shared_ptr<Gpu>* out);

// With the system's driver and this build's kernels.
Status make_gpu(const dkv_config& config, std::shared_ptr<Gpu>* out);

}  // namespace duplexkv::cuda
