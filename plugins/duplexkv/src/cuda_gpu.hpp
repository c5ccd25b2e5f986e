// CUDA behind the lanes' interface: streams, events, and slices that go the way the routing table
// says. Any thread; a stream of its own (create_stream) copies for one thread at a time.
//
// Callers' streams are recorded into and waited on, never copied into but by rotate; the legacy
// stream is refused, since it would wait for everything, and so is a record into a stream that is
// captured.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "arena.hpp"
#include "cuda_batch.hpp"
#include "cuda_device.hpp"
#include "cuda_launch.hpp"
#include "cuda_rotate.hpp"
#include "gpu.hpp"
#include "route.hpp"

namespace duplexkv::cuda {

struct MemoryRange {
  std::uintptr_t base = 0;
  std::uint64_t bytes = 0;

  [[nodiscard]] bool holds(std::uintptr_t address) const noexcept { return address - base < bytes; }
};

struct GpuConfig {
  const Driver* driver = nullptr;
  int ordinal = 0;
  Route route = Route::Auto;
  std::uint32_t batch = DKV_BATCH_AUTO;
  unsigned sms_max = 4;
  const void* kernels = nullptr;      // an image, or none
  const char* routes_file = nullptr;  // none: measured at each start
  double calibration_s = 0.05;        // 0: what is published is believed
  std::vector<MemoryRange> device;    // where the slices' device side lies: tells their direction
  HostChunks host;                    // what their other side lies in
  RotationPools pools;                // of a block-first engine; none: nothing is rotated
};

// One stream of ours and what copies in it.
struct CopyStream {
  CopyStream(const Device* device, const Kernels* kernels, bool batch, HostChunks chunks,
             void* handle) noexcept
      : stream(handle), engines(device, batch, chunks), kernel_copies(device, kernels) {}

  void* stream;
  EngineCopies engines;
  KernelCopies kernel_copies;

  // Route::Auto is not a route here. A kernel that declines leaves the slice to the copy engines.
  Result copy(Route route, const Slice& slice, SourceOrder order) noexcept;
};

class CudaGpu final : public Gpu {
 public:
  // NoDevice where there is no such GPU; Unsupported for a route this GPU or this build has not.
  // Throws std::bad_alloc.
  static Status create(const GpuConfig& config, std::unique_ptr<CudaGpu>* out);
  ~CudaGpu() override;

  GpuStatus create_stream(Stream* out) noexcept override;
  void destroy_stream(Stream stream) noexcept override;
  GpuStatus create_event(Event* out) noexcept override;
  void destroy_event(Event event) noexcept override;
  GpuStatus record(Event event, Stream stream) noexcept override;
  GpuStatus wait(Stream stream, Event event) noexcept override;
  GpuStatus wait_external(Stream stream, Event event) noexcept override;
  Progress query(Event event) noexcept override;
  GpuStatus copy(Stream stream, const Slice& slice, SourceOrder order) noexcept override;
  Status rotate(Stream stream, const dkv_rotation& rotation) noexcept override;
  Status rotation_refused(std::uint32_t direction, std::uint64_t* rows) noexcept override;
  bool capturing(Stream stream) noexcept override;
  void drain(Stream stream) noexcept override;

  [[nodiscard]] const Device& device() const noexcept { return *device_; }
  [[nodiscard]] const DeviceFacts& facts() const noexcept { return device_->facts(); }
  [[nodiscard]] const RouteTable& routes() const noexcept { return table_; }
  [[nodiscard]] bool batch() const noexcept { return batch_; }

 private:
  CudaGpu(const GpuConfig& config, std::unique_ptr<Device> device);
  Status prepare();
  [[nodiscard]] std::string routes_key() const;
  GpuStatus told(Result result) noexcept;
  [[nodiscard]] CopyStream* own(Stream stream) noexcept;
  [[nodiscard]] Route route_of(const Slice& slice) const noexcept;

  GpuConfig config_;
  std::unique_ptr<Device> device_;
  const Driver& driver_;
  Kernels kernels_;
  Rotations rotations_;
  RouteTable table_;
  bool batch_ = false;
  std::atomic<bool> lost_{false};
  std::mutex streams_mutex_;
  std::vector<std::unique_ptr<CopyStream>> streams_;
};

}  // namespace duplexkv::cuda
