// Copies bytes between two ranges that do not overlap. No state.
#pragma once

#include <cstddef>

namespace duplexkv {

// memcpy that leaves the caches alone when the range is large. The bytes are visible to whoever
// acquires what the calling thread releases afterwards.
void copy_bytes(std::byte* target, const std::byte* source, std::size_t bytes) noexcept;

// Bytes/s of copy_bytes on this thread, over buffers larger than a core's own cache.
double measure_copy();

}  // namespace duplexkv
