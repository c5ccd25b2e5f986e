// Where the bytes of a tier's blocks lie. Arithmetic on addresses: owns no memory and touches none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "arena.hpp"
#include "error.hpp"

namespace duplexkv {

// A part of every block: of block i the `bytes` at base + i * stride.
struct Segment {
  std::byte* base = nullptr;
  std::uint64_t stride = 0;
  std::uint64_t bytes = 0;
};

// Memory that was registered piece by piece from `base` on: no copy may touch two pieces.
struct Chunks {
  std::uintptr_t base = 0;
  std::uint64_t bytes = 0;  // of one; 0: any copy may go

  // Bytes from `address` to where its chunk ends.
  [[nodiscard]] std::uint64_t left(std::uintptr_t address) const noexcept {
    return bytes == 0 ? UINT64_MAX : bytes - (address - base) % bytes;
  }
};

// A block is the bytes of its segments, one behind the other. Block-first: one segment.
// Layer-first: two a layer. Several pools with the same ids (scales beside values): the segments of
// all.
class PoolLayout {
 public:
  static constexpr std::size_t kSegmentsMax = 4096;

  PoolLayout() = default;
  // Block-first, unchecked.
  PoolLayout(Pool pool, std::uint64_t block_bytes)
      : segments_{{.base = pool.base, .stride = block_bytes, .bytes = block_bytes}},
        blocks_(pool.blocks),
        block_bytes_(block_bytes) {}

  // Invalid: no memory, no bytes, a stride below its bytes, a wrap around, blocks that share bytes.
  // `name` is how a refusal calls the pool.
  static Status create(const char* name, std::vector<Segment> segments, std::uint64_t blocks,
                       PoolLayout* out);

  [[nodiscard]] std::span<const Segment> segments() const noexcept { return segments_; }
  [[nodiscard]] std::uint64_t blocks() const noexcept { return blocks_; }
  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return block_bytes_; }

  Chunks chunks;

 private:
  std::vector<Segment> segments_;
  std::uint64_t blocks_ = 0;
  std::uint64_t block_bytes_ = 0;  // of all segments
};

// Whether a byte may be of both. Exact for segments that do not interleave; two that do, with one
// stride, are told apart by what lies between.
bool share_memory(const PoolLayout& a, const PoolLayout& b) noexcept;

// The same bytes of a block on both sides: source + s * source_stride to target + t *
// target_stride.
struct Piece {
  std::uintptr_t source = 0;
  std::uintptr_t target = 0;
  std::uint64_t source_stride = 0;
  std::uint64_t target_stride = 0;
  std::uint64_t bytes = 0;
  std::size_t source_segment = 0;
};

// How a block of `source` is cut into pieces that lie in one segment of either side. Both have as
// many bytes a block.
std::vector<Piece> cut_pieces(const PoolLayout& source, const PoolLayout& target);

}  // namespace duplexkv
