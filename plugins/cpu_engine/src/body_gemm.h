// The matrix product over packed panels with its epilogues, on top of Tile<Flavour>:
//   kRows                                   most rows of one call
//   static void enter()                     prepares the thread, once per kernel call
//   static void run(rows, a, ld_a, b, depth, c, ld_c, ahead)
// run() computes c[rows][32] = a[rows][depth] b[depth][32], one accumulator per element from +0
// over ascending depth; `ahead` is fetched along the way.
#pragma once

#include "body_math.h"

namespace superinfer::cpu {
namespace {

inline std::ptrdiff_t lesser(std::ptrdiff_t a, std::ptrdiff_t b) {
  return a < b ? a : b;
}

// Activations of one pass stay in the level 2 cache while all panels go by.
constexpr std::ptrdiff_t kPassBytes = std::ptrdiff_t{384} << 10;

inline void epilogue_store(const Gemm& g, std::ptrdiff_t row, std::ptrdiff_t rows,
                           std::ptrdiff_t panel, const float* c) {
  const F16 zero = set1(0.0F);
  const float* bias = g.bias == nullptr ? nullptr : g.bias + panel * kPanel;
  const F16 b0 = bias == nullptr ? zero : load(bias);
  const F16 b1 = bias == nullptr ? zero : load(bias + 16);
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    float* out = g.out + (row + i) * g.ld_out + panel * kPanel;
    store(out, add(load(c + i * kPanel), b0));
    store(out + 16, add(load(c + i * kPanel + 16), b1));
  }
}

inline void epilogue_add(const Gemm& g, std::ptrdiff_t row, std::ptrdiff_t rows,
                         std::ptrdiff_t panel, const float* c) {
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    float* out = g.out + (row + i) * g.ld_out + panel * kPanel;
    store(out, add(load(out), load(c + i * kPanel)));
    store(out + 16, add(load(out + 16), load(c + i * kPanel + 16)));
  }
}

template <class Activation>
inline void epilogue_silu(const Gemm& g, std::ptrdiff_t row, std::ptrdiff_t rows,
                          std::ptrdiff_t panel, const float* c) {
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    Activation* act = static_cast<Activation*>(g.act) + (row + i) * g.ld_act + panel * 16;
    store(act, mul(silu(load(c + i * kPanel)), load(c + i * kPanel + 16)));
  }
}

inline void epilogue_head(const Gemm& g, std::ptrdiff_t row, std::ptrdiff_t rows,
                          std::ptrdiff_t panel, float* c) {
  const std::ptrdiff_t begin = panel * kPanel;
  const std::ptrdiff_t width = lesser(kPanel, g.columns - begin);
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    float* line = c + i * kPanel;
    if (g.logits != nullptr && g.logits[row + i] != nullptr) {
      __builtin_memcpy(g.logits[row + i] + begin, line, static_cast<std::size_t>(width) * 4);
    }
    for (std::ptrdiff_t j = width; j < kPanel; ++j)
      line[j] = line[0];  // the tail never wins
    const float most = reduce_max(max(load(line), load(line + 16)));
    float& best = g.best_value[row + i];
    if (!(most >= best)) continue;
    std::ptrdiff_t j = 0;
    while (j < width - 1 && !(line[j] == most))
      ++j;
    const auto id = static_cast<std::int32_t>(begin + j);
    if (most > best || id < g.best_id[row + i]) {
      best = most;
      g.best_id[row + i] = id;
    }
  }
}

template <class Flavour>
inline void epilogue(const Gemm& g, std::ptrdiff_t row, std::ptrdiff_t rows, std::ptrdiff_t panel,
                     float* c) {
  switch (g.epilogue) {
    case Epilogue::kStore:
      return epilogue_store(g, row, rows, panel, c);
    case Epilogue::kAdd:
      return epilogue_add(g, row, rows, panel, c);
    case Epilogue::kSiluMul:
      return epilogue_silu<typename Flavour::Activation>(g, row, rows, panel, c);
    case Epilogue::kHead:
      return epilogue_head(g, row, rows, panel, c);
  }
}

