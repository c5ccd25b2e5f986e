// The driver's table: what is found, what is missing, what an error means; and a device on it.
#include <cstring>

#include "../check.hpp"
#include "cuda_device.hpp"
#include "cuda_fake.hpp"

namespace {

using namespace duplexkv::cuda;
using duplexkv::GpuStatus;
using duplexkv::Status;
using duplexkv_test::fake;
using duplexkv_test::fake_driver;
using duplexkv_test::reset_fake;

bool said(const char* part) {
  return std::strstr(duplexkv::last_error(), part) != nullptr;
}

void without_a_driver_there_is_no_device() {
  Driver driver;
  CHECK(load_driver("/nowhere/libcuda.so.1", &driver) == Status::NoDevice);
  CHECK(said("no driver here") && said("/nowhere/libcuda.so.1"));
  CHECK(driver.init == nullptr);
}

void a_library_that_is_no_driver_is_refused() {
  Driver driver;
  CHECK(load_driver("libc.so.6", &driver) == Status::NoDevice);
  CHECK(said("older than CUDA 12.0"));
}

void errors_are_sorted_by_what_they_leave_behind() {
  CHECK(classify(kSuccess) == GpuStatus::Ok);
  for (const Result refusal : {1, 2, 100, 101, 200, 209, 400, 500, 701, 712, 801, 900, 906, 916}) {
    CHECK(classify(refusal) == GpuStatus::Failed);
  }
  // ECC, NVLink, illegal address, timeout, assert, illegal instruction, launch failure, unknown,
  // and numbers of drivers to come.
  for (const Result end : {4,   46,  214, 220, 226, 700, 702, 709, 710,  714,
                           715, 716, 717, 718, 719, 810, 911, 999, 1234, -1}) {
    CHECK(classify(end) == GpuStatus::Lost);
  }
  CHECK(std::strcmp(name_of(fake_driver(), kIllegalAddress), "CUDA_ERROR_ILLEGAL_ADDRESS") == 0);
  CHECK(std::strcmp(name_of(Driver{}, kIllegalAddress), "an unknown error") == 0);
}

void a_device_tells_what_it_is() {
  reset_fake();
  std::unique_ptr<Device> device;
  CHECK(Device::open(&fake_driver(), 0, &device) == Status::Ok);
  CHECK(device->facts().capability == 90 && device->facts().sms == 132);
  CHECK(device->facts().host_numa_node == 0 && device->facts().host_pointer_usable);
  CHECK(!device->facts().uses_host_page_tables);  // an attribute this driver does not know
  CHECK(device->facts().name == "Fake" && device->facts().driver_version == 13000);
  CHECK(device->facts().uuid ==
        "0111213141516171"
        "8191a1b1c1d1e1f1");
  device.reset();
  CHECK(fake().alive_in_all() == 0);
}

void a_device_that_is_not_there_is_refused() {
  reset_fake();
  std::unique_ptr<Device> device;
  CHECK(Device::open(&fake_driver(), 1, &device) == Status::NoDevice);
  CHECK(said("device 1 outside 0..0"));
  CHECK(Device::open(&fake_driver(), -1, &device) == Status::NoDevice);
  for (const char* call : {"device_get_count", "device_get", "primary_retain"}) {
    reset_fake().fail_name = call;
    fake().fail_at = 0;
    fake().fail_with = kNoDevice;
    CHECK(Device::open(&fake_driver(), 0, &device) == Status::NoDevice);
    CHECK(device == nullptr && fake().alive_in_all() == 0);
  }
}

void the_thread_is_left_as_it_was() {
  reset_fake();
  std::unique_ptr<Device> device;
  CHECK(Device::open(&fake_driver(), 0, &device) == Status::Ok);
  int other = 0;
  fake_driver().context_push(&other);
  int mode = 1;
  fake_driver().exchange_capture_mode(&mode);
  {
    const Current outer(*device);
    CHECK(outer.result() == kSuccess);
    void* now = nullptr;
    fake_driver().context_get_current(&now);
    CHECK(now == device->context() && fake().capture_mode == kCaptureRelaxed);
    const Current inner(*device);
    CHECK(inner.result() == kSuccess && fake().count["context_push"] == 2);
  }
  void* now = nullptr;
  fake_driver().context_get_current(&now);
  CHECK(now == &other && fake().capture_mode == 1);
  void* popped = nullptr;
  fake_driver().context_pop(&popped);
  mode = 0;
  fake_driver().exchange_capture_mode(&mode);
}

}  // namespace

int main() {
  RUN(without_a_driver_there_is_no_device);
  RUN(a_library_that_is_no_driver_is_refused);
  RUN(errors_are_sorted_by_what_they_leave_behind);
  RUN(a_device_tells_what_it_is);
  RUN(a_device_that_is_not_there_is_refused);
  RUN(the_thread_is_left_as_it_was);
  return 0;
}
