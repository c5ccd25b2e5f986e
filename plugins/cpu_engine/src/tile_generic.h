// Register tiles of up to 4 rows by 16 columns in plain C++. See body_gemm.h for the contract.
#pragma once

#include "body_math.h"

namespace superinfer::cpu {
namespace {

inline F16 expand_even(const std::uint16_t* pairs) {
  return map(
      [&](int i) { return std::bit_cast<float>(static_cast<std::uint32_t>(pairs[2 * i]) << 16); });
}
inline F16 expand_odd(const std::uint16_t* pairs) {
  return map([&](int i) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(pairs[2 * i + 1]) << 16);
  });
}

template <int R>
[[gnu::noinline]] void tile_rows(WideBf16, const float* a, std::ptrdiff_t ld_a,
                                 const std::uint16_t* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c) {
  F16 acc[std::size_t{R}];
  for (int r = 0; r < R; ++r)
    acc[r] = set1(0.0F);
  for (std::ptrdiff_t k = 0; k < depth; k += 2) {
    const F16 even = expand_even(b);
    const F16 odd = expand_odd(b);
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      acc[r] = fma(set1(a[r * ld_a + k]), even, acc[r]);
      acc[r] = fma(set1(a[r * ld_a + k + 1]), odd, acc[r]);
    }
    b += 64;
  }
  for (std::ptrdiff_t r = 0; r < R; ++r)
    store(c + r * ld_c, acc[r]);
}

template <int R>
[[gnu::noinline]] void tile_rows(PlainFp32, const float* a, std::ptrdiff_t ld_a, const float* b,
                                 std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c) {
  F16 acc[std::size_t{R}];
  for (int r = 0; r < R; ++r)
    acc[r] = set1(0.0F);
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    const F16 line = load(b);
    for (std::ptrdiff_t r = 0; r < R; ++r)
      acc[r] = fma(set1(a[r * ld_a + k]), line, acc[r]);
    b += 32;
  }
  for (std::ptrdiff_t r = 0; r < R; ++r)
    store(c + r * ld_c, acc[r]);
}

// Two halves of a panel one after the other.
template <class Flavour>
struct Tile {
  using A = typename Flavour::Activation;
  using B = typename Flavour::Weight;
  static constexpr std::ptrdiff_t kRows = 4;
  static constexpr bool kEven = true;

  static void enter() {}

  template <int R>
  static void choose(std::ptrdiff_t rows, const A* a, std::ptrdiff_t ld_a, const B* b,
                     std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c) {
    if constexpr (R > 1) {
      if (rows < R) return choose<R - 1>(rows, a, ld_a, b, depth, c, ld_c);
    }
    tile_rows<R>(Flavour{}, a, ld_a, b, depth, c, ld_c);
    tile_rows<R>(Flavour{}, a, ld_a, b + 16 * Flavour::kPair, depth, c + 16, ld_c);
  }

  static void run(std::ptrdiff_t rows, const A* a, std::ptrdiff_t ld_a, const B* b,
                  std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c, const Ahead& ahead) {
    fetch_all(ahead, depth / Flavour::kPair);
    choose<kRows>(rows, a, ld_a, b, depth, c, ld_c);
  }
};

}  // namespace
}  // namespace superinfer::cpu
