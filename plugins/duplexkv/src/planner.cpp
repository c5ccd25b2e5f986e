#include "planner.hpp"

#include <algorithm>
#include <cinttypes>

namespace duplexkv {
namespace {

std::size_t index(std::int32_t id) noexcept {
  return static_cast<std::size_t>(id);
}

std::uintptr_t address(Pool pool, std::int32_t id, std::uint64_t block_bytes) noexcept {
  return reinterpret_cast<std::uintptr_t>(pool.base) + index(id) * block_bytes;
}

bool intersect(Pool a, Pool b, std::uint64_t block_bytes) noexcept {
  const auto a_begin = reinterpret_cast<std::uintptr_t>(a.base);
  const auto b_begin = reinterpret_cast<std::uintptr_t>(b.base);
  return a_begin < b_begin + b.blocks * block_bytes && b_begin < a_begin + a.blocks * block_bytes;
}

}  // namespace

void TransferPlan::clear() noexcept {
  source.clear();
  target.clear();
  bytes.clear();
  slice_end.clear();
  slice_bytes.clear();
  group_end.clear();
}

GroupCheck::GroupCheck(Pool source, Pool target, std::uint64_t block_bytes)
    : source_(source),
      target_(target),
      block_bytes_(block_bytes),
      shared_memory_(intersect(source, target, block_bytes)),
      seen_target_(target.blocks, false),
      seen_source_(shared_memory_ ? source.blocks : 0, false) {}

Status GroupCheck::run(Ids source, Ids target) {
  if (source.empty()) return fail(Status::Invalid, "copy: a group without blocks");
  if (source.size() != target.size()) {
    return fail(Status::Invalid, "copy: %zu sources and %zu targets", source.size(), target.size());
  }
  Status status = ranges(source, target);
  if (status == Status::Ok) status = distinct(target);
  if (status == Status::Ok && shared_memory_) status = apart(source, target);
  return status;
}

Status GroupCheck::ranges(Ids source, Ids target) const {
  for (const std::int32_t id : source) {
    if (id < 0 || index(id) >= source_.blocks) {
      return fail(Status::OutOfRange, "copy: source slot %" PRId32 " outside 0..%" PRIu64, id,
                  source_.blocks - 1);
    }
  }
  for (const std::int32_t id : target) {
    if (id < 0 || index(id) >= target_.blocks) {
      return fail(Status::OutOfRange, "copy: target slot %" PRId32 " outside 0..%" PRIu64, id,
                  target_.blocks - 1);
    }
  }
  return Status::Ok;
}

Status GroupCheck::distinct(Ids target) {
  Status status = Status::Ok;
  std::size_t marked = 0;
  for (; marked < target.size(); ++marked) {
    if (seen_target_[index(target[marked])]) {
      status =
          fail(Status::Overlap, "copy: target slot %" PRId32 " is named twice", target[marked]);
      break;
    }
    seen_target_[index(target[marked])] = true;
  }
  for (const std::int32_t id : target.first(marked))
    seen_target_[index(id)] = false;
  return status;
}

Status GroupCheck::apart(Ids source, Ids target) {
  for (const std::int32_t id : source)
    seen_source_[index(id)] = true;
  Status status = Status::Ok;
  const auto source_base = reinterpret_cast<std::uintptr_t>(source_.base);
  for (const std::int32_t id : target) {
    // The bases need not be a whole number of blocks apart: one target may touch two sources.
    const std::uintptr_t first = address(target_, id, block_bytes_);
    const std::uintptr_t last = first + block_bytes_ - 1;
    if (last < source_base) continue;
    const std::uint64_t low = first < source_base ? 0 : (first - source_base) / block_bytes_;
    const std::uint64_t high =
        std::min<std::uint64_t>((last - source_base) / block_bytes_, source_.blocks - 1);
    for (std::uint64_t block = low; block <= high && status == Status::Ok; ++block) {
      if (!seen_source_[block]) continue;
      status =
          fail(Status::Overlap, "copy: target slot %" PRId32 " is source slot %" PRIu64, id, block);
    }
  }
  for (const std::int32_t id : source)
    seen_source_[index(id)] = false;
  return status;
}

void RunMerge::append(Ids source, Ids target, TransferPlan* plan) {
  // (source, target) as one number, so that sorting by source keeps the pairs together.
  order_.resize(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    order_[i] = std::uint64_t{static_cast<std::uint32_t>(source[i])} << 32 |
                static_cast<std::uint32_t>(target[i]);
  }
  if (!std::is_sorted(order_.begin(), order_.end())) std::sort(order_.begin(), order_.end());
  constexpr std::uint64_t kNextOnBothSides = (std::uint64_t{1} << 32) + 1;
  for (std::size_t begin = 0; begin < order_.size();) {
    std::size_t end = begin + 1;
    while (end < order_.size() && order_[end] == order_[end - 1] + kNextOnBothSides)
      ++end;
    emit(static_cast<std::int32_t>(order_[begin] >> 32),
         static_cast<std::int32_t>(order_[begin] & UINT32_MAX), end - begin, plan);
    begin = end;
  }
  plan->group_end.push_back(plan->source.size());
}

void RunMerge::emit(std::int32_t source, std::int32_t target, std::uint64_t blocks,
                    TransferPlan* plan) const {
  std::uintptr_t from = address(source_, source, block_bytes_);
  std::uintptr_t to = address(target_, target, block_bytes_);
  for (std::uint64_t left = blocks * block_bytes_; left > 0;) {
    const std::uint64_t piece = std::min(left, limits_.bytes);
    const bool fits =
        !plan->slice_end.empty() && plan->slice_bytes.back() + piece <= limits_.bytes &&
        plan->source.size() - plan->slice_begin(plan->slice_end.size() - 1) < limits_.descriptors;
    if (!fits) {
      plan->slice_end.push_back(plan->source.size());
      plan->slice_bytes.push_back(0);
    }
    plan->source.push_back(from);
    plan->target.push_back(to);
    plan->bytes.push_back(piece);
    plan->slice_end.back() += 1;
    plan->slice_bytes.back() += piece;
    from += piece;
    to += piece;
    left -= piece;
  }
}

}  // namespace duplexkv
