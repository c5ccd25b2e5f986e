// What the copy kernels work on: descriptors cut into pieces, and how the lanes of a warp share one
// piece. The same code runs on the GPU and, lane by lane, in the tests.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define DUPLEXKV_ANYWHERE __host__ __device__ __forceinline__
#else
#define DUPLEXKV_ANYWHERE inline
#endif

namespace duplexkv::cuda {

// `bytes` from `source` to `target`, any alignment.
struct Piece {
  std::uint64_t source;
  std::uint64_t target;
  std::uint64_t bytes;
};

// Bulk copies take 16-byte aligned addresses and whole multiples of 16 bytes.
inline constexpr std::uint32_t kBulkBytes = 16;
// Large enough that its cost of starting is lost in it, small enough that many are in the air.
inline constexpr std::uint32_t kPieceBytes = 16 << 10;
inline constexpr unsigned kWarpLanes = 32;
inline constexpr unsigned kRegisterThreads = 512;  // of one block; 64 KiB in the air
inline constexpr unsigned kBulkThreads = 64;       // a warp for the ring, a warp for the rest
// Stages of the ring whose bytes are on their way out while the others are being filled.
inline constexpr unsigned kStagesLeaving = 2;
inline constexpr unsigned kStagesMin = kStagesLeaving + 1;
inline constexpr unsigned kStagesMax = 12;

// Shared memory of a ring: its stages, then a barrier for each.
constexpr unsigned ring_bytes(unsigned stages) {
  return stages * (kPieceBytes + static_cast<unsigned>(sizeof(std::uint64_t)));
}

struct alignas(16) Word16 {
  std::uint32_t part[4];
};

// How a piece divides into `head` single bytes, `words` of `width` bytes, aligned on both sides,
// and `tail` single bytes.
struct Split {
  std::uint32_t width;
  std::uint64_t head;
  std::uint64_t words;
  std::uint64_t tail;
};

DUPLEXKV_ANYWHERE Split split(const Piece& piece) {
  Split out{16, 0, 0, 0};
  while ((piece.source ^ piece.target) % out.width != 0)
    out.width /= 2;
  out.head = (out.width - piece.target % out.width) % out.width;
  if (out.head > piece.bytes) out.head = piece.bytes;
  out.words = (piece.bytes - out.head) / out.width;
  out.tail = piece.bytes - out.head - out.words * out.width;
  return out;
}

// One lane's share of `count` words: every `lanes`-th, eight loads in the air before the first
// store, because the far side of the link is a microsecond away.
template <typename Word>
DUPLEXKV_ANYWHERE void copy_words(std::uint64_t target, std::uint64_t source, std::uint64_t count,
                                  unsigned lane, unsigned lanes) {
  constexpr unsigned kDepth = 8;
  // NOLINTBEGIN(performance-no-int-to-ptr): a piece carries addresses
  auto* to = reinterpret_cast<Word*>(target);
  const auto* from = reinterpret_cast<const Word*>(source);
  // NOLINTEND(performance-no-int-to-ptr)
  std::uint64_t at = lane;
  for (; at + std::uint64_t{kDepth - 1} * lanes < count; at += std::uint64_t{kDepth} * lanes) {
    Word words[kDepth];
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (unsigned i = 0; i < kDepth; ++i)
      words[i] = from[at + std::uint64_t{i} * lanes];
#if defined(__CUDACC__)
#pragma unroll
#endif
    for (unsigned i = 0; i < kDepth; ++i)
      to[at + std::uint64_t{i} * lanes] = words[i];
  }
  for (; at < count; at += lanes)
    to[at] = from[at];
}

// One lane's share of a piece; all lanes together copy each of its bytes once.
DUPLEXKV_ANYWHERE void copy_piece(const Piece& piece, unsigned lane, unsigned lanes) {
  const Split parts = split(piece);
  copy_words<std::uint8_t>(piece.target, piece.source, parts.head, lane, lanes);
  const std::uint64_t target = piece.target + parts.head;
  const std::uint64_t source = piece.source + parts.head;
  switch (parts.width) {
    case 16:
      copy_words<Word16>(target, source, parts.words, lane, lanes);
      break;
    case 8:
      copy_words<std::uint64_t>(target, source, parts.words, lane, lanes);
      break;
    case 4:
      copy_words<std::uint32_t>(target, source, parts.words, lane, lanes);
      break;
    case 2:
      copy_words<std::uint16_t>(target, source, parts.words, lane, lanes);
      break;
    default:
      copy_words<std::uint8_t>(target, source, parts.words, lane, lanes);
      break;
  }
  const std::uint64_t body = parts.words * parts.width;
  copy_words<std::uint8_t>(target + body, source + body, parts.tail, lane, lanes);
}

}  // namespace duplexkv::cuda
