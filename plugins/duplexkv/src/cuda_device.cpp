#include "cuda_device.hpp"

#include <array>
#include <cstdio>
#include <utility>

namespace duplexkv::cuda {
namespace {

int attribute(const Driver& driver, int handle, int which, int otherwise) noexcept {
  int value = otherwise;
  // A driver older than the attribute refuses the question.
  if (driver.device_get_attribute(&value, which, handle) != kSuccess) return otherwise;
  return value;
}

DeviceFacts facts_of(const Driver& driver, int ordinal, int handle) {
  DeviceFacts facts;
  facts.ordinal = ordinal;
  facts.capability = 10 * attribute(driver, handle, kCapabilityMajor, 0) +
                     attribute(driver, handle, kCapabilityMinor, 0);
  facts.sms = attribute(driver, handle, kSmCount, 1);
  facts.shared_bytes_optin = attribute(driver, handle, kSharedBytesOptin, 48 << 10);
  facts.host_numa_node = attribute(driver, handle, kHostNumaId, -1);
  facts.host_pointer_usable = attribute(driver, handle, kHostPointerUsable, 0) != 0;
  facts.host_numa_memory = attribute(driver, handle, kHostNumaMemory, 0) != 0;
  facts.uses_host_page_tables = attribute(driver, handle, kUsesHostPageTables, 0) != 0;
  driver.driver_get_version(&facts.driver_version);
  std::array<char, 128> name{};
  if (driver.device_get_name(name.data(), static_cast<int>(name.size()) - 1, handle) == kSuccess) {
    facts.name = name.data();
  }
  Uuid uuid{};
  driver.device_get_uuid(&uuid, handle);
  for (const unsigned char byte : uuid.bytes) {
    std::array<char, 3> digits{};
    std::snprintf(digits.data(), digits.size(), "%02x", byte);
    facts.uuid += digits.data();
  }
  return facts;
}

}  // namespace

Status Device::open(const Driver* driver, int ordinal, std::unique_ptr<Device>* out) {
  int count = 0;
  Result result = driver->device_get_count(&count);
  if (result != kSuccess) {
    return fail(Status::NoDevice, "cuda: no GPU: %s", name_of(*driver, result));
  }
  if (ordinal < 0 || ordinal >= count) {
    return fail(Status::NoDevice, "cuda: device %d outside 0..%d", ordinal, count - 1);
  }
  int handle = 0;
  result = driver->device_get(&handle, ordinal);
  if (result != kSuccess) {
    return fail(Status::NoDevice, "cuda: device %d: %s", ordinal, name_of(*driver, result));
  }
  DeviceFacts facts = facts_of(*driver, ordinal, handle);  // may throw: nothing is held yet
  void* context = nullptr;
  result = driver->primary_retain(&context, handle);
  if (result != kSuccess) {
    return fail(Status::NoDevice, "cuda: device %d gives no context: %s", ordinal,
                name_of(*driver, result));
  }
  out->reset(new (std::nothrow) Device(driver, std::move(facts), handle, context));
  if (*out == nullptr) {
    driver->primary_release(handle);
    return fail(Status::NoMemory, "out of memory");
  }
  return Status::Ok;
}

Device::~Device() {
  driver_->primary_release(handle_);
}

Current::Current(const Device& device) noexcept : driver_(device.driver()) {
  void* current = nullptr;
  result_ = driver_.context_get_current(&current);
  if (result_ == kSuccess && current != device.context()) {
    result_ = driver_.context_push(device.context());
    pushed_ = result_ == kSuccess;
  }
  // In: the mode wanted; out: the mode the thread had.
  if (driver_.exchange_capture_mode(&capture_mode_) != kSuccess) capture_mode_ = kCaptureRelaxed;
}

Current::~Current() {
  if (capture_mode_ != kCaptureRelaxed) driver_.exchange_capture_mode(&capture_mode_);
  if (pushed_) {
    void* popped = nullptr;
    driver_.context_pop(&popped);
  }
}

}  // namespace duplexkv::cuda
