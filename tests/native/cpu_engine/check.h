// A check that says where it failed, and random floats. Nothing else.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (false)

// Deterministic numbers in [-1, 1).
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed * 2 + 1) {}

  float next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<float>(static_cast<double>(state_ >> 40) / 8388608.0 - 1.0);
  }

  std::size_t below(std::size_t limit) {
    return static_cast<std::size_t>((static_cast<double>(next()) + 1.0) / 2.0 *
                                    static_cast<double>(limit));
  }

  std::vector<float> floats(std::size_t count, float scale = 1.0F) {
    std::vector<float> made(count);
    for (float& value : made)
      value = next() * scale;
    return made;
  }

 private:
  std::uint64_t state_;
};
