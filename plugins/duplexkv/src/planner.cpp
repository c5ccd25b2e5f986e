#include "planner.hpp"

#include <algorithm>
#include <cinttypes>

namespace duplexkv {

void TransferPlan::clear() noexcept {
  source.clear();
  target.clear();
  bytes.clear();
  slice_end.clear();
  slice_bytes.clear();
  group_end.clear();
}

Status check_range(const char* side, Ids ids, std::uint64_t blocks) noexcept {
  // One sign for all, without a branch an id: set by a negative id, and by last - id below 0.
  const auto last = static_cast<std::uint32_t>(blocks - 1);
  std::uint32_t signs = 0;
  for (const std::int32_t id : ids) {
    const auto value = static_cast<std::uint32_t>(id);
    signs |= value | (last - value);
  }
  if ((signs >> 31) == 0) return Status::Ok;
  const auto outside = std::find_if(ids.begin(), ids.end(), [blocks](std::int32_t id) {
    return id < 0 || static_cast<std::uint64_t>(id) >= blocks;
  });
  return fail(Status::OutOfRange, "copy: %s slot %" PRId32 " outside 0..%" PRIu64, side, *outside,
              blocks - 1);
}

RunMerge::RunMerge(const PoolLayout& source, const PoolLayout& target, SliceLimits limits)
    : pieces_(cut_pieces(source, target)),
      source_chunks_(source.chunks),
      target_chunks_(target.chunks),
      limits_(limits) {}

void RunMerge::append(Ids source, Ids target, TransferPlan* plan) {
  // (source, target) as one number, so that sorting by source keeps the pairs together.
  order_.resize(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    order_[i] = std::uint64_t{static_cast<std::uint32_t>(source[i])} << 32 |
                static_cast<std::uint32_t>(target[i]);
  }
  if (!std::is_sorted(order_.begin(), order_.end())) std::sort(order_.begin(), order_.end());
  const std::span<const Piece> all(pieces_);
  for (std::size_t begin = 0; begin < all.size();) {
    std::size_t end = begin + 1;
    while (end < all.size() && all[end].source_segment == all[begin].source_segment)
      ++end;
    append_segment(all.subspan(begin, end - begin), plan);
    begin = end;
  }
  plan->group_end.push_back(plan->source.size());
}

void RunMerge::append_segment(std::span<const Piece> pieces, TransferPlan* plan) const {
  Run run;
  for (const std::uint64_t pair : order_) {
    for (const Piece& piece : pieces) {
      const Run next{.source = piece.source + (pair >> 32) * piece.source_stride,
                     .target = piece.target + (pair & UINT32_MAX) * piece.target_stride,
                     .bytes = piece.bytes};
      if (run.source + run.bytes == next.source && run.target + run.bytes == next.target) {
        run.bytes += next.bytes;
        continue;
      }
      emit(run, plan);
      run = next;
    }
  }
  emit(run, plan);
}

void RunMerge::emit(Run run, TransferPlan* plan) const {
  while (run.bytes > 0) {
    const std::uint64_t piece =
        std::min({run.bytes, limits_.bytes, limits_.descriptor_bytes,
                  source_chunks_.left(run.source), target_chunks_.left(run.target)});
    const bool fits =
        !plan->slice_end.empty() && plan->slice_bytes.back() + piece <= limits_.bytes &&
        plan->source.size() - plan->slice_begin(plan->slice_end.size() - 1) < limits_.descriptors;
    if (!fits) {
      plan->slice_end.push_back(plan->source.size());
      plan->slice_bytes.push_back(0);
    }
    plan->source.push_back(run.source);
    plan->target.push_back(run.target);
    plan->bytes.push_back(piece);
    plan->slice_end.back() += 1;
    plan->slice_bytes.back() += piece;
    run.source += piece;
    run.target += piece;
    run.bytes -= piece;
  }
}

}  // namespace duplexkv
