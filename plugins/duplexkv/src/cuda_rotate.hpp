// Rotations whose plan is on the device: what is checked on the host before a launch, and the
// counters of what the device refused. Any thread; nothing here waits, and nothing but prepare
// allocates.
#pragma once

#include <array>
#include <cstdint>

#include "cuda_launch.hpp"
#include "duplexkv/registry.h"

namespace duplexkv::cuda {

class Rotations {
 public:
  // `device` and `kernels` outlive it.
  Rotations(const Device* device, const Kernels* kernels, const RotationPools& pools) noexcept
      : device_(device), kernels_(kernels), pools_(pools) {}
  // Every stream and graph that carries a rotation has ended.
  ~Rotations();
  Rotations(const Rotations&) = delete;
  Rotations& operator=(const Rotations&) = delete;

  // Makes the counters. Where there is no memory for them nothing is rotated, and nothing else
  // fails. The caller is on the device (Current).
  void prepare() noexcept;

  // Unsupported without a kernel for it; Invalid for a pool that is not the engine's, a direction
  // that is none, a plan or a count that is nowhere or not aligned.
  [[nodiscard]] Status check(const dkv_rotation& rotation) const noexcept;
  // A rotation that was checked. The caller is on the device.
  Result launch(void* stream, const dkv_rotation& rotation) const noexcept;
  // Rows of plans that were skipped so far, by dkv_direction.
  [[nodiscard]] std::uint64_t refused(std::uint32_t direction) const noexcept;

 private:
  // A cache line for each direction, in host memory that the GPU adds to and the host reads.
  struct alignas(64) Counter {
    std::uint64_t rows;
  };

  const Device* device_;
  const Kernels* kernels_;
  RotationPools pools_;
  Counter* counters_ = nullptr;  // [2]
};

}  // namespace duplexkv::cuda
