// Copies by several threads are the same copies; threads stay on a node when there is one.
#include <sched.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../check.hpp"
#include "backend.hpp"
#include "numa.hpp"

namespace {

using duplexkv::Backend;
using duplexkv::common_node;
using duplexkv::make_host_backend;
using duplexkv::parse_cpus;
using duplexkv::Progress;
using duplexkv::Slice;
using duplexkv::stay_on_node;

// Slices of all sizes, from one byte to more than a share a thread, ends included.
void shares_copy_every_byte_once(unsigned threads) {
  constexpr std::size_t kBytes = 3 << 20;
  std::mt19937_64 random(threads);
  std::vector<std::byte> source(kBytes);
  for (std::size_t i = 0; i < kBytes; ++i)
    source[i] = static_cast<std::byte>(random() >> 13);
  const auto backend = make_host_backend(
      {.threads = threads, .share_bytes_min = std::uint64_t{64} << threads, .near = source});
  std::vector<std::byte> target(kBytes);
  for (std::uint64_t round = 1; round <= 60; ++round) {
    std::fill(target.begin(), target.end(), std::byte{0});
    std::vector<std::uintptr_t> from;
    std::vector<std::uintptr_t> to;
    std::vector<std::size_t> bytes;
    const std::size_t largest = std::size_t{1} << (random() % 21);
    for (std::size_t at = 0; at < kBytes && bytes.size() < 500; at += bytes.back()) {
      bytes.push_back(std::min(kBytes - at, 1 + random() % largest));
      from.push_back(reinterpret_cast<std::uintptr_t>(source.data() + at));
      to.push_back(reinterpret_cast<std::uintptr_t>(target.data() + at));
    }
    CHECK(backend->submit(Slice{from, to, bytes}, round) == Progress::Done);
    const auto copied = static_cast<std::ptrdiff_t>(
        to.back() + bytes.back() - reinterpret_cast<std::uintptr_t>(target.data()));
    CHECK(std::equal(target.begin(), target.begin() + copied, source.begin()));
    CHECK(std::all_of(target.begin() + copied, target.end(),
                      [](std::byte byte) { return byte == std::byte{0}; }));
  }
  backend->drain();
}

void one_two_and_three_threads_copy_alike() {
  for (const unsigned threads : {1U, 2U, 3U, 8U})
    shares_copy_every_byte_once(threads);
}

void lists_of_cpus() {
  CHECK((parse_cpus("0-3,8,10-11") == std::vector<int>{0, 1, 2, 3, 8, 10, 11}));
  CHECK(parse_cpus("5") == std::vector<int>{5});
  for (const char* const none : {"", "-", "a", "1-", "1,,2", "-3", "1-2-3", "99999999"})
    CHECK(parse_cpus(none).empty());
}

// Allowed CPUs of this thread, after `body` has run on a thread of its own.
template <typename Body>
std::vector<int> allowed_after(Body body) {
  std::vector<int> cpus;
  std::thread([&] {
    body();
    cpu_set_t allowed;
    CHECK(sched_getaffinity(0, sizeof(allowed), &allowed) == 0);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) cpus.push_back(cpu);
    }
  }).join();
  return cpus;
}

void a_thread_stays_on_a_node_or_where_it_is() {
  std::array<char, 64> folder{"/tmp/duplexkv-nodes-XXXXXX"};
  CHECK(mkdtemp(folder.data()) != nullptr);
  const std::filesystem::path nodes(folder.data());
  const std::vector<int> all = allowed_after([] {});
  const auto write = [&](int node, const std::string& cpus) {
    std::filesystem::create_directory(nodes / ("node" + std::to_string(node)));
    std::ofstream(nodes / ("node" + std::to_string(node)) / "cpulist") << cpus << "\n";
  };
  write(0, std::to_string(all.front()));
  write(1, "");  // the memory of a GPU
  write(2, "0-1023");
  const auto stays = [&](int node) {
    return allowed_after([&] { stay_on_node(node, folder.data()); });
  };
  CHECK(stays(0) == std::vector<int>{all.front()});
  for (const int node : {-1, 1, 2, 7})
    CHECK(stays(node) == all);
  std::filesystem::remove_all(nodes);
}

void memory_that_nobody_touched_is_on_no_node() {
  int here = 0;
  const auto address = reinterpret_cast<std::uintptr_t>(&here);
  const int node = common_node(std::array{address});
  CHECK(node >= -1 && common_node(std::array{address, address}) == node);
  CHECK(common_node({}) == -1);
  CHECK(common_node(std::array{address, std::uintptr_t{0}}) == -1);
}

}  // namespace

int main() {
  RUN(one_two_and_three_threads_copy_alike);
  RUN(lists_of_cpus);
  RUN(a_thread_stays_on_a_node_or_where_it_is);
  RUN(memory_that_nobody_touched_is_on_no_node);
  return 0;
}
