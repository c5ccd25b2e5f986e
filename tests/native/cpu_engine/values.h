// Storing and reading numbers as a kernel set holds them.
#pragma once

#include <bit>
#include <cstring>

#include "kernels.h"
#include "matrix.h"

namespace superinfer::cpu {

// Writes x as bf16 or fp32 and returns what was stored.
inline float put(void* array, std::ptrdiff_t index, float x, std::size_t element) {
  auto* at = static_cast<unsigned char*>(array) + static_cast<std::size_t>(index) * element;
  if (element == 4) {
    std::memcpy(at, &x, 4);
    return x;
  }
  const std::uint16_t bits = bf16_of(x);
  std::memcpy(at, &bits, 2);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline float get(const void* array, std::ptrdiff_t index, std::size_t element) {
  const auto* at =
      static_cast<const unsigned char*>(array) + static_cast<std::size_t>(index) * element;
  if (element == 4) {
    float x = 0.0F;
    std::memcpy(&x, at, 4);
    return x;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, 2);
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace superinfer::cpu
