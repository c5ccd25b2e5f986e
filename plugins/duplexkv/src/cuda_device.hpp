// One GPU: its primary context, held for the life of the object, and what is known of it. Any
// thread.
#pragma once

#include <memory>
#include <string>

#include "cuda_driver.hpp"

namespace duplexkv::cuda {

struct DeviceFacts {
  int ordinal = 0;
  int capability = 0;  // 10 * major + minor
  int sms = 0;
  int shared_bytes_optin = 0;          // of one block of threads
  int host_numa_node = -1;             // nearest to the GPU; -1: no such thing here
  bool host_pointer_usable = false;    // kernels reach registered memory under the CPU's address
  bool host_numa_memory = false;       // memory can be made on a node of the host
  bool uses_host_page_tables = false;  // any memory of the process is the GPU's to read
  int driver_version = 0;              // 1000 * major + 10 * minor
  std::string name;
  std::string uuid;  // 32 hexadecimal digits
};

class Device {
 public:
  // NoDevice when there is no GPU of that ordinal. `driver` outlives the device. Throws
  // std::bad_alloc.
  static Status open(const Driver* driver, int ordinal, std::unique_ptr<Device>* out);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] const Driver& driver() const noexcept { return *driver_; }
  [[nodiscard]] const DeviceFacts& facts() const noexcept { return facts_; }
  [[nodiscard]] void* context() const noexcept { return context_; }

 private:
  Device(const Driver* driver, DeviceFacts facts, int handle, void* context) noexcept
      : driver_(driver), facts_(std::move(facts)), handle_(handle), context_(context) {}

  const Driver* driver_;
  DeviceFacts facts_;
  int handle_;
  void* context_;
};

// While it lives, the calling thread works on the device, and nothing it does breaks a capture that
// another thread runs in global mode. It leaves the thread as it was.
class Current {
 public:
  explicit Current(const Device& device) noexcept;
  ~Current();
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

  // Success, or why the device could not be made the thread's.
  [[nodiscard]] Result result() const noexcept { return result_; }

 private:
  const Driver& driver_;
  Result result_ = kSuccess;
  bool pushed_ = false;
  int capture_mode_ = kCaptureRelaxed;
};

}  // namespace duplexkv::cuda
