// Packed groups made plain: bf16 values out of codes, scales and least values, by the operations
// with which the matrix has checked them (matrix.cpp).
#pragma once

#include "body_math.h"

namespace superinfer::cpu {
namespace {

// A group of nibbles or bytes, to [16][32][2].
template <Storage Packed>
inline void expand_group(const unsigned char* from, const unsigned char* ahead, std::uint16_t* to) {
  constexpr bool kNibbles = Packed == Storage::kNibbles;
  constexpr int kBits = kNibbles ? 4 : 8;
  constexpr std::size_t kQuarterBytes = kNibbles ? 128 : 256;
  for (std::size_t i = 0; i < group_bytes(Packed); i += 64)
    __builtin_prefetch(ahead + i, 0, 2);
  const auto* scale = reinterpret_cast<const float*>(from);
  const unsigned char* code = from + scale_bytes(Packed);
  for (int half = 0; half < 2; ++half, to += 32, scale += 16, code += 2 * kQuarterBytes) {
    const F16 scale0 = twice(scale);
    const F16 scale1 = twice(scale + 8);
    const F16 offset = set1(-384.0F);
    const F16 least0 = kNibbles ? twice(scale + kPanel) : mul(scale0, offset);
    const F16 least1 = kNibbles ? twice(scale + kPanel + 8) : mul(scale1, offset);
    std::uint16_t* pair = to;
    for (std::size_t line = 0; line < kQuarterBytes; line += 64) {
#pragma GCC unroll 8
      for (int shift = 0; shift < 32; shift += kBits, pair += 64) {
        const unsigned char* at = code + line;
        const F16 a = kNibbles ? nibbles(at, shift) : bytes256(at, shift);
        at += kQuarterBytes;
        const F16 b = kNibbles ? nibbles(at, shift) : bytes256(at, shift);
        store2(pair, fma(a, scale0, least0), fma(b, scale1, least1));
      }
    }
  }
}

}  // namespace
}  // namespace superinfer::cpu
