// The AMX tile's own arithmetic with the tile instructions replaced by loops, so that its layout,
// its strides and its tails are tested on CPUs without AMX. Compiled for AVX-512; skips without it.
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "check.h"

namespace {

struct TileRegister {
  unsigned char bytes[16][64];
};
TileRegister tiles[8];

void emulate_zero(int tile) {
  std::memset(&tiles[tile], 0, sizeof(TileRegister));
}
void emulate_load(int tile, const void* base, long stride) {
  for (long row = 0; row < 16; ++row) {
    std::memcpy(tiles[tile].bytes[row], static_cast<const unsigned char*>(base) + row * stride, 64);
  }
}
void emulate_store(int tile, void* base, long stride) {
  for (long row = 0; row < 16; ++row) {
    std::memcpy(static_cast<unsigned char*>(base) + row * stride, tiles[tile].bytes[row], 64);
  }
}
float of_bf16(const unsigned char* at) {
  std::uint16_t half = 0;
  std::memcpy(&half, at, 2);
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value = 0.0F;
  std::memcpy(&value, &bits, 4);
  return value;
}
// C[row][column] += A[row][pair] . B[pair][column], pair after pair.
void emulate_product(int c, int a, int b) {
  for (int row = 0; row < 16; ++row) {
    for (int pair = 0; pair < 16; ++pair) {
      for (int column = 0; column < 16; ++column) {
        float sum = 0.0F;
        std::memcpy(&sum, tiles[c].bytes[row] + column * 4, 4);
        for (int i = 0; i < 2; ++i) {
          sum += of_bf16(tiles[a].bytes[row] + pair * 4 + i * 2) *
                 of_bf16(tiles[b].bytes[pair] + column * 4 + i * 2);
        }
        std::memcpy(tiles[c].bytes[row] + column * 4, &sum, 4);
      }
    }
  }
}

}  // namespace

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_zero(tile) emulate_zero(tile)
#define _tile_loadd(tile, base, stride) emulate_load(tile, base, stride)
#define _tile_stored(tile, base, stride) emulate_store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) emulate_product(c, a, b)
#define SUPERINFER_EMULATED_TILES
#include "simd_avx512.h"
// clang-format off
#include "tile_amx.h"
#include "body_rows.h"
// clang-format on
#include "trial.h"

int main() {
  using namespace superinfer::cpu;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vl")) {
    std::printf("skipped: this CPU has no AVX512_BF16\n");
    return 77;
  }
  const Kernels emulated = make_kernels<PairBf16>("amx", Dtype::kBf16);
  CHECK(passes_trial(emulated, select_kernels("portable", Dtype::kBf16)));
  return 0;
}
