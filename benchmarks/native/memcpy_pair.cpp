// What two plain memcpy threads reach, one a direction: the measure of benchmarks/link.py.
//
//   memcpy_pair BLOCKS BLOCK_BYTES
//
// Two pools of 2 * BLOCKS blocks in huge pages, like the benchmark's own. For each line on standard
// input it makes one round, BLOCKS blocks each way, and answers with its seconds:
//   blocks  one memcpy a block, scattered over the pools
//   whole   one memcpy for all of a direction's blocks, side by side
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::byte* pool_of(std::size_t bytes) {
  const std::size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(kHugePage, whole);
  if (memory == nullptr) {
    std::fprintf(stderr, "memcpy_pair: no memory for %zu bytes\n", whole);
    std::exit(1);
  }
  madvise(memory, whole, MADV_HUGEPAGE);
  std::memset(memory, 1, whole);  // no page is touched for the first time inside a measurement
  return static_cast<std::byte*>(memory);
}

std::vector<std::size_t> shuffled(std::size_t count, unsigned seed) {
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

class Pair {
 public:
  Pair(std::size_t blocks, std::size_t block_bytes)
      : blocks_(blocks),
        bytes_(block_bytes),
        pools_{pool_of(2 * blocks * block_bytes), pool_of(2 * blocks * block_bytes)},
        orders_{shuffled(2 * blocks, 1), shuffled(2 * blocks, 2)} {}

  double round(bool whole) {
    std::barrier start(3);
    std::array<std::thread, 2> threads;
    for (std::size_t way = 0; way < 2; ++way) {
      threads[way] = std::thread([this, whole, way, &start] {
        start.arrive_and_wait();
        whole ? copy_whole(way) : copy_blocks(way);
      });
    }
    start.arrive_and_wait();
    const auto begin = std::chrono::steady_clock::now();
    for (std::thread& thread : threads)
      thread.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

 private:
  // The first half of the ids goes out, the second comes in.
  void copy_blocks(std::size_t way) const {
    const std::size_t first = way * blocks_;
    for (std::size_t i = first; i < first + blocks_; ++i) {
      std::memcpy(pools_[1 - way] + orders_[1 - way][i] * bytes_,
                  pools_[way] + orders_[way][i] * bytes_, bytes_);
    }
  }
  void copy_whole(std::size_t way) const {
    const std::size_t first = way * blocks_ * bytes_;
    std::memcpy(pools_[1 - way] + first, pools_[way] + first, blocks_ * bytes_);
  }

  std::size_t blocks_;
  std::size_t bytes_;
  std::array<std::byte*, 2> pools_;
  std::array<std::vector<std::size_t>, 2> orders_;
};

}  // namespace

int main(int count, char** arguments) {
  const std::size_t blocks = count == 3 ? std::strtoull(arguments[1], nullptr, 10) : 0;
  const std::size_t block_bytes = count == 3 ? std::strtoull(arguments[2], nullptr, 10) : 0;
  if (blocks == 0 || block_bytes == 0) {
    std::fprintf(stderr, "memcpy_pair BLOCKS BLOCK_BYTES\n");
    return 2;
  }
  Pair pair(blocks, block_bytes);
  for (std::string line; std::getline(std::cin, line);) {
    std::printf("%.9f\n", pair.round(line == "whole"));
    std::fflush(stdout);
  }
  return 0;
}
