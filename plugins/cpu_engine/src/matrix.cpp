#include "matrix.h"

#include <bit>

namespace superinfer::cpu {
namespace {

std::ptrdiff_t column_of(std::ptrdiff_t row, Placement placement, std::ptrdiff_t first) {
  switch (placement) {
    case Placement::kGate:
      return row / 16 * 32 + row % 16;
    case Placement::kUp:
      return row / 16 * 32 + 16 + row % 16;
    case Placement::kPlain:
      break;
  }
  return first + row;
}

}  // namespace

std::uint16_t bf16_of(float value) {
  auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  bits += 0x7fffU + ((bits >> 16) & 1U);
  return static_cast<std::uint16_t>(bits >> 16);
}

Matrix::Matrix(std::ptrdiff_t outputs, std::ptrdiff_t depth, Dtype dtype)
    : data_(static_cast<std::size_t>(round_up(outputs, kPanel) * round_up(depth, kDepthStep)) *
            element_bytes(dtype)),
      panels_(round_up(outputs, kPanel) / kPanel),
      depth_(round_up(depth, kDepthStep)),
      dtype_(dtype) {}

void Matrix::store_rows(const float* source, std::ptrdiff_t source_depth, std::ptrdiff_t row_begin,
                        std::ptrdiff_t row_end, Placement placement, std::ptrdiff_t first) {
  for (std::ptrdiff_t row = row_begin; row < row_end; ++row) {
    const std::ptrdiff_t column = column_of(row, placement, first);
    const float* from = source + row * source_depth;
    const std::ptrdiff_t base = column / kPanel * depth_ * kPanel;
    const std::ptrdiff_t lane = column % kPanel;
    if (dtype_ == Dtype::kFp32) {
      float* to = data_.as<float>() + base + lane;
      for (std::ptrdiff_t k = 0; k < source_depth; ++k)
        to[k * kPanel] = from[k];
    } else {
      std::uint16_t* to = data_.as<std::uint16_t>() + base + lane * 2;
      for (std::ptrdiff_t k = 0; k < source_depth; ++k) {
        to[k / 2 * kPanel * 2 + k % 2] = bf16_of(from[k]);
      }
    }
  }
}

void Matrix::read_row(std::ptrdiff_t output, float* out) const {
  const std::ptrdiff_t base = output / kPanel * depth_ * kPanel;
  const std::ptrdiff_t lane = output % kPanel;
  if (dtype_ == Dtype::kFp32) {
    const float* from = data_.as<float>() + base + lane;
    for (std::ptrdiff_t k = 0; k < depth_; ++k)
      out[k] = from[k * kPanel];
    return;
  }
  const std::uint16_t* from = data_.as<std::uint16_t>() + base + lane * 2;
  for (std::ptrdiff_t k = 0; k < depth_; k += 2) {
    const std::uint16_t* pair = from + k * kPanel;
    out[k] = std::bit_cast<float>(static_cast<std::uint32_t>(pair[0]) << 16);
    out[k + 1] = std::bit_cast<float>(static_cast<std::uint32_t>(pair[1]) << 16);
  }
}

}  // namespace superinfer::cpu
