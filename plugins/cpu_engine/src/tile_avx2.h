// Register tiles of up to 6 rows by 16 columns in AVX2 and FMA. See body_gemm.h for the contract.
#pragma once

#include "body_math.h"

namespace superinfer::cpu {
namespace {

template <int R>
struct Accumulators {
  __m256 v[std::size_t{R}][2];
};

template <int R>
inline void spill(const Accumulators<R>& acc, float* c, std::ptrdiff_t ld_c) {
#pragma GCC unroll 6
  for (std::ptrdiff_t r = 0; r < R; ++r) {
    _mm256_storeu_ps(c + r * ld_c, acc.v[r][0]);
    _mm256_storeu_ps(c + r * ld_c + 8, acc.v[r][1]);
  }
}

template <int R>
inline Accumulators<R> zeroes() {
  Accumulators<R> acc;
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
    acc.v[r][0] = acc.v[r][1] = _mm256_setzero_ps();
  return acc;
}

template <int R>
inline void step(Accumulators<R>& acc, const float* a, std::ptrdiff_t ld_a, __m256 b0, __m256 b1) {
#pragma GCC unroll 6
  for (std::ptrdiff_t r = 0; r < R; ++r) {
    const __m256 x = _mm256_broadcast_ss(a + r * ld_a);
    acc.v[r][0] = _mm256_fmadd_ps(x, b0, acc.v[r][0]);
    acc.v[r][1] = _mm256_fmadd_ps(x, b1, acc.v[r][1]);
  }
}

template <int R>
[[gnu::noinline]] void tile_rows(WideBf16, const float* a, std::ptrdiff_t ld_a,
                                 const std::uint16_t* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c) {
  Accumulators<R> acc = zeroes<R>();
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000U));
  for (std::ptrdiff_t k = 0; k < depth; k += 2) {
    const __m256i b0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
    const __m256i b1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + 16));
    step<R>(acc, a + k, ld_a, _mm256_castsi256_ps(_mm256_slli_epi32(b0, 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(b1, 16)));
    step<R>(acc, a + k + 1, ld_a, _mm256_castsi256_ps(_mm256_and_si256(b0, high)),
            _mm256_castsi256_ps(_mm256_and_si256(b1, high)));
    b += 64;
  }
  spill<R>(acc, c, ld_c);
}

template <int R>
[[gnu::noinline]] void tile_rows(PlainFp32, const float* a, std::ptrdiff_t ld_a, const float* b,
                                 std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c) {
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    step<R>(acc, a + k, ld_a, _mm256_loadu_ps(b), _mm256_loadu_ps(b + 8));
    b += 32;
  }
  spill<R>(acc, c, ld_c);
}

// Two halves of a panel one after the other.
template <class Flavour>
struct Tile {
  using A = typename Flavour::Activation;
  using B = typename Flavour::Weight;
  static constexpr std::ptrdiff_t kRows = 6;
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
