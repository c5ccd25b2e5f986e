// Register tiles of up to 6 rows by 16 columns in NEON, with BFDOT where the file is compiled for
// it. See body_gemm.h for the contract.
#pragma once

#include <arm_neon.h>

#include "body_math.h"

namespace superinfer::cpu {
namespace {

template <int R>
struct Accumulators {
  float32x4_t v[std::size_t{R}][4];
};

template <int R>
inline Accumulators<R> zeroes() {
  Accumulators<R> acc;
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      acc.v[r][i] = vdupq_n_f32(0.0F);
  }
  return acc;
}

template <int R>
inline void spill(const Accumulators<R>& acc, float* c, std::ptrdiff_t ld_c) {
#pragma GCC unroll 6
  for (std::ptrdiff_t r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (std::ptrdiff_t i = 0; i < 4; ++i)
      vst1q_f32(c + r * ld_c + 4 * i, acc.v[r][i]);
  }
}

template <int R>
inline void step(Accumulators<R>& acc, const float* a, std::ptrdiff_t ld_a,
                 const float32x4_t (&b)[4]) {
#pragma GCC unroll 6
  for (std::ptrdiff_t r = 0; r < R; ++r) {
    const float32x4_t x = vld1q_dup_f32(a + r * ld_a);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      acc.v[r][i] = vfmaq_f32(acc.v[r][i], x, b[i]);
  }
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
template <int R>
[[gnu::noinline]] void tile_rows(PairBf16 /*flavour*/, const std::uint16_t* a, std::ptrdiff_t ld_a,
                                 const std::uint16_t* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c) {
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t k = 0; k < depth; k += 2) {
    bfloat16x8_t columns[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      columns[i] = vreinterpretq_bf16_u16(vld1q_u16(b + 8 * i));
#pragma GCC unroll 6
    for (std::ptrdiff_t r = 0; r < R; ++r) {
      std::uint32_t pair = 0;
      __builtin_memcpy(&pair, a + r * ld_a + k, 4);
      const bfloat16x8_t x = vreinterpretq_bf16_u32(vdupq_n_u32(pair));
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        acc.v[r][i] = vbfdotq_f32(acc.v[r][i], columns[i], x);
    }
    b += 64;
  }
  spill<R>(acc, c, ld_c);
}
#endif

template <int R>
[[gnu::noinline]] void tile_rows(WideBf16 /*flavour*/, const float* a, std::ptrdiff_t ld_a,
                                 const std::uint16_t* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c) {
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t k = 0; k < depth; k += 2) {
    float32x4_t even[4];
    float32x4_t odd[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(b + 8 * i));
      even[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
      odd[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000U)));
    }
    step<R>(acc, a + k, ld_a, even);
    step<R>(acc, a + k + 1, ld_a, odd);
    b += 64;
  }
  spill<R>(acc, c, ld_c);
}

template <int R>
[[gnu::noinline]] void tile_rows(PlainFp32 /*flavour*/, const float* a, std::ptrdiff_t ld_a,
                                 const float* b, std::ptrdiff_t depth, float* c,
                                 std::ptrdiff_t ld_c) {
  Accumulators<R> acc = zeroes<R>();
  for (std::ptrdiff_t k = 0; k < depth; ++k) {
    const float32x4_t columns[4] = {vld1q_f32(b), vld1q_f32(b + 4), vld1q_f32(b + 8),
                                    vld1q_f32(b + 12)};
    step<R>(acc, a + k, ld_a, columns);
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
