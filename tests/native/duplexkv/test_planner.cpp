// The planner against a plan of one descriptor a block, on fuzzed groups.
#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "../check.hpp"
#include "planner.hpp"

namespace {

using duplexkv::GroupCheck;
using duplexkv::Ids;
using duplexkv::Pool;
using duplexkv::RunMerge;
using duplexkv::SliceLimits;
using duplexkv::Status;
using duplexkv::TransferPlan;

// The planner only does arithmetic on addresses: pools need no memory.
Pool pool_at(std::uintptr_t address, std::uint64_t blocks) {
  return {.base = reinterpret_cast<std::byte*>(address), .blocks = blocks};
}

constexpr std::uintptr_t kSource = 0x10000000;
constexpr std::uintptr_t kTarget = 0x90000000;

struct Fuzzed {
  std::vector<std::int32_t> source;
  std::vector<std::int32_t> target;
};

// Groups as the ledger makes them: some runs, some scattered ids, in any order, distinct targets.
Fuzzed fuzz_group(std::mt19937_64& random, std::uint64_t blocks) {
  Fuzzed group;
  std::set<std::int32_t> used;
  const auto draw = [&](std::uint64_t below) {
    return static_cast<std::int32_t>(random() % below);
  };
  const int runs = 1 + draw(6);
  for (int run = 0; run < runs; ++run) {
    std::int32_t source = draw(blocks);
    std::int32_t target = draw(blocks);
    const std::int32_t length = 1 + draw(12);
    for (std::int32_t i = 0; i < length; ++i, ++source, ++target) {
      if (source >= static_cast<std::int32_t>(blocks) ||
          target >= static_cast<std::int32_t>(blocks)) {
        break;
      }
      if (!used.insert(target).second) break;
      group.source.push_back(source);
      group.target.push_back(target);
    }
  }
  if (group.source.empty()) group = {{0}, {0}};
  if (random() % 2 == 0) {  // pairs stay pairs in another order
    for (std::size_t i = group.source.size() - 1; i > 0; --i) {
      const std::size_t j = random() % (i + 1);
      std::swap(group.source[i], group.source[j]);
      std::swap(group.target[i], group.target[j]);
    }
  }
  return group;
}

// Target byte -> source byte, at the granularity at which descriptors may be cut.
using Expansion = std::map<std::uintptr_t, std::uintptr_t>;

void expand(std::uintptr_t source, std::uintptr_t target, std::size_t bytes, std::size_t grain,
            Expansion* out) {
  CHECK(bytes % grain == 0);
  for (std::size_t at = 0; at < bytes; at += grain) {
    CHECK(out->emplace(target + at, source + at).second);
  }
}

void check_shape(const TransferPlan& plan, SliceLimits limits, std::size_t groups) {
  CHECK(plan.source.size() == plan.target.size() && plan.source.size() == plan.bytes.size());
  CHECK(plan.slice_end.size() == plan.slice_bytes.size());
  CHECK(plan.slice_end.back() == plan.source.size());
  CHECK(plan.group_end.size() == groups && plan.group_end.back() == plan.source.size());
  for (std::size_t slice = 0; slice < plan.slice_end.size(); ++slice) {
    const std::size_t begin = plan.slice_begin(slice);
    const std::size_t end = plan.slice_end[slice];
    CHECK(begin < end && end - begin <= limits.descriptors);
    std::uint64_t bytes = 0;
    for (std::size_t i = begin; i < end; ++i)
      bytes += plan.bytes[i];
    CHECK(bytes == plan.slice_bytes[slice] && bytes <= limits.bytes);
  }
}

void fuzzed_plans_copy_the_same_bytes() {
  constexpr std::uint64_t kBlocks = 64;
  std::mt19937_64 random(20260731);
  const std::uint64_t block_sizes[] = {1, 3, 64, 100, 4096};
  for (int round = 0; round < 100000; ++round) {
    const std::uint64_t block_bytes = block_sizes[random() % 5];
    const SliceLimits limits{.bytes = block_bytes * (1 + random() % 8),
                             .descriptors = static_cast<std::uint32_t>(1 + random() % 8)};
    const Pool source = pool_at(kSource, kBlocks);
    const Pool target = pool_at(kTarget, kBlocks);
    GroupCheck check(source, target, block_bytes);
    RunMerge merge(source, target, block_bytes, limits);
    TransferPlan plan;
    const std::size_t groups = 1 + random() % 3;
    std::size_t begin = 0;
    for (std::size_t g = 0; g < groups; ++g) {
      const Fuzzed group = fuzz_group(random, kBlocks);
      CHECK(check.run(group.source, group.target) == Status::Ok);
      merge.append(group.source, group.target, &plan);
      Expansion naive;
      for (std::size_t i = 0; i < group.source.size(); ++i) {
        expand(kSource + static_cast<std::uintptr_t>(group.source[i]) * block_bytes,
               kTarget + static_cast<std::uintptr_t>(group.target[i]) * block_bytes, block_bytes,
               block_bytes, &naive);
      }
      Expansion merged;
      for (std::size_t i = begin; i < plan.group_end.back(); ++i) {
        expand(plan.source[i], plan.target[i], plan.bytes[i], block_bytes, &merged);
      }
      CHECK(naive == merged);
      begin = plan.group_end.back();
    }
    check_shape(plan, limits, groups);
  }
}

void neighbours_on_both_sides_become_one() {
  RunMerge merge(pool_at(kSource, 100), pool_at(kTarget, 100), 4096, {});
  TransferPlan plan;
  merge.append(std::vector<std::int32_t>{7, 5, 6, 20, 21},
               std::vector<std::int32_t>{12, 10, 11, 30, 40}, &plan);
  CHECK((plan.bytes == std::vector<std::size_t>{3 * 4096, 4096, 4096}));
  CHECK(plan.source[0] == kSource + 5 * 4096 && plan.target[0] == kTarget + 10 * 4096);
  CHECK(plan.slice_end.size() == 1);
  plan.clear();
  CHECK(plan.source.empty() && plan.slice_end.empty() && plan.group_end.empty());
}

void a_block_larger_than_a_slice_is_cut() {
  RunMerge merge(pool_at(kSource, 4), pool_at(kTarget, 4), 1000, {.bytes = 300, .descriptors = 9});
  TransferPlan plan;
  merge.append(std::vector<std::int32_t>{2}, std::vector<std::int32_t>{3}, &plan);
  CHECK((plan.bytes == std::vector<std::size_t>{300, 300, 300, 100}));
  Expansion got;
  for (std::size_t i = 0; i < plan.source.size(); ++i) {
    expand(plan.source[i], plan.target[i], plan.bytes[i], 1, &got);
  }
  Expansion want;
  expand(kSource + 2000, kTarget + 3000, 1000, 1, &want);
  CHECK(got == want);
}

void bad_groups_are_refused_and_leave_nothing_behind() {
  GroupCheck check(pool_at(kSource, 10), pool_at(kTarget, 20), 64);
  using V = std::vector<std::int32_t>;
  CHECK(check.run(V{}, V{}) == Status::Invalid);
  CHECK(check.run(V{1, 2}, V{1}) == Status::Invalid);
  CHECK(check.run(V{10}, V{0}) == Status::OutOfRange);
  CHECK(check.run(V{-1}, V{0}) == Status::OutOfRange);
  CHECK(check.run(V{0}, V{20}) == Status::OutOfRange);
  CHECK(check.run(V{0}, V{-7}) == Status::OutOfRange);
  CHECK(check.run(V{0}, V{INT32_MAX}) == Status::OutOfRange);
  CHECK(check.run(V{1, 2, 3}, V{4, 5, 4}) == Status::Overlap);
  CHECK(check.run(V{1, 1}, V{4, 5}) == Status::Ok);  // one source may be read twice
  CHECK(check.run(V{1, 2, 3}, V{4, 5, 6}) == Status::Ok);
  CHECK(check.run(V{9}, V{19}) == Status::Ok);
}

// Every pair of groups over pools that share memory against a comparison byte by byte.
void shared_memory_is_compared_by_bytes() {
  constexpr std::uint64_t kBytes = 8;
  std::mt19937_64 random(7);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::uintptr_t shift = random() % 48;
    const Pool source = pool_at(kSource + 24, 6);
    const Pool target = pool_at(kSource + shift, 6);
    GroupCheck check(source, target, kBytes);
    const auto from = static_cast<std::int32_t>(random() % 6);
    const auto also = static_cast<std::int32_t>(random() % 6);
    const auto to = static_cast<std::int32_t>(random() % 6);
    const std::vector<std::int32_t> sources{from, also};
    const std::vector<std::int32_t> targets{to, to == 0 ? 5 : to - 1};
    bool overlap = false;
    for (const std::int32_t s : sources) {
      for (const std::int32_t t : targets) {
        const std::uintptr_t a = kSource + 24 + static_cast<std::uintptr_t>(s) * kBytes;
        const std::uintptr_t b = kSource + shift + static_cast<std::uintptr_t>(t) * kBytes;
        overlap = overlap || (a < b + kBytes && b < a + kBytes);
      }
    }
    CHECK((check.run(sources, targets) == Status::Overlap) == overlap);
    refused += overlap ? 1 : 0;
  }
  CHECK(refused > 1000 && refused < 19000);
}

}  // namespace

int main() {
  RUN(neighbours_on_both_sides_become_one);
  RUN(a_block_larger_than_a_slice_is_cut);
  RUN(bad_groups_are_refused_and_leave_nothing_behind);
  RUN(shared_memory_is_compared_by_bytes);
  RUN(fuzzed_plans_copy_the_same_bytes);
  return 0;
}
