// Trial copies before the lanes start: whether batches copy every byte, and how fast each way is.
// Has memory and a stream of its own; one thread, which is on the device (Current).
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "cuda_gpu.hpp"
#include "route.hpp"

namespace duplexkv::cuda {

class Trial final : public RouteTimer {
 public:
  // NoMemory when the GPU or the system has not twice kTrialBytesMax to spare.
  static Status create(const Device* device, const Kernels* kernels, std::unique_ptr<Trial>* out);
  ~Trial() override;

  // Copies segments of odd and even sizes to the GPU and back in batches and compares every byte,
  // those between the segments included.
  bool batch_copies_all();

  // Measurements start now. `batch`: whether the copy engines get batches.
  void start_timing(bool batch);
  double seconds(Route route, unsigned direction, std::size_t bytes,
                 std::size_t count) noexcept override;
  double elapsed_s() noexcept override;

 private:
  explicit Trial(const Device* device, const Kernels* kernels) noexcept
      : device_(device), kernels_(kernels) {}
  Status allocate();
  bool run(Route route, const Slice& slice, SourceOrder order) noexcept;

  const Device* device_;
  const Kernels* kernels_;
  DevicePtr on_device_ = 0;
  void* pinned_ = nullptr;
  std::unique_ptr<CopyStream> copier_;
  std::chrono::steady_clock::time_point started_;
  std::vector<std::uintptr_t> source_;
  std::vector<std::uintptr_t> target_;
  std::vector<std::size_t> bytes_;
};

}  // namespace duplexkv::cuda
