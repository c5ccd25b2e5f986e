#include "layout.hpp"

#include <algorithm>
#include <cinttypes>

namespace duplexkv {
namespace {

std::uintptr_t begin_of(const Segment& segment) noexcept {
  return reinterpret_cast<std::uintptr_t>(segment.base);
}

// Past the last byte of the last block.
std::uintptr_t end_of(const Segment& segment, std::uint64_t blocks) noexcept {
  return begin_of(segment) + (blocks - 1) * segment.stride + segment.bytes;
}

Status check_segment(const char* name, const Segment& segment, std::uint64_t blocks) noexcept {
  if (segment.base == nullptr) return fail(Status::Invalid, "%s pool: no memory", name);
  if (segment.bytes == 0) return fail(Status::Invalid, "%s pool: a segment of 0 bytes", name);
  if (segment.stride < segment.bytes) {
    return fail(Status::Invalid, "%s pool: stride %" PRIu64 " < %" PRIu64 " bytes of a segment",
                name, segment.stride, segment.bytes);
  }
  if (segment.stride > (UINT64_MAX - begin_of(segment)) / blocks) {
    return fail(Status::Invalid, "%s pool: %" PRIu64 " blocks of %" PRIu64 " bytes wrap around",
                name, blocks, segment.stride);
  }
  return Status::Ok;
}

bool segments_share(const Segment& a, std::uint64_t a_blocks, const Segment& b,
                    std::uint64_t b_blocks) noexcept {
  const bool apart = end_of(a, a_blocks) <= begin_of(b) || end_of(b, b_blocks) <= begin_of(a);
  if (apart || a.stride != b.stride) return !apart;
  // Rows of one matrix: b's bytes lie behind a's in the row, or before the next of a's.
  const bool b_behind = begin_of(b) >= begin_of(a);
  const Segment& first = b_behind ? a : b;
  const Segment& second = b_behind ? b : a;
  const std::uint64_t offset = (begin_of(second) - begin_of(first)) % a.stride;
  return offset < first.bytes || offset + second.bytes > a.stride;
}

// Neighbours in every block are one segment: what adjoins there may merge.
void join_neighbours(std::vector<Segment>* segments) {
  std::size_t last = 0;
  for (std::size_t i = 1; i < segments->size(); ++i) {
    Segment& before = (*segments)[last];
    const Segment& next = (*segments)[i];
    if (before.stride == next.stride && before.base + before.bytes == next.base) {
      before.bytes += next.bytes;
    } else {
      (*segments)[++last] = next;
    }
  }
  segments->resize(last + 1);
}

}  // namespace

Status PoolLayout::create(const char* name, std::vector<Segment> segments, std::uint64_t blocks,
                          PoolLayout* out) {
  if (blocks == 0 || blocks > INT32_MAX) {
    return fail(Status::Invalid, "%s pool: blocks %" PRIu64 " outside 1..%d", name, blocks,
                INT32_MAX);
  }
  if (segments.empty() || segments.size() > kSegmentsMax) {
    return fail(Status::Invalid, "%s pool: %zu segments outside 1..%zu", name, segments.size(),
                kSegmentsMax);
  }
  std::uint64_t block_bytes = 0;
  for (const Segment& segment : segments) {
    const Status status = check_segment(name, segment, blocks);
    if (status != Status::Ok) return status;
    if (__builtin_add_overflow(block_bytes, segment.bytes, &block_bytes)) {
      return fail(Status::Invalid, "%s pool: the bytes of its segments wrap around", name);
    }
  }
  for (std::size_t i = 0; i < segments.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (!segments_share(segments[j], blocks, segments[i], blocks)) continue;
      return fail(Status::Invalid, "%s pool: segments %zu and %zu share memory", name, j, i);
    }
  }
  join_neighbours(&segments);
  out->segments_ = std::move(segments);
  out->blocks_ = blocks;
  out->block_bytes_ = block_bytes;
  return Status::Ok;
}

bool share_memory(const PoolLayout& a, const PoolLayout& b) noexcept {
  return std::any_of(a.segments().begin(), a.segments().end(), [&](const Segment& of_a) {
    return std::any_of(b.segments().begin(), b.segments().end(), [&](const Segment& of_b) {
      return segments_share(of_a, a.blocks(), of_b, b.blocks());
    });
  });
}

std::vector<Piece> cut_pieces(const PoolLayout& source, const PoolLayout& target) {
  std::vector<Piece> pieces;
  std::size_t from = 0;
  std::size_t to = 0;
  std::uint64_t from_offset = 0;
  std::uint64_t to_offset = 0;
  while (from < source.segments().size() && to < target.segments().size()) {
    const Segment& source_segment = source.segments()[from];
    const Segment& target_segment = target.segments()[to];
    const std::uint64_t bytes =
        std::min(source_segment.bytes - from_offset, target_segment.bytes - to_offset);
    pieces.push_back({.source = begin_of(source_segment) + from_offset,
                      .target = begin_of(target_segment) + to_offset,
                      .source_stride = source_segment.stride,
                      .target_stride = target_segment.stride,
                      .bytes = bytes,
                      .source_segment = from});
    from_offset += bytes;
    to_offset += bytes;
    if (from_offset == source_segment.bytes) {
      ++from;
      from_offset = 0;
    }
    if (to_offset == target_segment.bytes) {
      ++to;
      to_offset = 0;
    }
  }
  return pieces;
}

}  // namespace duplexkv
