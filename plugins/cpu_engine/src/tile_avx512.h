// Register tiles of up to 12 rows by 32 columns in AVX-512. See body_gemm.h for the contract.
#pragma once

#include "body_math.h"
#ifdef __AVX512BF16__
#include "expand_avx512.h"
#endif

namespace superinfer::cpu {
namespace {

// Fetches `Lines` cache lines into the second level and moves on.
template <int Lines>
inline void fetch(const char*& ahead) {
#pragma GCC unroll 2
  for (int i = 0; i < Lines; ++i)
    _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
  ahead += 64 * Lines;
}

template <int R>
struct Accumulators {
  __m512 v[std::size_t{R}][2];
};

template <int R>
inline void spill(const Accumulators<R>& acc, float* c, std::ptrdiff_t ld_c) {
#pragma GCC unroll 12
  for (std::ptrdiff_t r = 0; r < R; ++r) {
    _mm512_storeu_ps(c + r * ld_c, acc.v[r][0]);
    _mm512_storeu_ps(c + r * ld_c + 16, acc.v[r][1]);
  }
}

template <int R>
inline Accumulators<R> zeroes() {
  Accumulators<R> acc;
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
    acc.v[r][0] = acc.v[r][1] = _mm512_setzero_ps();
  return acc;
}

#ifdef __AVX512BF16__
template <int R, int Lines>
[[gnu::noinline]] void tile_rows(PairBf16, const std::uint16_t* a, std::ptrdiff_t ld_a,
                                 const std::uint16_t* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c, const char* ahead) {
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t k = 0; k < depth; k += 2) {
    fetch<Lines>(ahead);
    const auto b0 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b));
    const auto b1 = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + 32));
#pragma GCC unroll 12
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      std::uint32_t pair;
      __builtin_memcpy(&pair, a + r * ld_a + k, 4);
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair)));
      acc.v[r][0] = _mm512_dpbf16_ps(acc.v[r][0], x, b0);
      acc.v[r][1] = _mm512_dpbf16_ps(acc.v[r][1], x, b1);
    }
    b += 64;
  }
  spill<R>(acc, c, ld_c);
}

// The same over a packed panel, a group at a time through the first-level cache.
template <int R, Storage Packed>
[[gnu::noinline]] void tile_packed(const std::uint16_t* a, std::ptrdiff_t ld_a,
                                   const unsigned char* from, std::ptrdiff_t depth, float* c,
                                   std::ptrdiff_t ld_c, const unsigned char* ahead) {
  alignas(64) std::uint16_t group[kGroup * kPanel];
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t begin = 0; begin < depth; begin += kGroup) {
    expand_group<Packed>(from, ahead, group);
    from += group_bytes(Packed);
    ahead += group_bytes(Packed);
    for (std::ptrdiff_t k = 0; k < kGroup; k += 2) {
      const auto b0 = reinterpret_cast<__m512bh>(_mm512_load_si512(group + k * kPanel));
      const auto b1 = reinterpret_cast<__m512bh>(_mm512_load_si512(group + k * kPanel + 32));
#pragma GCC unroll 12
      for (std::ptrdiff_t r = 0; r < R; ++r) {
        std::uint32_t pair;
        __builtin_memcpy(&pair, a + r * ld_a + begin + k, 4);
        const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair)));
        acc.v[r][0] = _mm512_dpbf16_ps(acc.v[r][0], x, b0);
        acc.v[r][1] = _mm512_dpbf16_ps(acc.v[r][1], x, b1);
      }
    }
  }
  spill<R>(acc, c, ld_c);
}

template <int R>
void choose_packed(std::ptrdiff_t rows, Storage storage, const std::uint16_t* a,
                   std::ptrdiff_t ld_a, const unsigned char* from, std::ptrdiff_t depth, float* c,
                   std::ptrdiff_t ld_c, const unsigned char* ahead) {
  if constexpr (R > 1) {
    if (rows < R) {
      return choose_packed<R - 1>(rows, storage, a, ld_a, from, depth, c, ld_c, ahead);
    }
  }
  if (storage == Storage::kNibbles) {
    return tile_packed<R, Storage::kNibbles>(a, ld_a, from, depth, c, ld_c, ahead);
  }
  tile_packed<R, Storage::kBytes>(a, ld_a, from, depth, c, ld_c, ahead);
}
#endif

