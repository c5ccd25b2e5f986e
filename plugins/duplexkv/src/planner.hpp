// From slot ids to byte ranges: checks ids, merges neighbours, cuts slices. Pure: no memory is
// touched, no clock, no thread. One RunMerge per thread (it keeps scratch).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "error.hpp"
#include "layout.hpp"

namespace duplexkv {

using Ids = std::span<const std::int32_t>;

struct SliceLimits {
  std::uint64_t bytes = std::uint64_t{32} << 20;
  std::uint32_t descriptors = 4096;
  std::uint64_t descriptor_bytes = std::uint64_t{8} << 20;
};

// Descriptors as structure of arrays (the shape a batched copy call takes), cut into slices.
struct TransferPlan {
  std::vector<std::uintptr_t> source;
  std::vector<std::uintptr_t> target;
  std::vector<std::size_t> bytes;
  std::vector<std::size_t> slice_end;      // first descriptor past each slice
  std::vector<std::uint64_t> slice_bytes;  // sum of bytes of each slice
  std::vector<std::size_t> group_end;      // first descriptor past each group

  void clear() noexcept;
  [[nodiscard]] std::size_t slice_begin(std::size_t slice) const noexcept {
    return slice == 0 ? 0 : slice_end[slice - 1];
  }
};

// OutOfRange for an id outside 0..blocks - 1; `side` is how a refusal calls it. That no target is
// named twice or still in use is the book's to say.
Status check_range(const char* side, Ids ids, std::uint64_t blocks) noexcept;

// Appends checked groups to a plan: what is adjacent on both sides becomes one descriptor, none
// larger than a slice or across a chunk. Within a group descriptors are in order of source, segment
// by segment.
class RunMerge {
 public:
  // The layouts have as many bytes a block. Throws std::bad_alloc.
  RunMerge(const PoolLayout& source, const PoolLayout& target, SliceLimits limits);

  void append(Ids source, Ids target, TransferPlan* plan);

 private:
  struct Run {
    std::uintptr_t source = 0;
    std::uintptr_t target = 0;
    std::uint64_t bytes = 0;
  };

  void append_segment(std::span<const Piece> pieces, TransferPlan* plan) const;
  void emit(Run run, TransferPlan* plan) const;

  std::vector<Piece> pieces_;
  Chunks source_chunks_;
  Chunks target_chunks_;
  SliceLimits limits_;
  std::vector<std::uint64_t> order_;
};

}  // namespace duplexkv
