#include "cuda_parts.hpp"

#include <cinttypes>

#include "cuda_gpu.hpp"
#include "cuda_image.hpp"

namespace duplexkv::cuda {
namespace {

constexpr unsigned kSmsMax = 4;  // fills a PCIe 5 link and half of C2C
constexpr unsigned kSmsLimit = 1024;

Status check_numbers(const dkv_config& config) noexcept {
  if (config.cuda_route > DKV_ROUTE_TMA) {
    return fail(Status::Invalid, "cuda_route: %u > %d", config.cuda_route, DKV_ROUTE_TMA);
  }
  if (config.cuda_batch > DKV_BATCH_OFF) {
    return fail(Status::Invalid, "cuda_batch: %u > %d", config.cuda_batch, DKV_BATCH_OFF);
  }
  if (config.cuda_sms_max > kSmsLimit) {
    return fail(Status::Invalid, "cuda_sms_max: %u > %u", config.cuda_sms_max, kSmsLimit);
  }
  return Status::Ok;
}

// The first and the last byte of a pool tell what it is.
Status check_memory(const Device& device, const void* base, std::uint64_t bytes,
                    unsigned wanted) noexcept {
  const auto first = reinterpret_cast<DevicePtr>(base);
  for (const DevicePtr address : {first, first + bytes - 1}) {
    unsigned type = 0;
    const Result result =
        device.driver().pointer_get_attribute(&type, kMemoryTypeAttribute, address);
    if (wanted == kMemoryTypeDevice) {
      if (result == kSuccess && type == wanted) continue;
      return fail(Status::Invalid, "device pool: %#llx is not memory of a GPU", address);
    }
    // Pageable memory is what the driver does not know. On a superchip the GPU reads and writes any
    // memory of the process.
    if (result == kSuccess || device.facts().uses_host_page_tables) continue;
    return fail(Status::Invalid,
                "host pool: %#llx is not page-locked; take it from dkv_host_create", address);
  }
  return Status::Ok;
}

}  // namespace

Status make_gpu(const Driver& driver, const void* kernels, const dkv_config& config,
                std::shared_ptr<Gpu>* out) {
  Status status = check_numbers(config);
  if (status != Status::Ok) return status;
  std::uint64_t device_bytes = 0;
  std::uint64_t host_bytes = 0;
  if (__builtin_mul_overflow(config.device_blocks, config.block_bytes, &device_bytes) ||
      __builtin_mul_overflow(config.host_blocks, config.block_bytes, &host_bytes) ||
      device_bytes == 0 || host_bytes == 0) {
    return fail(Status::Invalid, "pools: %" PRIu64 " and %" PRIu64 " blocks of %" PRIu64 " bytes",
                config.device_blocks, config.host_blocks, config.block_bytes);
  }
  GpuConfig gpu_config;
  gpu_config.driver = &driver;
  gpu_config.ordinal = config.cuda_device;
  gpu_config.route = static_cast<Route>(config.cuda_route);
  gpu_config.batch = config.cuda_batch;
  gpu_config.sms_max = config.cuda_sms_max == 0 ? kSmsMax : config.cuda_sms_max;
  gpu_config.kernels = kernels;
  gpu_config.routes_file = config.cuda_routes_file;
  gpu_config.device_base = reinterpret_cast<std::uintptr_t>(config.device_base);
  gpu_config.device_bytes = device_bytes;
  gpu_config.host = {.base = reinterpret_cast<std::uintptr_t>(config.host_base),
                     .bytes = host_bytes,
                     .chunk_bytes = config.cuda_host_chunk_bytes};
  gpu_config.block_bytes = config.block_bytes;
  std::unique_ptr<CudaGpu> gpu;
  status = CudaGpu::create(gpu_config, &gpu);
  if (status != Status::Ok) return status;
  {
    const Current current(gpu->device());
    status = check_memory(gpu->device(), config.device_base, device_bytes, kMemoryTypeDevice);
    if (status == Status::Ok) {
      status = check_memory(gpu->device(), config.host_base, host_bytes, kMemoryTypeHost);
    }
  }
  if (status == Status::Ok) *out = std::move(gpu);
  return status;
}

Status make_gpu(const dkv_config& config, std::shared_ptr<Gpu>* out) {
  const Driver* driver = nullptr;
  const Status status = system_driver(&driver);
  return status == Status::Ok ? make_gpu(*driver, kernel_image(), config, out) : status;
}

}  // namespace duplexkv::cuda
