// The planner against a plan of one descriptor a piece, on fuzzed layouts and groups; what is to be
// refused is refused, and counted.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "../check.hpp"
#include "book.hpp"
#include "planner.hpp"

namespace {

using duplexkv::Book;
using duplexkv::check_range;
using duplexkv::Pool;
using duplexkv::PoolLayout;
using duplexkv::RunMerge;
using duplexkv::Segment;
using duplexkv::SliceLimits;
using duplexkv::Status;
using duplexkv::TransferPlan;
using Ids = std::vector<std::int32_t>;

// The planner only does arithmetic on addresses: pools need no memory.
std::byte* at(std::uintptr_t address) {
  return reinterpret_cast<std::byte*>(address);
}

constexpr std::uintptr_t kSource = 0x10000000;
constexpr std::uintptr_t kTarget = 0x90000000;
constexpr std::uint64_t kBlocks = 48;

PoolLayout layout_of(std::vector<Segment> segments, std::uint64_t blocks = kBlocks) {
  PoolLayout layout;
  CHECK(PoolLayout::create("test", std::move(segments), blocks, &layout) == Status::Ok);
  return layout;
}

PoolLayout block_first(std::uintptr_t base, std::uint64_t blocks, std::uint64_t bytes) {
  return {Pool{.base = at(base), .blocks = blocks}, bytes};
}

// Cuts `bytes` into parts: block-first, layer-first, with gaps, or some next to each other in a
// row.
std::vector<Segment> fuzz_segments(std::mt19937_64& random, std::uintptr_t base,
                                   std::uint64_t bytes) {
  std::vector<std::uint64_t> parts;
  const bool even = random() % 2 == 0;
  for (std::uint64_t left = bytes; left > 0; left -= parts.back())
    parts.push_back(even ? std::max<std::uint64_t>(1, std::min(left, bytes / 4))
                         : 1 + random() % left);
  std::vector<Segment> segments;
  if (random() % 3 == 0) {  // the parts of a row, wherever they stand in it
    const std::uint64_t stride = bytes + random() % 3;
    for (const std::uint64_t part : parts) {
      segments.push_back({.base = at(base), .stride = stride, .bytes = part});
      base += part;
    }
    return segments;
  }
  for (const std::uint64_t part : parts) {  // each part a pool of its own
    const std::uint64_t stride = part + (random() % 3 == 0 ? 1 + random() % 4 : 0);
    segments.push_back({.base = at(base), .stride = stride, .bytes = part});
    base += stride * kBlocks + random() % 2;
  }
  if (random() % 2 == 0) {  // pools lie as they like, the order of the bytes is the order here
    for (std::size_t i = segments.size() - 1; i > 0; --i) {
      const std::size_t j = random() % (i + 1);
      if (segments[i].bytes == segments[j].bytes && segments[i].stride == segments[j].stride) {
        std::swap(segments[i].base, segments[j].base);
      }
    }
  }
  return segments;
}

struct Fuzzed {
  Ids source;
  Ids target;
};

// Groups as the ledger makes them: some runs, some scattered ids, in any order, distinct targets.
Fuzzed fuzz_group(std::mt19937_64& random) {
  Fuzzed group;
  std::vector<bool> used(kBlocks, false);
  const auto draw = [&](std::uint64_t below) {
    return static_cast<std::int32_t>(random() % below);
  };
  const int runs = 1 + draw(5);
  for (int run = 0; run < runs; ++run) {
    std::int32_t source = draw(kBlocks);
    std::int32_t target = draw(kBlocks);
    const std::int32_t length = 1 + draw(10);
    for (std::int32_t i = 0; i < length; ++i, ++source, ++target) {
      if (source >= static_cast<std::int32_t>(kBlocks)) break;
      if (target >= static_cast<std::int32_t>(kBlocks)) break;
      if (used[static_cast<std::size_t>(target)]) break;
      used[static_cast<std::size_t>(target)] = true;
      group.source.push_back(source);
      group.target.push_back(target);
    }
  }
  if (random() % 2 == 0) {  // pairs stay pairs in another order
    for (std::size_t i = group.source.size() - 1; i > 0; --i) {
      const std::size_t j = random() % (i + 1);
      std::swap(group.source[i], group.source[j]);
      std::swap(group.target[i], group.target[j]);
    }
  }
  return group;
}

// For every byte of the target tier, the source byte that comes there (0: none).
class Expansion {
 public:
  Expansion() : of_(kSpan, 0) {}