// Rows in tiles of nearly equal size; calls body(first row, rows).
template <class Flavour, class Body>
inline void for_tiles(std::ptrdiff_t begin, std::ptrdiff_t end, Body body) {
  constexpr std::ptrdiff_t kRows = Tile<Flavour>::kRows;
  const std::ptrdiff_t tiles = (end - begin + kRows - 1) / kRows;
  std::ptrdiff_t row = begin;
  for (std::ptrdiff_t left = tiles; left > 0; --left) {
    const std::ptrdiff_t rows =
        Tile<Flavour>::kEven ? (end - row + left - 1) / left : lesser(kRows, end - row);
    body(row, rows);
    row += rows;
  }
}

// The panel after this one is fetched by the first tile, or half by each of the first two: a step
// of the depth reads two lines of a panel in both element types.
inline Ahead ahead_of(const char* next, std::ptrdiff_t tile, bool alone, std::ptrdiff_t steps) {
  if (next == nullptr || tile > 1) return {};
  return {next + tile * steps * 64, alone ? 2 : 1};
}

// Most rows of a product over packed panels: only of sets whose tiles read them.
template <class Flavour>
constexpr std::ptrdiff_t packed_rows_max() {
  if constexpr (requires { Tile<Flavour>::kPackedRowsMax; }) return Tile<Flavour>::kPackedRowsMax;
  return 0;
}

template <class Flavour>
void gemm_packed(const Gemm& g) {
  alignas(64) float c[Tile<Flavour>::kRows * kPanel];
  const std::size_t width = panel_bytes(g.storage, g.depth, Dtype::kBf16);
  const auto* at = static_cast<const unsigned char*>(g.weights);
  at += static_cast<std::size_t>(g.panel_begin) * width;
  for (std::ptrdiff_t panel = g.panel_begin; panel < g.panel_end; ++panel, at += width) {
    const unsigned char* ahead = at + width;
    if (panel + 1 == g.panel_end) ahead = static_cast<const unsigned char*>(g.next);
    Tile<Flavour>::run_packed(g.rows, g, at, c, ahead == nullptr ? at : ahead);
    epilogue<Flavour>(g, 0, g.rows, panel, c);
  }
}

template <class Flavour>
void gemm(const Gemm& g) {
  if constexpr (packed_rows_max<Flavour>() > 0) {
    if (g.storage != Storage::kPlain) return gemm_packed<Flavour>(g);
  }
  Tile<Flavour>::enter();
  alignas(64) float c[Tile<Flavour>::kRows * kPanel];
  const auto* x = static_cast<const typename Flavour::Activation*>(g.x);
  const auto* w = static_cast<const typename Flavour::Weight*>(g.weights);
  constexpr std::ptrdiff_t kElement = sizeof(typename Flavour::Activation);
  std::ptrdiff_t pass = kPassBytes / (g.depth * kElement) / Tile<Flavour>::kRows;
  pass = (pass < 4 ? 4 : pass) * Tile<Flavour>::kRows;
  for (std::ptrdiff_t begin = 0; begin < g.rows; begin += pass) {
    const std::ptrdiff_t end = lesser(begin + pass, g.rows);
    for (std::ptrdiff_t panel = g.panel_begin; panel < g.panel_end; ++panel) {
      const auto* b = w + panel * g.depth * kPanel;
      const bool last = panel + 1 == g.panel_end;
      const char* next = reinterpret_cast<const char*>(b + g.depth * kPanel);
      if (last) next = static_cast<const char*>(g.next);
      const bool alone = end - begin <= Tile<Flavour>::kRows;
      std::ptrdiff_t tile = 0;
      for_tiles<Flavour>(begin, end, [&](std::ptrdiff_t row, std::ptrdiff_t rows) {
        const Ahead ahead = ahead_of(next, tile++, alone, g.depth / Flavour::kPair);
        Tile<Flavour>::run(rows, x + row * g.ld_x, g.ld_x, b, g.depth, c, kPanel, ahead);
        epilogue<Flavour>(g, row, rows, panel, c);
      });
    }
  }
}

}  // namespace
}  // namespace superinfer::cpu
