#include "cuda_rotate.hpp"

#include <cinttypes>
#include <cstring>

namespace duplexkv::cuda {
namespace {

constexpr std::size_t kCounters = 2;  // by direction

std::uint64_t number(const void* pointer) noexcept {
  return reinterpret_cast<std::uint64_t>(pointer);
}

}  // namespace

Rotations::~Rotations() {
  if (counters_ == nullptr) return;
  const Current current(*device_);
  device_->driver().host_free(counters_);
}

void Rotations::prepare() noexcept {
  if (!kernels_->rotates() || pools_.block_bytes == 0) return;
  void* pinned = nullptr;
  constexpr std::size_t kBytes = kCounters * sizeof(Counter);
  if (device_->driver().host_alloc(&pinned, kBytes, kHostPortableMapped) != kSuccess) return;
  std::memset(pinned, 0, kBytes);
  counters_ = static_cast<Counter*>(pinned);
}

Status Rotations::check(const dkv_rotation& rotation) const noexcept {
  if (!kernels_->rotates()) {
    return fail(Status::Unsupported,
                "rotate: no copy kernel for compute capability %d.%d in this build reads a plan",
                device_->facts().capability / 10, device_->facts().capability % 10);
  }
  if (pools_.block_bytes == 0) {
    return fail(Status::Unsupported, "rotate: the engine's pools are not block-first");
  }
  if (counters_ == nullptr) {
    return fail(Status::Unsupported, "rotate: there was no page-locked memory for its counters");
  }
  if (rotation.direction > DKV_H2D) {
    return fail(Status::Invalid, "rotate: direction %u > %d", rotation.direction, DKV_H2D);
  }
  const std::uint64_t bytes = pools_.device_blocks * pools_.block_bytes;
  if (number(rotation.device_pool) != pools_.device_base || rotation.device_pool_bytes != bytes) {
    return fail(Status::Invalid,
                "rotate: device_pool: %" PRIu64 " bytes at %p are not the engine's %" PRIu64
                " at %#" PRIx64,
                rotation.device_pool_bytes, rotation.device_pool, bytes, pools_.device_base);
  }
  if (rotation.plan == nullptr || number(rotation.plan) % sizeof(std::int64_t) != 0) {
    return fail(Status::Invalid, "rotate: plan: NULL or not aligned to %zu bytes",
                sizeof(std::int64_t));
  }
  if (rotation.count == nullptr || number(rotation.count) % sizeof(std::int32_t) != 0) {
    return fail(Status::Invalid, "rotate: count: NULL or not aligned to %zu bytes",
                sizeof(std::int32_t));
  }
  return Status::Ok;
}

Result Rotations::launch(void* stream, const dkv_rotation& rotation) const noexcept {
  if (rotation.segments_max == 0) return kSuccess;  // the driver refuses a grid of nothing
  const RotationTask task{.pools = pools_,
                          .plan = number(rotation.plan),
                          .count = number(rotation.count),
                          .refused = number(&counters_[rotation.direction].rows),
                          .rows_max = rotation.segments_max,
                          .out = rotation.direction == DKV_D2H ? 1U : 0U};
  return kernels_->launch_rotation(stream, task, rotation.sms_max);
}

std::uint64_t Rotations::refused(std::uint32_t direction) const noexcept {
  if (counters_ == nullptr || direction >= kCounters) return 0;
  return __atomic_load_n(&counters_[direction].rows, __ATOMIC_ACQUIRE);
}

}  // namespace duplexkv::cuda
