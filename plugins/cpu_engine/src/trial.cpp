#include "trial.h"

#include <vector>

#include "matrix.h"

namespace superinfer::cpu {
namespace {

constexpr std::ptrdiff_t kRows = 45;  // a full tile of rows and a part of one
constexpr std::ptrdiff_t kOutputs = 64;
constexpr std::ptrdiff_t kDepth = 96;

// Small multiples of 1/16: exact in bf16, and so are all sums in fp32.
float sample_of(std::ptrdiff_t index) {
  const auto mixed = static_cast<std::uint32_t>(index) * 2654435761U;
  return static_cast<float>(static_cast<int>(mixed >> 27) - 16) / 16.0F;
}

std::vector<float> product(const Kernels& kernels, const Matrix& weights) {
  Buffer x(static_cast<std::size_t>(round_up(kRows, kRowStep) * kDepth) * 4);
  for (std::ptrdiff_t i = 0; i < kRows * kDepth; ++i) {
    if (kernels.activation_bytes == 2) {
      x.as<std::uint16_t>()[i] = bf16_of(sample_of(i));
    } else {
      x.as<float>()[i] = sample_of(i);
    }
  }
  std::vector<float> out(static_cast<std::size_t>(kRows * kOutputs));
  Gemm g;
  g.x = x.as<void>();
  g.ld_x = kDepth;
  g.rows = kRows;
  g.weights = weights.data();
  g.depth = kDepth;
  g.panel_end = weights.panels();
  g.out = out.data();
  g.ld_out = kOutputs;
  kernels.gemm(g);
  return out;
}

}  // namespace

bool passes_trial(const Kernels& kernels, const Kernels& reference) {
  std::vector<float> source(static_cast<std::size_t>(kOutputs * kDepth));
  for (std::size_t i = 0; i < source.size(); ++i) {
    source[i] = sample_of(static_cast<std::ptrdiff_t>(i) + 7919);
  }
  Matrix weights(kOutputs, kDepth, Dtype::kBf16);
  weights.store_rows(source.data(), kDepth, 0, kOutputs, Placement::kPlain, 0);
  return product(kernels, weights) == product(reference, weights);
}

}  // namespace superinfer::cpu
