// Copies that the device decides: how the rows of a plan become pieces, and which of them each warp
// takes. The same code runs on the GPU and, warp by warp and lane by lane, in the tests.
#pragma once

#include "cuda_pieces.hpp"

namespace duplexkv::cuda {

// Both pools are block-first.
struct RotationPools {
  std::uint64_t device_base = 0;
  std::uint64_t device_blocks = 0;
  std::uint64_t host_base = 0;
  std::uint64_t host_blocks = 0;
  std::uint64_t block_bytes = 0;
};

// What one launch is told. A captured one is told the same at each replay: what may change between
// two of them lies behind `plan` and `count`.
struct RotationTask {
  RotationPools pools;
  std::uint64_t plan;     // int64[rows_max, 3]: device block, host slot, bytes (0: all)
  std::uint64_t count;    // int32[1]
  std::uint64_t refused;  // uint64[1], to which the rows that were skipped are added
  std::uint32_t rows_max;
  std::uint32_t out;  // 1: from the device pool; 0: into it
};

// A block of the largest size is so many pieces; a row of fewer bytes leaves the last ones empty.
DUPLEXKV_ANYWHERE std::uint64_t pieces_a_row(const RotationPools& pools) {
  return (pools.block_bytes + kPieceBytes - 1) / kPieceBytes;
}

// Rows that are read: a count from the device is believed as far as the plan is long.
DUPLEXKV_ANYWHERE std::uint64_t rotation_rows(std::int32_t count, std::uint32_t rows_max) {
  if (count <= 0) return 0;
  const auto rows = static_cast<std::uint32_t>(count);
  return rows < rows_max ? rows : rows_max;
}

// Piece `part` of a row, of no bytes behind the row's end. False: an id outside its pool, or more
// bytes than a block has; then nothing may be touched.
DUPLEXKV_ANYWHERE bool rotation_piece(const RotationTask& task, const std::int64_t* row,
                                      std::uint64_t part, Piece* out) {
  const RotationPools& pools = task.pools;
  // A negative number is a large one here.
  const auto block = static_cast<std::uint64_t>(row[0]);
  const auto slot = static_cast<std::uint64_t>(row[1]);
  auto bytes = static_cast<std::uint64_t>(row[2]);
  if (block >= pools.device_blocks || slot >= pools.host_blocks || bytes > pools.block_bytes) {
    return false;
  }
  if (bytes == 0) bytes = pools.block_bytes;
  const std::uint64_t start = part * kPieceBytes;
  const std::uint64_t left = start < bytes ? bytes - start : 0;
  const std::uint64_t at_device = pools.device_base + block * pools.block_bytes + start;
  const std::uint64_t at_host = pools.host_base + slot * pools.block_bytes + start;
  out->source = task.out != 0 ? at_device : at_host;
  out->target = task.out != 0 ? at_host : at_device;
  out->bytes = left < kPieceBytes ? left : kPieceBytes;
  return true;
}

// One lane's share of all that warp `warp` of `warps` copies: every `warps`-th piece. Returns the
// rows it skipped, the same number in each lane; over all warps each such row is counted once.
DUPLEXKV_ANYWHERE std::uint64_t rotate_share(const RotationTask& task, std::uint64_t warp,
                                             std::uint64_t warps, unsigned lane, unsigned lanes) {
  // NOLINTBEGIN(performance-no-int-to-ptr): a task carries addresses
  const auto* plan = reinterpret_cast<const std::int64_t*>(task.plan);
  const std::int32_t count = *reinterpret_cast<const std::int32_t*>(task.count);
  // NOLINTEND(performance-no-int-to-ptr)
  const std::uint64_t parts = pieces_a_row(task.pools);
  const std::uint64_t pieces = rotation_rows(count, task.rows_max) * parts;
  std::uint64_t refused = 0;
  for (std::uint64_t at = warp; at < pieces; at += warps) {
    const std::uint64_t row = at / parts;
    const std::uint64_t part = at - row * parts;
    Piece piece;
    if (rotation_piece(task, plan + 3 * row, part, &piece)) {
      copy_piece(piece, lane, lanes);
    } else if (part == 0) {
      ++refused;
    }
  }
  return refused;
}

}  // namespace duplexkv::cuda