  void add(std::uintptr_t source, std::uintptr_t target, std::uint64_t bytes) {
    CHECK(target >= kTarget && target + bytes <= kTarget + kSpan);
    for (std::uint64_t i = 0; i < bytes; ++i) {
      std::uint32_t& from = of_[target - kTarget + i];
      CHECK(from == 0);
      from = static_cast<std::uint32_t>(source + i);
      touched_.push_back(static_cast<std::uint32_t>(target - kTarget + i));
    }
  }
  // Whether both say the same; forgets it all.
  bool same(Expansion* other) {
    bool equal = touched_.size() == other->touched_.size();
    for (const std::uint32_t byte : touched_)
      equal = equal && of_[byte] == other->of_[byte];
    clear();
    other->clear();
    return equal;
  }

 private:
  static constexpr std::size_t kSpan = 1 << 16;

  void clear() {
    for (const std::uint32_t byte : touched_)
      of_[byte] = 0;
    touched_.clear();
  }

  std::vector<std::uint32_t> of_;
  std::vector<std::uint32_t> touched_;
};

// Byte by byte: block s of one tier to block t of the other.
void add_naive(const std::vector<Segment>& source, const std::vector<Segment>& target,
               const Fuzzed& group, Expansion* out) {
  for (std::size_t i = 0; i < group.source.size(); ++i) {
    std::size_t to = 0;
    std::uint64_t offset = 0;
    for (const Segment& from : source) {
      for (std::uint64_t byte = 0; byte < from.bytes; ++byte) {
        if (offset == target[to].bytes) {
          ++to;
          offset = 0;
        }
        const auto s = static_cast<std::uint64_t>(group.source[i]);
        const auto t = static_cast<std::uint64_t>(group.target[i]);
        out->add(
            reinterpret_cast<std::uintptr_t>(from.base) + s * from.stride + byte,
            reinterpret_cast<std::uintptr_t>(target[to].base) + t * target[to].stride + offset++,
            1);
      }
    }
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
    for (std::size_t i = begin; i < end; ++i) {
      CHECK(plan.bytes[i] > 0 && plan.bytes[i] <= limits.descriptor_bytes);
      bytes += plan.bytes[i];
    }
    CHECK(bytes == plan.slice_bytes[slice] && bytes <= limits.bytes);
  }
}

// Whatever could merge has merged, but for the limits.
void check_merged(const TransferPlan& plan, std::size_t begin, std::size_t end,
                  const PoolLayout& source, const PoolLayout& target, SliceLimits limits) {
  for (std::size_t i = begin; i + 1 < end; ++i) {
    const std::uint64_t bytes = plan.bytes[i];
    if (plan.source[i] + bytes != plan.source[i + 1]) continue;
    if (plan.target[i] + bytes != plan.target[i + 1]) continue;
    const bool at_limit = bytes == limits.descriptor_bytes || bytes == limits.bytes;
    const bool at_chunk =
        source.chunks.left(plan.source[i]) == bytes || target.chunks.left(plan.target[i]) == bytes;
    CHECK(at_limit || at_chunk);
  }
}

bool crosses(duplexkv::Chunks chunks, std::uintptr_t address, std::uint64_t bytes) {
  return bytes > chunks.left(address);
}

struct Fuzz {
  std::mt19937_64 random{20260731};
  Expansion merged;
  Expansion naive;
  std::uint64_t descriptors = 0;
  std::uint64_t blocks = 0;
  std::uint64_t refused = 0;

