// Arenas and the copy routine.
#include <cstring>
#include <random>
#include <vector>

#include "../check.hpp"
#include "arena.hpp"
#include "copy.hpp"

namespace {

using duplexkv::Arena;
using duplexkv::Status;

void an_arena_is_zeroed_aligned_and_writable_to_its_last_byte() {
  std::unique_ptr<Arena> arena;
  const std::uint64_t sizes[][2] = {{1, 1}, {3, 4097}, {1, 2 << 20}, {7, 1 << 20}, {100, 65536}};
  for (const auto& [blocks, block_bytes] : sizes) {
    CHECK(Arena::create(blocks, block_bytes, &arena) == Status::Ok);
    CHECK(arena->bytes() == blocks * block_bytes);
    CHECK(reinterpret_cast<std::uintptr_t>(arena->base()) % (2 << 20) == 0);
    for (std::uint64_t i = 0; i < arena->bytes(); i += 511)
      CHECK(arena->base()[i] == std::byte{0});
    std::memset(arena->base(), 0xAB, arena->bytes());
    CHECK(arena->base()[arena->bytes() - 1] == std::byte{0xAB});
  }
}

void absurd_sizes_are_refused_with_a_reason() {
  std::unique_ptr<Arena> arena;
  CHECK(Arena::create(0, 64, &arena) == Status::Invalid);
  CHECK(Arena::create(64, 0, &arena) == Status::Invalid);
  CHECK(Arena::create(std::uint64_t{1} << 31, 1, &arena) == Status::TooLarge);
  CHECK(Arena::create(1, UINT64_MAX, &arena) == Status::TooLarge);
  CHECK(Arena::create(INT32_MAX, std::uint64_t{1} << 40, &arena) == Status::TooLarge);
  CHECK(arena == nullptr);
  CHECK(std::strstr(duplexkv::last_error(), "bytes of memory") != nullptr);
}

void copies_are_exact_at_every_alignment_and_touch_nothing_else() {
  std::mt19937_64 random(3);
  std::vector<std::byte> source(100000);
  for (std::byte& byte : source)
    byte = static_cast<std::byte>(random());
  const std::size_t lengths[] = {0, 1, 63, 64, 65, 4096, 16383, 16384, 16385, 16448, 65536, 99000};
  for (const std::size_t length : lengths) {
    for (int round = 0; round < 40; ++round) {
      const std::size_t from = random() % 130;
      const std::size_t to = random() % 130;
      std::vector<std::byte> target(length + 260, std::byte{0x5A});
      std::vector<std::byte> want = target;
      for (std::size_t i = 0; i < length; ++i)
        want[to + i] = source[from + i];
      duplexkv::copy_bytes(target.data() + to, source.data() + from, length);
      CHECK(target == want);
    }
  }
  CHECK(duplexkv::measure_copy() > 0);
}

}  // namespace

int main() {
  RUN(an_arena_is_zeroed_aligned_and_writable_to_its_last_byte);
  RUN(absurd_sizes_are_refused_with_a_reason);
  RUN(copies_are_exact_at_every_alignment_and_touch_nothing_else);
  return 0;
}
