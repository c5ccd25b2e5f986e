// Sixteen floats at a time in plain C++; the compiler makes of it what the target has (SSE2, NEON).
//
// Included by kernel sources only, each of which is compiled for its own instruction set: all is in
// an anonymous namespace, so that no function compiled for one set can be linked into another.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace superinfer::cpu {
namespace {

struct F16 {
  float lane[16];
};

template <class Op>
inline F16 map(Op op) {
  F16 r;
  for (int i = 0; i < 16; ++i)
    r.lane[i] = op(i);
  return r;
}

inline F16 set1(float x) {
  return map([&](int) { return x; });
}
inline F16 load(const float* p) {
  return map([&](int i) { return p[i]; });
}
inline void store(float* p, const F16& a) {
  std::memcpy(p, a.lane, sizeof a.lane);
}
inline F16 add(const F16& a, const F16& b) {
  return map([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F16 sub(const F16& a, const F16& b) {
  return map([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline F16 mul(const F16& a, const F16& b) {
  return map([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F16 div(const F16& a, const F16& b) {
  return map([&](int i) { return a.lane[i] / b.lane[i]; });
}
// a * b + c; whether it rounds once is the set's own affair, but always the same.
inline F16 fma(const F16& a, const F16& b, const F16& c) {
  return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline F16 max(const F16& a, const F16& b) {
  return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F16 min(const F16& a, const F16& b) {
  return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
// 0 where x < limit, else value.
inline F16 zero_below(const F16& value, const F16& x, float limit) {
  return map([&](int i) { return x.lane[i] < limit ? 0.0F : value.lane[i]; });
}
// To the nearest integer, for |x| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline F16 round_nearest(const F16& a) {
  constexpr float kMagic = 12582912.0F;
  return map([&](int i) { return (a.lane[i] + kMagic) - kMagic; });
}
// value * 2^n for integers n in [-126, 127].
inline F16 scale2(const F16& value, const F16& n) {
  return map([&](int i) {
    return value.lane[i] * std::bit_cast<float>((static_cast<std::int32_t>(n.lane[i]) + 127) << 23);
  });
}
inline float reduce_max(const F16& a) {
  float m = a.lane[0];
  for (int i = 1; i < 16; ++i)
    m = a.lane[i] > m ? a.lane[i] : m;
  return m;
}

inline std::uint16_t to_bf16(float x) {
  auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  bits += 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>(bits >> 16);
}
inline void store(std::uint16_t* p, const F16& a) {
  for (int i = 0; i < 16; ++i)
    p[i] = to_bf16(a.lane[i]);
}

// dst[d][t] = src row t, dword d, for 16 rows; dst rows are 32 dwords. Rows from `rows` on are
// zero.
inline void transpose16(const unsigned char* src, std::size_t stride_bytes, std::ptrdiff_t rows,
                        std::ptrdiff_t dwords, std::uint32_t* dst) {
  for (std::ptrdiff_t t = 0; t < 16; ++t) {
    const unsigned char* row = src + static_cast<std::size_t>(t) * stride_bytes;
    for (std::ptrdiff_t d = 0; d < dwords; ++d) {
      std::uint32_t word = 0;
      if (t < rows) std::memcpy(&word, row + d * 4, 4);
      dst[d * 32 + t] = word;
    }
  }
}

// dst[column][2] = (a, b) for up to 32 columns of two bf16 rows; null rows count as zero.
inline void interleave_rows(const std::uint16_t* a, const std::uint16_t* b, std::ptrdiff_t columns,
                            std::uint16_t* dst) {
  for (std::ptrdiff_t c = 0; c < 32; ++c) {
    dst[2 * c] = a != nullptr && c < columns ? a[c] : std::uint16_t{0};
    dst[2 * c + 1] = b != nullptr && c < columns ? b[c] : std::uint16_t{0};
  }
}

}  // namespace
}  // namespace superinfer::cpu