template <int R, int Lines>
[[gnu::noinline]] void tile_rows(WideBf16, const float* a, std::ptrdiff_t ld_a,
                                 const std::uint16_t* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c, const char* ahead) {
  Accumulators<R> acc = zeroes<R>();
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  for (std::ptrdiff_t k = 0; k < depth; k += 2) {
    fetch<Lines>(ahead);
    const __m512i b0 = _mm512_loadu_si512(b);
    const __m512i b1 = _mm512_loadu_si512(b + 32);
    const __m512 even0 = _mm512_castsi512_ps(_mm512_slli_epi32(b0, 16));
    const __m512 even1 = _mm512_castsi512_ps(_mm512_slli_epi32(b1, 16));
    const __m512 odd0 = _mm512_castsi512_ps(_mm512_and_si512(b0, high));
    const __m512 odd1 = _mm512_castsi512_ps(_mm512_and_si512(b1, high));
#pragma GCC unroll 12
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      const __m512 x = _mm512_set1_ps(a[r * ld_a + k]);
      acc.v[r][0] = _mm512_fmadd_ps(x, even0, acc.v[r][0]);
      acc.v[r][1] = _mm512_fmadd_ps(x, even1, acc.v[r][1]);
    }
#pragma GCC unroll 12
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      const __m512 x = _mm512_set1_ps(a[r * ld_a + k + 1]);
      acc.v[r][0] = _mm512_fmadd_ps(x, odd0, acc.v[r][0]);
      acc.v[r][1] = _mm512_fmadd_ps(x, odd1, acc.v[r][1]);
    }
    b += 64;
  }
  spill<R>(acc, c, ld_c);
}

template <int R, int Lines>
[[gnu::noinline]] void tile_rows(PlainFp32, const float* a, std::ptrdiff_t ld_a, const float* b,
                                 std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c,
                                 const char* ahead) {
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    fetch<Lines>(ahead);
    const __m512 b0 = _mm512_loadu_ps(b);
    const __m512 b1 = _mm512_loadu_ps(b + 16);
#pragma GCC unroll 12
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      const __m512 x = _mm512_set1_ps(a[r * ld_a + k]);
      acc.v[r][0] = _mm512_fmadd_ps(x, b0, acc.v[r][0]);
      acc.v[r][1] = _mm512_fmadd_ps(x, b1, acc.v[r][1]);
    }
    b += 32;
  }
  spill<R>(acc, c, ld_c);
}

template <class Flavour>
struct Tile {
  using A = typename Flavour::Activation;
  using B = typename Flavour::Weight;
  static constexpr std::ptrdiff_t kRows = 12;
  static constexpr bool kEven = true;

  static void enter() {}

#ifdef __AVX512BF16__
  // Up to this many rows a packed panel is read and expanded faster than a plain one is read.
  static constexpr std::ptrdiff_t kPackedRowsMax = sizeof(A) == 2 ? 4 : 0;

  static void run_packed(std::ptrdiff_t rows, const Gemm& g, const unsigned char* panel, float* c,
                         const unsigned char* ahead) {
    choose_packed<kPackedRowsMax>(rows, g.storage, static_cast<const std::uint16_t*>(g.x), g.ld_x,
                                  panel, g.depth, c, kPanel, ahead);
  }
#endif

  template <int R>
  static void choose(std::ptrdiff_t rows, const A* a, std::ptrdiff_t ld_a, const B* b,
                     std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c, const Ahead& ahead) {
    if constexpr (R > 1) {
      if (rows < R) return choose<R - 1>(rows, a, ld_a, b, depth, c, ld_c, ahead);
    }
    switch (ahead.lines) {
      case 2:
        return tile_rows<R, 2>(Flavour{}, a, ld_a, b, depth, c, ld_c, ahead.at);
      case 1:
        return tile_rows<R, 1>(Flavour{}, a, ld_a, b, depth, c, ld_c, ahead.at);
      default:
        return tile_rows<R, 0>(Flavour{}, a, ld_a, b, depth, c, ld_c, ahead.at);
    }
  }

  static void run(std::ptrdiff_t rows, const A* a, std::ptrdiff_t ld_a, const B* b,
                  std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c, const Ahead& ahead) {
    choose<kRows>(rows, a, ld_a, b, depth, c, ld_c, ahead);
  }
};

}  // namespace
}  // namespace superinfer::cpu
