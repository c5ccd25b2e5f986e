#include "memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace superinfer::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
// Readers prefetch and load whole tiles a little past the end of what they use.
constexpr std::size_t kSlack = 4096;

std::size_t mapped_bytes(std::size_t bytes) {
  const std::size_t step = bytes + kSlack >= kHugePage ? kHugePage : 4096;
  return (bytes + kSlack + step - 1) / step * step;
}

}  // namespace

Buffer::Buffer(std::size_t bytes) {
  if (bytes == 0) return;
  const std::size_t size = mapped_bytes(bytes);
  // A map of its own a huge page larger than needed, trimmed to an aligned range.
  const std::size_t margin = size >= kHugePage ? kHugePage : 0;
  void* raw =
      mmap(nullptr, size + margin, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) throw std::bad_alloc();
  char* start = static_cast<char*>(raw);
  if (margin != 0) {
    const std::size_t skip =
        (kHugePage - reinterpret_cast<std::uintptr_t>(raw) % kHugePage) % kHugePage;
    if (skip != 0) munmap(start, skip);
    if (skip != margin) munmap(start + skip + size, margin - skip);
    start += skip;
    madvise(start, size, MADV_HUGEPAGE);  // a hint: without it everything works, slower
  }
  data_ = start;
  bytes_ = bytes;
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, mapped_bytes(bytes_));
}

}  // namespace superinfer::cpu
