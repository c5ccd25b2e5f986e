// From slot ids to byte ranges: checks a group, merges neighbours, cuts slices. Pure: no memory is
// touched, no clock, no thread. One GroupCheck or RunMerge per thread (they keep scratch).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "arena.hpp"
#include "error.hpp"

namespace duplexkv {

using Ids = std::span<const std::int32_t>;

struct SliceLimits {
  std::uint64_t bytes = std::uint64_t{32} << 20;
  std::uint32_t descriptors = 4096;
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

// Whether one group can be copied at all.
class GroupCheck {
 public:
  GroupCheck(Pool source, Pool target, std::uint64_t block_bytes);

  // Invalid: empty or of two lengths. OutOfRange: an id outside its pool. Overlap: a target named
  // twice, or (when the pools share memory) a target that is also read.
  Status run(Ids source, Ids target);

 private:
  Status ranges(Ids source, Ids target) const;
  Status distinct(Ids target);
  Status apart(Ids source, Ids target);

  Pool source_;
  Pool target_;
  std::uint64_t block_bytes_;
  bool shared_memory_;
  std::vector<bool> seen_target_;
  std::vector<bool> seen_source_;
};

// Appends checked groups to a plan. Runs that are adjacent on both sides become one descriptor;
// none is larger than a slice. Within a group descriptors are in order of source.
class RunMerge {
 public:
  RunMerge(Pool source, Pool target, std::uint64_t block_bytes, SliceLimits limits) noexcept
      : source_(source), target_(target), block_bytes_(block_bytes), limits_(limits) {}

  void append(Ids source, Ids target, TransferPlan* plan);

 private:
  void emit(std::int32_t source, std::int32_t target, std::uint64_t blocks,
            TransferPlan* plan) const;

  Pool source_;
  Pool target_;
  std::uint64_t block_bytes_;
  SliceLimits limits_;
  std::vector<std::uint64_t> order_;
};

}  // namespace duplexkv
