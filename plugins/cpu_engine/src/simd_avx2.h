// Sixteen floats as two AVX2 registers. See simd_generic.h for the contract of each function and
// for why all is in an anonymous namespace.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace superinfer::cpu {
namespace {

struct F16 {
  __m256 lo;
  __m256 hi;
};

inline F16 set1(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline F16 load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline void store(float* p, const F16& a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline F16 add(const F16& a, const F16& b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F16 sub(const F16& a, const F16& b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F16 mul(const F16& a, const F16& b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F16 div(const F16& a, const F16& b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F16 fma(const F16& a, const F16& b, const F16& c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F16 max(const F16& a, const F16& b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F16 min(const F16& a, const F16& b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F16 zero_below(const F16& value, const F16& x, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.lo, l, _CMP_LT_OQ), value.lo),
          _mm256_andnot_ps(_mm256_cmp_ps(x.hi, l, _CMP_LT_OQ), value.hi)};
}
inline F16 round_nearest(const F16& a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
inline __m256 power2(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline F16 scale2(const F16& value, const F16& n) {
  return {_mm256_mul_ps(value.lo, power2(n.lo)), _mm256_mul_ps(value.hi, power2(n.hi))};
}
inline float reduce_max(const F16& a) {
  const __m256 m = _mm256_max_ps(a.lo, a.hi);
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  x = _mm_max_ss(x, _mm_shuffle_ps(x, x, 1));
  return _mm_cvtss_f32(x);
}

// Nearest, ties to even; a NaN stays a NaN. The bf16 bits are in the low halves of the dwords.
inline __m256i bf16_bits(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  const __m256 chosen =
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
  return _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
}
inline void store(std::uint16_t* p, const F16& a) {
  const __m256i packed = _mm256_packus_epi32(bf16_bits(a.lo), bf16_bits(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

// Eight rows by eight dwords.
inline void transpose8(const __m256 (&r)[8], __m256 (&out)[8]) {
  __m256 t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  __m256 u[8];
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    out[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

inline void transpose16(const unsigned char* src, std::size_t stride_bytes, std::ptrdiff_t rows,
                        std::ptrdiff_t dwords, std::uint32_t* dst) {
  for (std::ptrdiff_t d = 0; d < dwords; d += 8) {
    const std::ptrdiff_t valid = dwords - d < 8 ? dwords - d : 8;
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(valid)), lanes);
    for (std::ptrdiff_t half = 0; half < 2; ++half) {
      __m256 r[8];
      for (std::ptrdiff_t i = 0; i < 8; ++i) {
        const std::ptrdiff_t t = half * 8 + i;
        r[i] = t < rows ? _mm256_maskload_ps(reinterpret_cast<const float*>(
                                                 src + static_cast<std::size_t>(t) * stride_bytes) +
                                                 d,
                                             mask)
                        : _mm256_setzero_ps();
      }
      __m256 out[8];
      transpose8(r, out);
      for (std::ptrdiff_t i = 0; i < valid; ++i) {
        _mm256_storeu_ps(reinterpret_cast<float*>(dst) + (d + i) * 32 + half * 8, out[i]);
      }
    }
  }
}

inline void interleave_rows(const std::uint16_t* a, const std::uint16_t* b, std::ptrdiff_t columns,
                            std::uint16_t* dst) {
  for (std::ptrdiff_t c = 0; c < 32; c += 8) {  // columns are a multiple of 8
    __m128i x = _mm_setzero_si128();
    __m128i y = _mm_setzero_si128();
    if (a != nullptr && c < columns) x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + c));
    if (b != nullptr && c < columns) y = _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + c));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * c), _mm_unpacklo_epi16(x, y));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + 2 * c + 8), _mm_unpackhi_epi16(x, y));
  }
}

}  // namespace
}  // namespace superinfer::cpu
