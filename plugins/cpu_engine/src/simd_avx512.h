// Sixteen floats as one AVX-512 register (F, BW, DQ, VL). See simd_generic.h for the contract of
// each function and for why all is in an anonymous namespace.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace superinfer::cpu {
namespace {

struct F16 {
  __m512 v;
};

inline F16 set1(float x) {
  return {_mm512_set1_ps(x)};
}
inline F16 load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline void store(float* p, const F16& a) {
  _mm512_storeu_ps(p, a.v);
}
inline F16 add(const F16& a, const F16& b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline F16 sub(const F16& a, const F16& b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline F16 mul(const F16& a, const F16& b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline F16 div(const F16& a, const F16& b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline F16 fma(const F16& a, const F16& b, const F16& c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline F16 max(const F16& a, const F16& b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline F16 min(const F16& a, const F16& b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline F16 zero_below(const F16& value, const F16& x, float limit) {
  const __mmask16 keep = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_NLT_UQ);
  return {_mm512_maskz_mov_ps(keep, value.v)};
}
inline F16 round_nearest(const F16& a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline F16 scale2(const F16& value, const F16& n) {
  return {_mm512_scalef_ps(value.v, n.v)};
}
inline float reduce_max(const F16& a) {
  return _mm512_reduce_max_ps(a.v);
}

inline void store(std::uint16_t* p, const F16& a) {
#ifdef __AVX512BF16__
  const __m256i packed = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m256i packed =
      _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
#endif
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

inline void transpose16x16(__m512i (&r)[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

inline void transpose16(const unsigned char* src, std::size_t stride_bytes, std::ptrdiff_t rows,
                        std::ptrdiff_t dwords, std::uint32_t* dst) {
  for (std::ptrdiff_t d = 0; d < dwords; d += 16) {
    const std::ptrdiff_t valid = dwords - d < 16 ? dwords - d : 16;
    const auto mask = static_cast<__mmask16>((1U << valid) - 1U);
    __m512i r[16];
#pragma GCC unroll 16
    for (std::ptrdiff_t t = 0; t < 16; ++t) {
      const __mmask16 seen = t < rows ? mask : __mmask16{0};
      r[t] =
          _mm512_maskz_loadu_epi32(seen, src + static_cast<std::size_t>(t) * stride_bytes + d * 4);
    }
    transpose16x16(r);
    if (valid == 16) {
#pragma GCC unroll 16
      for (std::ptrdiff_t i = 0; i < 16; ++i)
        _mm512_storeu_si512(dst + (d + i) * 32, r[i]);
    } else {
      alignas(64) __m512i spill[16];
      for (std::ptrdiff_t i = 0; i < 16; ++i)
        spill[i] = r[i];
      for (std::ptrdiff_t i = 0; i < valid; ++i)
        _mm512_storeu_si512(dst + (d + i) * 32, spill[i]);
    }
  }
}

inline void interleave_rows(const std::uint16_t* a, const std::uint16_t* b, std::ptrdiff_t columns,
                            std::uint16_t* dst) {
  const __mmask32 mask = columns >= 32 ? ~__mmask32{0} : (__mmask32{1} << columns) - 1U;
  const __m512i x = _mm512_maskz_loadu_epi16(a != nullptr ? mask : __mmask32{0}, a);
  const __m512i y = _mm512_maskz_loadu_epi16(b != nullptr ? mask : __mmask32{0}, b);
  const __m512i lo = _mm512_unpacklo_epi16(x, y);
  const __m512i hi = _mm512_unpackhi_epi16(x, y);
  const __m512i low_lanes = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i high_lanes = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(dst, _mm512_permutex2var_epi64(lo, low_lanes, hi));
  _mm512_storeu_si512(dst + 32, _mm512_permutex2var_epi64(lo, high_lanes, hi));
}

#ifdef __AVX512BF16__
// Thirty-two values as bf16.
inline void store2(std::uint16_t* p, const F16& a, const F16& b) {
  _mm512_storeu_si512(p, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b.v, a.v)));
}

// p[0], p[0], p[1], p[1] .. p[7], p[7].
inline F16 twice(const float* p) {
  const __m512i order = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return {_mm512_permutexvar_ps(order, _mm512_castps256_ps512(_mm256_loadu_ps(p)))};
}

// Of sixteen dwords the four bits from `shift` on.
inline F16 nibbles(const unsigned char* dwords, int shift) {
  // A permutation looks at the low four bits of its index only.
  const __m512 value = _mm512_setr_ps(0.0F, 1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F, 7.0F, 8.0F, 9.0F,
                                      10.0F, 11.0F, 12.0F, 13.0F, 14.0F, 15.0F);
  const __m512i all = _mm512_loadu_si512(dwords);
  return {_mm512_permutexvar_ps(_mm512_srli_epi32(all, static_cast<unsigned>(shift)), value)};
}
// Of sixteen dwords the eight bits from `shift` on, plus 256.
inline F16 bytes256(const unsigned char* dwords, int shift) {
  // The byte goes to the upper eight bits of the mantissa of 256.
  const __m512i all = _mm512_loadu_si512(dwords);
  const __m512i moved = shift < 15 ? _mm512_slli_epi32(all, static_cast<unsigned>(15 - shift))
                                   : _mm512_srli_epi32(all, static_cast<unsigned>(shift - 15));
  const __m512i mask = _mm512_set1_epi32(0x7f8000);
  const __m512i base = _mm512_set1_epi32(0x43800000);
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(moved, mask, base, 0xea))};
}
#endif

}  // namespace
}  // namespace superinfer::cpu
