// Copies by kernels. Kernels is one GPU's, read by any thread; KernelCopies is one stream's, its
// owner's thread only.
#pragma once

#include <array>
#include <cstddef>
#include <memory>

#include "backend.hpp"
#include "cuda_device.hpp"
#include "cuda_pieces.hpp"
#include "cuda_rotation.hpp"
#include "route.hpp"

namespace duplexkv::cuda {

// The pieces of a slice: the first `bulk` of `count` are fit for bulk copies.
struct Cut {
  std::size_t count = 0;
  std::size_t bulk = 0;
};

// Cuts a slice into pieces of at most kPieceBytes; `for_bulk`: those fit for bulk copies first.
// A count of 0: it takes more than `capacity`.
Cut cut_slice(const Slice& slice, bool for_bulk, Piece* pieces, std::size_t capacity) noexcept;

class Kernels {
 public:
  // Loads what `image` has for the device. Without an image, on a GPU too old, or where the driver
  // refuses, there are no kernels: routes() says so, and nothing else fails. `device` outlives it.
  Kernels(const Device* device, const void* image, unsigned sms_max) noexcept;
  ~Kernels();
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  [[nodiscard]] Routes routes() const noexcept {
    return {.register_kernel = register_ != nullptr, .tma_kernel = bulk_ != nullptr};
  }
  Result launch(Route route, void* stream, DevicePtr pieces, Cut cut) const noexcept;
  [[nodiscard]] bool rotates() const noexcept { return rotate_ != nullptr; }
  // On at most `sms_max` multiprocessors, 0: as many as copies of the lanes may take. Neither waits
  // nor allocates, also while a graph is captured from the stream. rotates(), and rows to read.
  Result launch_rotation(void* stream, const RotationTask& task, unsigned sms_max) const noexcept;

 private:
  void load_bulk() noexcept;

  const Device* device_;
  void* module_ = nullptr;
  void* register_ = nullptr;
  void* bulk_ = nullptr;
  void* rotate_ = nullptr;
  unsigned sms_;
  unsigned stages_ = 0;
};

class KernelCopies {
 public:
  // A slice of 32 MiB in 4096 descriptors fits, tails included.
  static constexpr std::size_t kPiecesMax = 12288;

  // Without memory for its tables it declines every slice. `kernels` may be null.
  KernelCopies(const Device* device, const Kernels* kernels) noexcept;
  // The stream has ended its work.
  ~KernelCopies();
  KernelCopies(const KernelCopies&) = delete;
  KernelCopies& operator=(const KernelCopies&) = delete;

  // Success with *taken false: the slice is not for a kernel now (no table is free, or it has too
  // many pieces). The caller is on the device (Current).
  Result copy(Route route, void* stream, const Slice& slice, bool* taken) noexcept;

 private:
  // Filled by the CPU, then copied to the GPU in the stream; free again when `read` has passed.
  struct Table {
    Piece* pinned = nullptr;
    DevicePtr on_device = 0;
    void* read = nullptr;
    bool used = false;
  };
  bool make(Table* table) noexcept;

  const Driver* driver_;
  const Kernels* kernels_;
  std::array<Table, 2> tables_{};
  std::size_t next_ = 0;
  bool ready_ = false;
};

}  // namespace duplexkv::cuda
