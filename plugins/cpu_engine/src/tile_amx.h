// Tiles of up to 32 rows by 32 columns in AMX-BF16. See body_gemm.h for the contract.
//
// Each kernel call configures the tiles itself: other libraries on the same thread may have
// released them. The configuration is loaded by an asm statement that names all 64 bytes as read;
// the intrinsic of GCC before 13 names fewer, and the stores that fill the rest may vanish. A row
// of C depends on its own row of A alone, so rows beyond the last may hold anything readable.
#pragma once

#include "body_math.h"

namespace superinfer::cpu {
namespace {

struct alignas(64) TileLayout {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileLayout) == 64);

template <class Flavour>
struct Tile {
  using A = typename Flavour::Activation;
  using B = typename Flavour::Weight;
  static constexpr std::ptrdiff_t kRows = 32;
  static constexpr bool kEven = false;

  static void enter() {
#ifndef SUPERINFER_EMULATED_TILES  // a test replaces the tile intrinsics by loops
    const TileLayout layout;
    asm volatile("ldtilecfg %0" : : "m"(layout));
#endif
  }

  static void run(std::ptrdiff_t rows, const A* a, std::ptrdiff_t ld_a, const B* b,
                  std::ptrdiff_t depth, float* c, std::ptrdiff_t ld_c, const Ahead& ahead) {
    alignas(64) float full[kRows * kPanel];
    if (rows > 16) {
      multiply<true>(a, ld_a, b, depth, full, ahead);
    } else {
      multiply<false>(a, ld_a, b, depth, full, ahead);
    }
    for (std::ptrdiff_t r = 0; r < rows; ++r) {
      store(c + r * ld_c, load(full + r * kPanel));
      store(c + r * ld_c + 16, load(full + r * kPanel + 16));
    }
  }

 private:
  // Tiles 0-3 accumulate, 4 and 5 hold rows of A, 6 and 7 columns of B: 16 pairs of the depth a
  // time.
  template <bool Both>
  static void multiply(const A* a, std::ptrdiff_t ld_a, const B* b, std::ptrdiff_t depth,
                       float* full, const Ahead& ahead) {
    // The load intrinsics do not say that they read memory: what was written before must be there.
    asm volatile("" : : : "memory");
    const char* fetch = ahead.at;
    const auto stride_a = static_cast<long>(ld_a) * 2;
    _tile_zero(0);
    _tile_zero(1);
    if (Both) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (std::ptrdiff_t k = 0; k < depth; k += 32) {
      for (int i = 0; i < 16 * ahead.lines; ++i, fetch += 64)
        _mm_prefetch(fetch, _MM_HINT_T1);
      _tile_loadd(6, b + k * kPanel, 128);
      _tile_loadd(7, b + k * kPanel + 32, 128);
      _tile_loadd(4, a + k, stride_a);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (Both) {
        _tile_loadd(5, a + 16 * ld_a + k, stride_a);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, full, kPanel * 4);
    _tile_stored(1, full + 16, kPanel * 4);
    if (Both) {
      _tile_stored(2, full + 16 * kPanel, kPanel * 4);
      _tile_stored(3, full + 16 * kPanel + 16, kPanel * 4);
    }
  }
};

}  // namespace
}  // namespace superinfer::cpu
