// Copies by the GPU's copy engines: many in one call of the driver where that is to be trusted, one
// call a copy otherwise. One per stream; its owner's thread only.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "backend.hpp"
#include "cuda_device.hpp"

namespace duplexkv::cuda {

// More in one call has crashed and hung drivers.
inline constexpr std::size_t kBatchCopiesMax = 4096;
// Calls that failed before batches are given up.
inline constexpr unsigned kBatchFailuresMax = 3;

// Architectures on which batches are known to crash or hang, whatever a small trial says: not used
// unless asked for.
bool batch_is_faulty(int capability) noexcept;

// Host memory that was registered piece by piece: one copy may not touch two of the pieces.
struct HostChunks {
  std::uintptr_t base = 0;
  std::uint64_t bytes = 0;        // of all
  std::uint64_t chunk_bytes = 0;  // of one; 0: there is but one
};

// Descriptors of one slice, cut where a chunk ends.
struct CutAtChunks {
  std::vector<std::uintptr_t> source;
  std::vector<std::uintptr_t> target;
  std::vector<std::size_t> bytes;

  // Whether the slice needs it; `this` then holds the same copies. Throws std::bad_alloc.
  bool cut(const Slice& slice, HostChunks chunks);
};

class EngineCopies {
 public:
  EngineCopies(const Device* device, bool batch, HostChunks chunks = {}) noexcept
      : driver_(&device->driver()),
        batch_(batch && driver_->memcpy_batch != nullptr),
        chunks_(chunks) {}

  // Puts the copies into the stream, or none of them: where some were queued before one was
  // refused, it waits for those. The caller is on the device (Current).
  Result copy(void* stream, const Slice& slice, SourceOrder order) noexcept;

  [[nodiscard]] bool batch() const noexcept { return batch_; }
  [[nodiscard]] bool batch_failed() const noexcept { return failures_ > 0; }

 private:
  Result copy_whole(void* stream, const Slice& slice, SourceOrder order) noexcept;
  Result copy_batch(void* stream, const Slice& slice, SourceOrder order) noexcept;
  Result copy_each(void* stream, const Slice& slice) noexcept;

  const Driver* driver_;
  bool batch_;
  unsigned failures_ = 0;
  HostChunks chunks_;
  std::array<CutAtChunks, 2> cuts_;  // in turns: a lane has two slices in the air
  std::size_t next_cut_ = 0;
};

}  // namespace duplexkv::cuda