  void plan() {
    const std::uint64_t bytes = 1 + random() % 24;
    const std::vector<Segment> from = fuzz_segments(random, kSource, bytes);
    const std::vector<Segment> to = fuzz_segments(random, kTarget, bytes);
    PoolLayout source = layout_of(from);
    PoolLayout target = layout_of(to);
    if (random() % 4 == 0) source.chunks = {.base = kSource, .bytes = 1 + random() % 200};
    if (random() % 4 == 0) target.chunks = {.base = kTarget, .bytes = 1 + random() % 200};
    const SliceLimits limits{.bytes = 1 + random() % (8 * bytes),
                             .descriptors = static_cast<std::uint32_t>(1 + random() % 8),
                             .descriptor_bytes = 1 + random() % (6 * bytes)};
    RunMerge merge(source, target, limits);
    Book book(kBlocks);
    TransferPlan plan;
    std::size_t begin = 0;
    const std::size_t groups = 1 + random() % 3;
    for (std::size_t g = 0; g < groups; ++g) {
      const Fuzzed group = fuzz_group(random);
      refuse(group, &book);
      merge.append(group.source, group.target, &plan);
      for (std::size_t i = begin; i < plan.source.size(); ++i) {
        merged.add(plan.source[i], plan.target[i], plan.bytes[i]);
        CHECK(!crosses(source.chunks, plan.source[i], plan.bytes[i]));
        CHECK(!crosses(target.chunks, plan.target[i], plan.bytes[i]));
      }
      add_naive(from, to, group, &naive);
      CHECK(naive.same(&merged));
      check_merged(plan, begin, plan.source.size(), source, target, limits);
      begin = plan.source.size();
      blocks += group.source.size();
    }
    check_shape(plan, limits, groups);
    descriptors += plan.source.size();
  }

