#include "cuda_parts.hpp"

#include <algorithm>
#include <cinttypes>
#include <span>
#include <vector>

#include "cuda_gpu.hpp"
#include "cuda_image.hpp"

namespace duplexkv::cuda {
namespace {

constexpr unsigned kSmsMax = 4;  // fills a PCIe 5 link and half of C2C
constexpr unsigned kSmsLimit = 1024;

// What a configuration says of one tier.
struct PoolFacts {
  void* base;
  std::uint64_t blocks;
  const dkv_segment* segments;  // null: block-first from the base
  std::uint64_t segment_count;
};

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

// A tier's memory: the whole pool, or from the first byte of each of its segments to the last.
Status ranges_of(const char* name, const PoolFacts& pool, std::uint64_t block_bytes,
                 std::vector<MemoryRange>* out) {
  const dkv_segment whole{.base = pool.base, .stride = block_bytes, .bytes = block_bytes};
  const bool parted = pool.segments != nullptr;
  for (const dkv_segment& segment :
       parted ? std::span(pool.segments, pool.segment_count) : std::span(&whole, 1)) {
    std::uint64_t bytes = 0;
    const bool wraps = pool.blocks == 0 ||
                       __builtin_mul_overflow(pool.blocks - 1, segment.stride, &bytes) ||
                       __builtin_add_overflow(bytes, segment.bytes, &bytes);
    if (wraps || bytes == 0) {
      return fail(Status::Invalid, "%s pool: %" PRIu64 " blocks of %" PRIu64 " bytes", name,
                  pool.blocks, segment.stride);
    }
    out->push_back({.base = reinterpret_cast<std::uintptr_t>(segment.base), .bytes = bytes});
  }
  return Status::Ok;
}

// The first and the last byte of a range tell what it is.
Status check_memory(const Device& device, const MemoryRange& range, unsigned wanted) noexcept {
  for (const DevicePtr address : {DevicePtr{range.base}, DevicePtr{range.base} + range.bytes - 1}) {
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

Status check_memory(const Device& device, const std::vector<MemoryRange>& ranges,
                    unsigned wanted) noexcept {
  const Current current(device);
  for (const MemoryRange& range : ranges) {
    const Status status = check_memory(device, range, wanted);
    if (status != Status::Ok) return status;
  }
  return Status::Ok;
}

// Registered memory, from host_base to the end of what the pool uses of it. Chunks are counted
// from host_base, so it must be told, and lie before all of the pool.
Status chunks_of(const dkv_config& config, const std::vector<MemoryRange>& host, HostChunks* out) {
  out->base = reinterpret_cast<std::uintptr_t>(config.host_base);
  out->chunk_bytes = config.cuda_host_chunk_bytes;
  if (out->chunk_bytes == 0) return Status::Ok;
  for (const MemoryRange& range : host) {
    if (config.host_base == nullptr || range.base < out->base) {
      return fail(Status::Invalid,
                  "cuda_host_chunk_bytes: host_base %p is not the start of the host pool's memory",
                  config.host_base);
    }
    out->bytes = std::max(out->bytes, range.base + range.bytes - out->base);
  }
  return Status::Ok;
}

// A device that decides what is rotated knows blocks by their number: both pools are block-first.
RotationPools rotation_pools_of(const dkv_config& config) noexcept {
  if (config.device_segments != nullptr || config.host_segments != nullptr) return {};
  return {.device_base = reinterpret_cast<std::uintptr_t>(config.device_base),
          .device_blocks = config.device_blocks,
          .host_base = reinterpret_cast<std::uintptr_t>(config.host_base),
          .host_blocks = config.host_blocks,
          .block_bytes = config.block_bytes};
}

}  // namespace

Status make_gpu(const Driver& driver, const void* kernels, const dkv_config& config,
                std::shared_ptr<Gpu>* out) {
  Status status = check_numbers(config);
  if (status != Status::Ok) return status;
  std::vector<MemoryRange> host;
  GpuConfig gpu_config;
  gpu_config.driver = &driver;
  gpu_config.ordinal = config.cuda_device;
  gpu_config.route = static_cast<Route>(config.cuda_route);
  gpu_config.batch = config.cuda_batch;
  gpu_config.sms_max = config.cuda_sms_max == 0 ? kSmsMax : config.cuda_sms_max;
  gpu_config.kernels = kernels;
  gpu_config.routes_file = config.cuda_routes_file;
  gpu_config.pools = rotation_pools_of(config);
  status = ranges_of("device",
                     {.base = config.device_base,
                      .blocks = config.device_blocks,
                      .segments = config.device_segments,
                      .segment_count = config.device_segment_count},
                     config.block_bytes, &gpu_config.device);
  if (status == Status::Ok) {
    status = ranges_of("host",
                       {.base = config.host_base,
                        .blocks = config.host_blocks,
                        .segments = config.host_segments,
                        .segment_count = config.host_segment_count},
                       config.block_bytes, &host);
  }
  if (status == Status::Ok) status = chunks_of(config, host, &gpu_config.host);
  std::unique_ptr<CudaGpu> gpu;
  if (status == Status::Ok) status = CudaGpu::create(gpu_config, &gpu);
  if (status != Status::Ok) return status;
  status = check_memory(gpu->device(), gpu_config.device, kMemoryTypeDevice);
  if (status == Status::Ok) status = check_memory(gpu->device(), host, kMemoryTypeHost);
  if (status == Status::Ok) *out = std::move(gpu);
  return status;
}

Status make_gpu(const dkv_config& config, std::shared_ptr<Gpu>* out) {
  const Driver* driver = nullptr;
  const Status status = system_driver(&driver);
  return status == Status::Ok ? make_gpu(*driver, kernel_image(), config, out) : status;
}

}  // namespace duplexkv::cuda
