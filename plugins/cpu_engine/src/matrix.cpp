#include "matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

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

// The nearest fp16 of a value >= 0, as a float: quantised files keep their scales in fp16.
float fp16_of(float value) {
  constexpr float kNormalMin = 0x1p-14F;
  if (value < kNormalMin) return std::nearbyint(value * 0x1p24F) * 0x1p-24F;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return std::bit_cast<float>((bits + 0xfffU + ((bits >> 13) & 1U)) & ~0x1fffU);
}

float value_of(std::uint16_t bf16) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bf16) << 16);
}

// One group of one output.
struct Codes {
  float scale = 0.0F;
  float least = 0.0F;
  int code[kGroup] = {};
};

// Whether scale and least give every value exactly, whether or not the product is rounded before
// the sum (kernel sets differ in that). Values whose bf16 is not normal are left to plain storage.
bool gives(const float* values, const Codes& codes) {
  for (std::ptrdiff_t i = 0; i < kGroup; ++i) {
    const float wanted = value_of(bf16_of(values[i]));
    const auto code = static_cast<float>(codes.code[i]);
    if (value_of(bf16_of(code * codes.scale + codes.least)) != wanted) return false;
    if (value_of(bf16_of(std::fma(code, codes.scale, codes.least))) != wanted) return false;
    if (wanted != 0.0F && std::abs(wanted) < std::numeric_limits<float>::min()) return false;
  }
  return true;
}

// The nearest codes, at most `most`. False when values lie far from all of them.
bool choose(const float* values, int most, Codes& codes) {
  const float inverse = codes.scale == 0.0F ? 0.0F : 1.0F / codes.scale;
  for (std::ptrdiff_t i = 0; i < kGroup; ++i) {
    const float exact = (values[i] - codes.least) * inverse;
    const float code = std::nearbyint(exact);
    if (!(code >= 0.0F && code <= static_cast<float>(most) && std::abs(exact - code) < 0.01F)) {
      return false;
    }
    codes.code[i] = static_cast<int>(code);
  }
  return true;
}

// A value close to the middle between two bf16 may need a scale or least value a bit off.
bool adjust(const float* values, Codes& codes) {
  constexpr float kStep = 0x1p-23F;
  const Codes found = codes;
  for (const int scale_steps : {0, 1, -1, 2, -2}) {
    for (const int least_steps : {0, 1, -1, 2, -2}) {
      codes.scale = found.scale * (1.0F + kStep * static_cast<float>(scale_steps));
      codes.least = found.least * (1.0F + kStep * static_cast<float>(least_steps));
      if (gives(values, codes)) return true;
    }
  }
  return false;
}

bool find_nibbles(const float* values, Codes& codes) {
  const auto [least, most] = std::minmax_element(values, values + kGroup);
  // A file of four bits a weight need not use all sixteen codes in each group.
  for (int steps = 15; steps > 0; --steps) {
    codes.least = *least;
    codes.scale = fp16_of((*most - *least) / static_cast<float>(steps));
    if (choose(values, 15, codes) && adjust(values, codes)) return true;
  }
  return false;
}

bool find_bytes(const float* values, Codes& codes) {
  float most = 0.0F;
  for (std::ptrdiff_t i = 0; i < kGroup; ++i)
    most = std::max(most, std::abs(values[i]));
  codes.scale = fp16_of(most / 127.0F);
  codes.least = -128.0F * codes.scale;
  return choose(values, 255, codes) && gives(values, codes);
}

// Where the code of input i of an output lies in its group, and its lowest bit there.
struct Place {
  std::size_t byte = 0;
  int bit = 0;
};

