// The C face of cuda.h: argument checks, and exceptions turned into status values.
#include <cstdio>

#include "cuda_device.hpp"
#include "cuda_image.hpp"
#include "duplexkv/cuda.h"
#include "host_memory.hpp"
#include "structs.hpp"

struct dkv_host {
  std::unique_ptr<duplexkv::cuda::Device> device;
  std::unique_ptr<duplexkv::cuda::HostMemory> memory;  // uses the device: gone before it
};

namespace {

using duplexkv::fail;
using duplexkv::guarded;
using duplexkv::Status;
namespace cuda = duplexkv::cuda;

Status open_device(int ordinal, std::unique_ptr<cuda::Device>* out) {
  const cuda::Driver* driver = nullptr;
  const Status status = cuda::system_driver(&driver);
  return status == Status::Ok ? cuda::Device::open(driver, ordinal, out) : status;
}

}  // namespace

extern "C" {

dkv_status dkv_cuda_get_info(int32_t device, dkv_cuda_info* info) {
  return guarded([&] {
    std::unique_ptr<cuda::Device> opened;
    const Status status = open_device(device, &opened);
    if (status != Status::Ok) return status;
    const cuda::DeviceFacts& facts = opened->facts();
    dkv_cuda_info filled{};
    filled.capability = facts.capability;
    filled.sms = facts.sms;
    filled.driver_version = facts.driver_version;
    filled.host_node = facts.host_numa_node;
    filled.kernels = cuda::kernel_image() != nullptr ? 1 : 0;
    std::snprintf(filled.name, sizeof(filled.name), "%s", facts.name.c_str());
    std::snprintf(filled.uuid, sizeof(filled.uuid), "%s", facts.uuid.c_str());
    return duplexkv::export_struct("info", filled, info);
  });
}

dkv_status dkv_host_create(const dkv_host_config* config, dkv_host** out) {
  return guarded([&] {
    if (out == nullptr) return fail(Status::Invalid, "out: NULL");
    *out = nullptr;
    dkv_host_config known;
    Status status = duplexkv::import_struct("config", config, sizeof(dkv_host_config), &known);
    if (status != Status::Ok) return status;
    auto handle = std::make_unique<dkv_host>();
    status = open_device(known.cuda_device, &handle->device);
    if (status != Status::Ok) return status;
    cuda::HostMemoryConfig wanted;
    wanted.device = handle->device.get();
    wanted.bytes = known.bytes;
    if (known.step_bytes != 0) wanted.step_bytes = known.step_bytes;
    wanted.node = known.node;
    status = cuda::HostMemory::create(wanted, &handle->memory);
    if (status == Status::Ok) *out = handle.release();
    return status;
  });
}

void* dkv_host_base(const dkv_host* host) {
  return host->memory->base();
}

dkv_status dkv_host_get_info(const dkv_host* host, dkv_host_info* info) {
  return guarded([&] {
    if (host == nullptr) return fail(Status::Invalid, "host: NULL");
    const cuda::HostMemory& memory = *host->memory;
    dkv_host_info filled{};
    filled.kind = static_cast<std::uint32_t>(memory.kind());
    filled.bytes = memory.bytes();
    filled.growing = memory.growing() ? 1 : 0;
    filled.ready_bytes = memory.ready_bytes();
    filled.chunk_bytes = memory.chunk_bytes();
    std::snprintf(filled.note, sizeof(filled.note), "%s", memory.note().c_str());
    return duplexkv::export_struct("info", filled, info);
  });
}

dkv_status dkv_host_finish(dkv_host* host) {
  return guarded([&] {
    if (host == nullptr) return fail(Status::Invalid, "host: NULL");
    host->memory->finish();
    return Status::Ok;
  });
}

void dkv_host_destroy(dkv_host* host) {
  delete host;
}

}  // extern "C"
