// Functions built from the sixteen-lane operations of one instruction set, and the three flavours
// of a matrix product. Included by kernel sources only, after one simd_*.h.
#pragma once

#include "kernels.h"

namespace superinfer::cpu {
namespace {

// bf16 x bf16 in pairs of the depth, accumulated in fp32.
struct PairBf16 {
  using Activation = std::uint16_t;
  using Weight = std::uint16_t;
  static constexpr std::ptrdiff_t kPair = 2;
};
// fp32 x bf16: activations stay fp32, weights and KV are expanded in registers.
struct WideBf16 {
  using Activation = float;
  using Weight = std::uint16_t;
  static constexpr std::ptrdiff_t kPair = 2;
};
struct PlainFp32 {
  using Activation = float;
  using Weight = float;
  static constexpr std::ptrdiff_t kPair = 1;
};

// Memory to be fetched while a tile is computed: `lines` (0, 1 or 2) cache lines for each step of
// the depth, from `at` on.
struct Ahead {
  const char* at = nullptr;
  int lines = 0;
};

// The same at once, for sets whose tiles do not fetch along the way.
inline void fetch_all(const Ahead& ahead, std::ptrdiff_t steps) {
  for (std::ptrdiff_t i = 0; i < steps * ahead.lines; ++i)
    __builtin_prefetch(ahead.at + i * 64, 0, 2);
}

// Lanes are added as a tree of halves.
inline float reduce_add(const F16& a) {
  alignas(64) float lane[16];
  store(lane, a);
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i)
      lane[i] += lane[i + width];
  }
  return lane[0];
}

// e^x within 2 ulp for x in [-87, 88]; exactly 1 at 0, exactly 0 below -87, e^88 above 88.
inline F16 exp(const F16& x) {
  const F16 bounded = min(max(x, set1(-87.0F)), set1(88.0F));
  const F16 n = round_nearest(mul(bounded, set1(1.44269504F)));
  F16 r = fma(n, set1(-0.693359375F), bounded);
  r = fma(n, set1(2.12194440e-4F), r);
  F16 p = set1(1.9875691500e-4F);
  p = fma(p, r, set1(1.3981999507e-3F));
  p = fma(p, r, set1(8.3334519073e-3F));
  p = fma(p, r, set1(4.1665795894e-2F));
  p = fma(p, r, set1(1.6666665459e-1F));
  p = fma(p, r, set1(5.0000001201e-1F));
  p = fma(p, mul(r, r), add(r, set1(1.0F)));
  return zero_below(scale2(p, n), x, -87.0F);
}

inline float exp1(float x) {
  alignas(64) float lane[16];
  store(lane, exp(set1(x)));
  return lane[0];
}

inline F16 silu(const F16& x) {
  return div(x, add(set1(1.0F), exp(sub(set1(0.0F), x))));
}

inline void store_one(float* p, float x) {
  *p = x;
}
inline void store_one(std::uint16_t* p, float x) {
  alignas(64) std::uint16_t lane[16];
  store(lane, set1(x));
  *p = lane[0];
}

}  // namespace
}  // namespace superinfer::cpu