Place place_of(Storage storage, std::ptrdiff_t lane, std::ptrdiff_t i) {
  const bool nibbles = storage == Storage::kNibbles;
  const std::ptrdiff_t line_inputs = nibbles ? 16 : 8;
  const std::ptrdiff_t line = lane / 8 * (kGroup / line_inputs) + i / line_inputs;
  const std::ptrdiff_t bit = i % line_inputs / 2 * (nibbles ? 4 : 8);
  const std::ptrdiff_t byte = line * 64 + (lane % 8 * 2 + i % 2) * 4 + bit / 8;
  return {scale_bytes(storage) + static_cast<std::size_t>(byte), static_cast<int>(bit % 8)};
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

Storage Matrix::prepare(Storage wanted) {
  if (wanted == storage_ || !empty_ || dtype_ != Dtype::kBf16) return storage_;
  storage_ = wanted;
  data_ = Buffer();  // before the new one, which may be large
  data_ = Buffer(static_cast<std::size_t>(panels_) * panel_bytes());
  return storage_;
}

Matrix& Matrix::packed_twin() {
  if (!twin_) twin_ = std::make_unique<Matrix>(panels_ * kPanel, depth_, dtype_);
  return *twin_;
}

bool Matrix::store_packed(const float* source, std::ptrdiff_t source_depth, std::ptrdiff_t column) {
  if (source_depth != depth_) return false;
  const bool nibbles = storage_ == Storage::kNibbles;
  const std::ptrdiff_t lane = column % kPanel;
  unsigned char* to =
      data_.as<unsigned char>() + static_cast<std::size_t>(column / kPanel) * panel_bytes();
  for (std::ptrdiff_t k = 0; k < depth_; k += kGroup, to += group_bytes(storage_)) {
    Codes codes;
    if (!(nibbles ? find_nibbles(source + k, codes) : find_bytes(source + k, codes))) return false;
    auto* scale = reinterpret_cast<float*>(to);
    scale[lane] = codes.scale;
    if (nibbles) scale[kPanel + lane] = codes.least;
    for (std::ptrdiff_t i = 0; i < kGroup; ++i) {
      const Place place = place_of(storage_, lane, i);
      // A group is stored once into zeroes, or again over itself.
      unsigned char& byte = to[place.byte];
      const int kept = nibbles ? byte & (0xf0 >> place.bit) : 0;
      byte = static_cast<unsigned char>(kept | codes.code[i] << place.bit);
    }
  }
  return true;
}

void Matrix::read_packed(std::ptrdiff_t output, float* out) const {
  const bool nibbles = storage_ == Storage::kNibbles;
  const std::ptrdiff_t lane = output % kPanel;
  const unsigned char* from =
      data_.as<unsigned char>() + static_cast<std::size_t>(output / kPanel) * panel_bytes();
  for (std::ptrdiff_t k = 0; k < depth_; k += kGroup, from += group_bytes(storage_)) {
    const auto* scale = reinterpret_cast<const float*>(from) + lane;
    const float least = nibbles ? scale[kPanel] : -128.0F * *scale;
    for (std::ptrdiff_t i = 0; i < kGroup; ++i) {
      const Place place = place_of(storage_, lane, i);
      const int code = from[place.byte] >> place.bit & (nibbles ? 15 : 255);
      out[k + i] = value_of(bf16_of(static_cast<float>(code) * *scale + least));
    }
  }
}

bool Matrix::store_rows(const float* source, std::ptrdiff_t source_depth, std::ptrdiff_t row_begin,
                        std::ptrdiff_t row_end, Placement placement, std::ptrdiff_t first) {
  for (std::ptrdiff_t row = row_begin; row < row_end; ++row) {
    const std::ptrdiff_t column = column_of(row, placement, first);
    const float* from = source + row * source_depth;
    if (storage_ != Storage::kPlain) {
      if (!store_packed(from, source_depth, column)) return false;
      continue;
    }
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
  return true;
}

void Matrix::read_row(std::ptrdiff_t output, float* out) const {
  if (storage_ != Storage::kPlain) return read_packed(output, out);
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
    out[k] = value_of(pair[0]);
    out[k + 1] = value_of(pair[1]);
  }
}

}  // namespace superinfer::cpu
