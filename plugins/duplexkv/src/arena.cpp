#include "arena.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstring>

namespace duplexkv {
namespace {

constexpr std::uint64_t kHugePageBytes = std::uint64_t{2} << 20;

std::uint64_t machine_bytes() noexcept {
  const long pages = sysconf(_SC_PHYS_PAGES);
  const long page_bytes = sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_bytes <= 0) return UINT64_MAX;
  return static_cast<std::uint64_t>(pages) * static_cast<std::uint64_t>(page_bytes);
}

}  // namespace

Status Arena::create(std::uint64_t blocks, std::uint64_t block_bytes, std::unique_ptr<Arena>* out) {
  if (blocks == 0 || block_bytes == 0) {
    return fail(Status::Invalid,
                "arena: blocks %" PRIu64 " and block_bytes %" PRIu64 " must be > 0", blocks,
                block_bytes);
  }
  if (blocks > INT32_MAX) {
    return fail(Status::TooLarge, "arena: blocks %" PRIu64 " > %d, the largest slot id", blocks,
                INT32_MAX);
  }
  const std::uint64_t limit = machine_bytes();
  if (block_bytes > limit / blocks) {
    return fail(Status::TooLarge,
                "arena: %" PRIu64 " blocks of %" PRIu64 " bytes > %" PRIu64 " bytes of memory",
                blocks, block_bytes, limit);
  }
  const std::uint64_t bytes = blocks * block_bytes;
  const std::uint64_t rounded = (bytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  // One huge page more than needed, so that an aligned start is certain; the rest is given back.
  const std::uint64_t reserved = rounded + kHugePageBytes;
  void* raw = mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) {
    return fail(Status::NoMemory, "arena: the system refused %" PRIu64 " bytes: %s", reserved,
                std::strerror(errno));
  }
  auto* start = static_cast<std::byte*>(raw);
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::uint64_t head = (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes;
  if (head != 0) munmap(start, head);
  if (reserved != head + rounded) munmap(start + head + rounded, reserved - head - rounded);
  madvise(start + head, rounded, MADV_HUGEPAGE);  // advice: a system without it loses speed only
  out->reset(new Arena(start + head, bytes, rounded));
  return Status::Ok;
}

Arena::~Arena() {
  munmap(base_, mapped_bytes_);
}

}  // namespace duplexkv
