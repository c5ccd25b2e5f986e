// What the engine is told of a model, and the sizes that follow from it.
//
// Knows no file format, no kernel and no thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace superinfer::cpu {

// How weights and KV are stored. Activations follow the kernel set.
enum class Dtype { kBf16, kFp32 };

constexpr std::size_t element_bytes(Dtype dtype) {
  return dtype == Dtype::kBf16 ? 2 : 4;
}

// A packed matrix is made of panels of 32 output columns; its depth (the inputs) is padded to a
// multiple of 32. Rows of activations are readable up to the next multiple of 32.
constexpr std::ptrdiff_t kPanel = 32;
constexpr std::ptrdiff_t kDepthStep = 32;
constexpr std::ptrdiff_t kRowStep = 32;

// How a matrix keeps its weights. The packed ones are for bf16 values that are exactly
// bf16(scale * code + least), with one scale and one least value for each output and kGroup inputs:
// what a file quantised in such groups holds. They are made bf16 again on the way to the product.
enum class Storage {
  kPlain,    // values
  kNibbles,  // codes 0 .. 15
  kBytes,    // codes 1 .. 255, least = -128 scale
};

constexpr std::ptrdiff_t kGroup = 32;

// A group of a packed panel: [32] scales, for nibbles [32] least values, and the codes of eight
// outputs at a time: dword 2 o + p of a line of 64 bytes holds, from its lowest bits on, the codes
// of output o for the inputs of parity p, for 16 inputs a line as nibbles, 8 as bytes.
constexpr std::size_t scale_bytes(Storage storage) {
  return storage == Storage::kNibbles ? 256 : 128;
}
constexpr std::size_t group_bytes(Storage storage) {
  return scale_bytes(storage) + (storage == Storage::kNibbles ? 512 : 1024);
}

constexpr std::size_t panel_bytes(Storage storage, std::ptrdiff_t depth, Dtype dtype) {
  const auto inputs = static_cast<std::size_t>(depth);
  if (storage == Storage::kPlain) return inputs * kPanel * element_bytes(dtype);
  return inputs / kGroup * group_bytes(storage);
}

constexpr std::ptrdiff_t round_up(std::ptrdiff_t value, std::ptrdiff_t step) {
  return (value + step - 1) / step * step;
}

// Shape of a decoder. Rotary embedding is by halves. experts == 0 means dense.
struct Shape {
  int layers = 0;
  int hidden = 0;
  int intermediate = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int vocabulary = 0;
  int context_tokens_max = 0;
  int experts = 0;
  int experts_per_token = 0;
  int block_tokens = 16;
  bool tied_embedding = false;
  bool qkv_bias = false;
  float norm_eps = 1e-5F;

  int group() const { return heads / kv_heads; }
  int query_columns() const { return heads * head_dim; }
  int kv_columns() const { return kv_heads * head_dim; }
  int qkv_columns() const { return query_columns() + 2 * kv_columns(); }
  // Elements of K (or of V) of one block and one layer.
  std::size_t block_elements() const {
    return static_cast<std::size_t>(block_tokens) * static_cast<std::size_t>(kv_columns());
  }
};

// Throws std::invalid_argument that names the field and its limit.
void check(const Shape& shape);

}  // namespace superinfer::cpu