  // The group passes; with one id spoilt it does not, and the book is as before.
  void refuse(const Fuzzed& group, Book* book) {
    CHECK(check_range("source", group.source, kBlocks) == Status::Ok);
    CHECK(book->take_writers(group.target) == Status::Ok);
    book->drop_writers(group.target);
    Fuzzed bad = group;
    std::int32_t& id = bad.target[random() % bad.target.size()];
    switch (random() % 3) {
      case 0:
        id = static_cast<std::int32_t>(kBlocks + random() % 1000);
        CHECK(check_range("target", bad.target, kBlocks) == Status::OutOfRange);
        break;
      case 1:
        id = -1 - static_cast<std::int32_t>(random() % 1000);
        CHECK(check_range("target", bad.target, kBlocks) == Status::OutOfRange);
        break;
      default:
        bad.target.push_back(bad.target[random() % bad.target.size()]);
        CHECK(book->take_writers(bad.target) == Status::Overlap);
    }
    ++refused;
  }
};

void fuzzed_plans_copy_the_same_bytes() {
  constexpr int kPlans = 100000;
  Fuzz fuzz;
  for (int round = 0; round < kPlans; ++round)
    fuzz.plan();
  CHECK(fuzz.refused >= kPlans);
  std::fprintf(stderr, "  %d plans, %llu blocks, %llu descriptors, %llu groups refused\n", kPlans,
               static_cast<unsigned long long>(fuzz.blocks),
               static_cast<unsigned long long>(fuzz.descriptors),
               static_cast<unsigned long long>(fuzz.refused));
}

void neighbours_on_both_sides_become_one() {
  RunMerge merge(block_first(kSource, 100, 4096), block_first(kTarget, 100, 4096), {});
  TransferPlan plan;
  merge.append(Ids{7, 5, 6, 20, 21}, Ids{12, 10, 11, 30, 40}, &plan);
  CHECK((plan.bytes == std::vector<std::size_t>{3 * 4096, 4096, 4096}));
  CHECK(plan.source[0] == kSource + 5 * 4096 && plan.target[0] == kTarget + 10 * 4096);
  CHECK(plan.slice_end.size() == 1);
  plan.clear();
  CHECK(plan.source.empty() && plan.slice_end.empty() && plan.group_end.empty());
}

void large_runs_are_cut() {
  constexpr std::uint64_t kMiB = 1 << 20;
  RunMerge merge(block_first(kSource, 64, kMiB), block_first(kTarget, 64, kMiB), {});
  Ids ids(35);
  std::iota(ids.begin(), ids.end(), 3);
  TransferPlan plan;
  merge.append(ids, ids, &plan);
  CHECK((plan.bytes == std::vector<std::size_t>{8 * kMiB, 8 * kMiB, 8 * kMiB, 8 * kMiB, 3 * kMiB}));
  CHECK((plan.slice_bytes == std::vector<std::uint64_t>{32 * kMiB, 3 * kMiB}));
}

// Two layers of K and V on the device, one block behind the other on the host.
void layers_come_together_in_a_block() {
  std::vector<Segment> layers;
  for (std::uint64_t part = 0; part < 4; ++part)
    layers.push_back({.base = at(kSource + part * 100 * 512), .stride = 512, .bytes = 512});
  const PoolLayout device = layout_of(layers, 100);
  CHECK(device.block_bytes() == 2048 && device.segments().size() == 4);
  TransferPlan plan;
  RunMerge(device, block_first(kTarget, 100, 2048), {}).append(Ids{8, 9}, Ids{20, 21}, &plan);
  CHECK(plan.bytes == std::vector<std::size_t>(8, 512));
  CHECK(plan.source[1] == kSource + 9 * 512 && plan.target[1] == kTarget + 21 * 2048);
  CHECK(plan.source[2] == kSource + 100 * 512 + 8 * 512 &&
        plan.target[2] == kTarget + 20 * 2048 + 512);
  CHECK(std::is_sorted(plan.source.begin(), plan.source.end()));
  plan.clear();
  RunMerge(block_first(kTarget, 100, 2048), device, {}).append(Ids{8, 9}, Ids{20, 21}, &plan);
  CHECK(plan.source.size() == 8 && std::is_sorted(plan.source.begin(), plan.source.end()));
  plan.clear();
  RunMerge(device, layout_of(layers, 100), {}).append(Ids{8, 9}, Ids{20, 21}, &plan);
  CHECK(plan.bytes == std::vector<std::size_t>(4, 1024));  // alike: runs merge layer by layer
}

// Values and their scales: two pools with the same ids, on the host one behind the other.
void pools_with_the_same_ids_move_together() {
  const PoolLayout device = layout_of({{.base = at(kSource), .stride = 1024, .bytes = 1024},
                                       {.base = at(kSource + 65536), .stride = 32, .bytes = 32}});
  CHECK(device.block_bytes() == 1056);
  TransferPlan plan;
  RunMerge(device, block_first(kTarget, kBlocks, 1056), {}).append(Ids{5}, Ids{7}, &plan);
  CHECK((plan.bytes == std::vector<std::size_t>{1024, 32}));
  CHECK(plan.source[1] == kSource + 65536 + 5 * 32 && plan.target[1] == kTarget + 7 * 1056 + 1024);
}

void layouts_that_cannot_be_are_refused() {
  const auto refused = [](std::vector<Segment> segments, std::uint64_t blocks) {
    PoolLayout layout;
    CHECK(PoolLayout::create("test", std::move(segments), blocks, &layout) == Status::Invalid);
    CHECK(layout.blocks() == 0);
  };
  const Segment good{.base = at(kSource), .stride = 64, .bytes = 48};
  refused({}, 4);
  refused({good}, 0);
  refused({good}, std::uint64_t{1} << 31);
  refused({{.base = nullptr, .stride = 64, .bytes = 64}}, 4);
  refused({{.base = at(kSource), .stride = 64, .bytes = 0}}, 4);
  refused({{.base = at(kSource), .stride = 47, .bytes = 48}}, 4);
  refused({{.base = at(kSource), .stride = UINT64_MAX / 2, .bytes = 48}}, 4);
  refused({good, good}, 4);
  refused({good, {.base = at(kSource + 47), .stride = 64, .bytes = 17}}, 4);
  refused({good, {.base = at(kSource + 48), .stride = 64, .bytes = 17}}, 4);
  refused({good, {.base = at(kSource + 3 * 64 + 47), .stride = 32, .bytes = 8}}, 4);
  refused(std::vector<Segment>(PoolLayout::kSegmentsMax + 1, good), 4);
  CHECK(layout_of({good, {.base = at(kSource + 48), .stride = 64, .bytes = 16}}, 4)
            .segments()
            .size() == 1);
  CHECK(layout_of({good, {.base = at(kSource - 16), .stride = 64, .bytes = 16}}, 4)
            .segments()
            .size() == 2);
}

// Every pair of layouts against a comparison byte by byte.
void shared_memory_is_compared_by_bytes() {
  std::mt19937_64 random(7);
  const auto bytes_of = [](const Segment& segment) {
    std::vector<bool> bytes(400, false);
    for (std::uint64_t block = 0; block < 6; ++block) {
      for (std::uint64_t byte = 0; byte < segment.bytes; ++byte)
        bytes[reinterpret_cast<std::uintptr_t>(segment.base) - kSource + block * segment.stride +
              byte] = true;
    }
    return bytes;
  };
  int shared = 0;
  for (int round = 0; round < 20000; ++round) {
    const std::uint64_t stride = 1 + random() % 16;
    const auto draw = [&] {
      return Segment{
          .base = at(kSource + random() % 200), .stride = stride, .bytes = 1 + random() % stride};
    };
    const Segment a = draw();
    const Segment b = draw();
    const std::vector<bool> of_a = bytes_of(a);
    const std::vector<bool> of_b = bytes_of(b);
    bool both = false;
    for (std::size_t byte = 0; byte < of_a.size(); ++byte)
      both = both || (of_a[byte] && of_b[byte]);
    CHECK(share_memory(layout_of({a}, 6), layout_of({b}, 6)) == both);
    shared += both ? 1 : 0;
  }
  CHECK(shared > 1000 && shared < 19000);
}

void ids_outside_are_refused() {
  CHECK(check_range("source", Ids{}, 1) == Status::Ok);
  CHECK(check_range("source", Ids{0, 9}, 10) == Status::Ok);
  for (const std::int32_t id : {10, -1, -7, INT32_MAX, INT32_MIN}) {
    CHECK(check_range("source", Ids{3, id, 4}, 10) == Status::OutOfRange);
  }
  CHECK(check_range("target", Ids{INT32_MAX - 1}, INT32_MAX) == Status::Ok);
  CHECK(check_range("target", Ids{INT32_MAX}, INT32_MAX) == Status::OutOfRange);
}

void the_book_refuses_and_takes_nothing() {
  Book book(10);
  CHECK(book.take_readers(Ids{1, 1, 2}) == Status::Ok);  // one slot may be read twice
  CHECK(book.take_writers(Ids{3, 2}) == Status::Overlap);
  CHECK(book.take_writers(Ids{4, 5, 4}) == Status::Overlap);
  CHECK(book.take_writers(Ids{4, 4, 4}) == Status::Overlap);
  CHECK(book.take_writers(Ids{3, 4, 5}) == Status::Ok);
  CHECK(book.take_readers(Ids{6, 3}) == Status::Overlap);
  CHECK(book.take_writers(Ids{6, 3}) == Status::Overlap);
  book.drop_readers(Ids{1, 2});
  CHECK(book.take_writers(Ids{1}) == Status::Overlap);  // its second reader
  CHECK(book.take_writers(Ids{2, 6}) == Status::Ok);
  book.drop_readers(Ids{1});
  book.drop_writers(Ids{2, 3, 4, 5, 6});
  CHECK(book.take_writers(Ids{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) == Status::Ok);
}

}  // namespace

int main() {
  RUN(neighbours_on_both_sides_become_one);
  RUN(large_runs_are_cut);
  RUN(layers_come_together_in_a_block);
  RUN(pools_with_the_same_ids_move_together);
  RUN(layouts_that_cannot_be_are_refused);
  RUN(shared_memory_is_compared_by_bytes);
  RUN(ids_outside_are_refused);
  RUN(the_book_refuses_and_takes_nothing);
  RUN(fuzzed_plans_copy_the_same_bytes);
  return 0;
}
