// Pools from the arena, page-locked memory of a GPU, and what is known of one.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>

#include "duplexkv/cuda.h"

namespace duplexkv::binding {

namespace nb = nanobind;

// What an engine over CUDA is asked for; see dkv_config.
struct CudaChoice {
  std::int32_t device;
  std::uint32_t route;
  std::uint32_t batch;
  std::uint32_t sms_max;
  std::uint64_t host_chunk_bytes;
  std::optional<std::string> routes_file;

  void apply(dkv_config* config) const;
};

void add_memory(nb::module_& module);

}  // namespace duplexkv::binding
